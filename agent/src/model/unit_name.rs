//! The name of a systemd unit, as a person writes it: with or without an ending, escaped or not, or a glob.
//!
//! **Invariant:** no I/O. The result has only characters that systemd allows in the name of a unit, and those of globs.

/// Endings of units with processes.
const WITH_PROCESSES: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
/// Endings of other units.
const WITHOUT: [&str; 5] = [".automount", ".device", ".path", ".target", ".timer"];
/// The longest name of a unit, in bytes.
const NAME_BYTES: usize = 255;
/// The characters of globs.
const GLOB: &str = "*?[]{},!^";

/// Whether text is a glob.
pub fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', ']', '{', '}'])
}

/// Completes a name as systemctl does: escapes what systemd does not allow, and adds `.service` if there is no ending.
pub fn complete(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('/') {
        return Err("it is not the name of a unit".to_owned());
    }
    if let Some(ending) = WITHOUT.iter().find(|ending| text.ends_with(**ending)) {
        return Err(format!("a {} has no processes", &ending[1..]));
    }
    let mut name = text.chars().fold(String::new(), |mut name, c| {
        let is_allowed = c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        match c {
            '/' => name.push('-'),
            c if is_allowed || is_glob(text) && GLOB.contains(c) => name.push(c),
            c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| name.extend(format!("\\x{byte:02x}").chars())),
        }
        name
    });
    if !is_glob(&name) && !WITH_PROCESSES.iter().any(|ending| name.ends_with(ending)) {
        name.push_str(".service");
    }
    match name.len() {
        0..=NAME_BYTES => Ok(name),
        bytes => Err(format!("it has {bytes} bytes; expected {NAME_BYTES} at most")),
    }
}

/// The file that makes a unit: an instance has that of its template.
pub fn template(name: &str) -> Option<String> {
    let (stem, ending) = name.rsplit_once('.')?;
    let (prefix, instance) = stem.split_once('@')?;
    (!instance.is_empty()).then(|| format!("{prefix}@.{ending}"))
}

#[cfg(test)]
mod tests {
    use super::{complete, template};

    #[test]
    fn names_as_people_write_them() {
        for (text, want) in [
            ("transmission", "transmission.service"),
            ("transmission-daemon.service", "transmission-daemon.service"),
            ("backup@*.service", "backup@*.service"),
            ("app-*firefox*", "app-*firefox*"),
            ("app-org\\x2dfoo.scope", "app-org\\x2dfoo.scope"),
            ("my app", "my\\x20app.service"),
            ("backup@home/ö", "backup@home-\\xc3\\xb6.service"),
            ("a,b", "a\\x2cb.service"),
            ("{a,b}.service", "{a,b}.service"),
            ("a.b", "a.b.service"),
            ("backup.slice", "backup.slice"),
        ] {
            assert_eq!(complete(text).as_deref(), Ok(want), "{text}");
        }
        for text in ["", "/system.slice/x.service", "x.timer", "x.target", &"x".repeat(256)] {
            assert!(complete(text).is_err(), "{text}");
        }
    }

    #[test]
    fn instances_have_templates() {
        assert_eq!(template("backup@a.service").as_deref(), Some("backup@.service"));
        assert_eq!((template("backup@.service"), template("backup.service")), (None, None));
    }
}
