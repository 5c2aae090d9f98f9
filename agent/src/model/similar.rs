//! The known name that a wrong one is most similar to.

/// How similar a name must be, from 0 to 1.
const SIMILAR: f64 = 0.85;

/// The most similar name with the same ending.
pub fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let split = |name: &str| {
        name.rsplit_once('.').map_or((name.to_owned(), String::new()), |(stem, end)| (stem.to_owned(), end.to_owned()))
    };
    let (own, ending) = split(name);
    let likeness = |other: &String| {
        let (stem, end) = split(other);
        if end == ending { strsim::jaro_winkler(&own, &stem) } else { 0.0 }
    };
    let best = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) >= SIMILAR).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn the_nearest_name() {
        let known = ["ssh.service", "transmission-daemon.service", "transmission.timer", "cron.service", "alice"];
        for (name, want) in [
            ("transmission.service", Some("transmission-daemon.service")),
            ("transmision-daemon.service", Some("transmission-daemon.service")),
            ("nginx.service", None),
            ("alcie", Some("alice")),
        ] {
            assert_eq!(nearest(name, known.map(str::to_owned)).as_deref(), want, "{name}");
        }
    }
}
