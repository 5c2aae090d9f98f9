//! What docs/releases.md promises about versions: this version reads what 0.1.0 read, and answers as it did. `fixtures/0.1.0` was
//! written by 0.1.0, with `STEER_RECORD=1`, and is never changed for a later version.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value, json};
use steer_tests::{Bed, Daemon, Outcome, User};

use crate::{Test, api};

pub(crate) const TESTS: &[Test] = &[
    ("configuration_is_read", configuration_is_read),
    ("requests_and_answers_of_the_api", requests_and_answers_of_the_api),
    ("json_of_commands", json_of_commands),
    ("pins_have_a_number", pins_have_a_number),
];

/// A file of the fixture.
fn file(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "fixtures/0.1.0", name].iter().collect()
}

/// A document of the fixture; with STEER_RECORD, this one is written to it before.
fn recorded(name: &str, now: &Value) -> anyhow::Result<Value> {
    if std::env::var_os("STEER_RECORD").is_some() {
        fs::write(file(name), serde_json::to_string_pretty(now)? + "\n")?;
    }
    read(name)
}

fn read(name: &str) -> anyhow::Result<Value> {
    let text = fs::read_to_string(file(name)).with_context(|| file(name).display().to_string())?;
    Ok(serde_json::from_str(&text)?)
}

/// A bed with the configuration of the fixture.
fn bed(name: &str) -> anyhow::Result<Bed> {
    let bed = Bed::new(name)?;
    bed.write_config(&fs::read_to_string(file("steer.toml"))?)?;
    let kept = bed.directory.join("policies.d");
    fs::create_dir(&kept)?;
    let text = fs::read_to_string(file("policies.d/kept.toml"))?;
    fs::write(kept.join("kept.toml"), text.replace('@', bed.cgroup.path()))?;
    Ok(bed)
}

/// The values with the bed's own cgroup as in the fixture.
fn general(bed: &Bed, value: &Value) -> anyhow::Result<Value> {
    Ok(serde_json::from_str(&value.to_string().replace(bed.cgroup.path(), "@"))?)
}

/// Whether everything in a document is in another, which may have further keys. The error is the first place that is not.
fn contains(now: &Value, then: &Value, place: &str) -> Outcome {
    compare(now, then, place, false)
}

/// The same for the documents themselves or, if `shapes`, for their shapes, in which an empty list or value says nothing.
fn compare(now: &Value, then: &Value, place: &str, shapes: bool) -> Outcome {
    let says_nothing = |value: &Value| value == "nothing" || *value == json!([]);
    if shapes && (says_nothing(now) || says_nothing(then)) {
        return Ok(());
    }
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => then.iter().try_for_each(|(key, then)| {
            let now = now.get(key).with_context(|| format!("{place}.{key} is gone"))?;
            compare(now, then, &format!("{place}.{key}"), shapes)
        }),
        (Value::Array(now), Value::Array(then)) => {
            ensure!(now.len() == then.len(), "{place} has {} items, not {}", now.len(), then.len());
            let mut pairs = now.iter().zip(then).enumerate();
            pairs.try_for_each(|(at, (now, then))| compare(now, then, &format!("{place}[{at}]"), shapes))
        }
        _ => {
            ensure!(now == then, "{place} is {now}, not {then}");
            Ok(())
        }
    }
}

/// The keys of a document, and the kinds of its values. Items of a list are of one shape.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("nothing"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
        Value::Array(items) => {
            let mut all = items.iter().map(shape);
            let first = all.next();
            json!(
                first
                    .into_iter()
                    .chain(all)
                    .fold(None, |sum, next| Some(merged(sum, next)))
                    .into_iter()
                    .collect::<Vec<_>>()
            )
        }
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| (key.clone(), shape(value))).collect::<Map<_, _>>().into()
        }
    }
}

/// A shape with the keys that two have; of two kinds, the first that is something.
fn merged(sum: Option<Value>, next: Value) -> Value {
    match (sum, next) {
        (Some(Value::Object(mut sum)), Value::Object(next)) => {
            sum.retain(|key, _| next.contains_key(key));
            for (key, next) in next {
                if let Some(value) = sum.remove(&key) {
                    sum.insert(key, merged(Some(value), next));
                }
            }
            sum.into()
        }
        (Some(sum), next) if sum == "nothing" || sum == json!([]) => next,
        (Some(sum), _) => sum,
        (None, next) => next,
    }
}

fn configuration_is_read() -> Outcome {
    let bed = bed("earlier-config")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let checked = bed.run(&["check", "--config", &config])?;
    ensure!(checked.code == 0, "{checked:?}");
    // Every policy means what it meant.
    let policies = bed.succeed(&["policy", "list", "--json", "--config", &config])?;
    let policies = general(&bed, &serde_json::from_str(&policies)?)?;
    contains(&policies, &recorded("policies.json", &policies)?, "policies")?;
    let _daemon = Daemon::start(&bed)?;
    contains(&general(&bed, &bed.get("/v1/policies")?)?, &recorded("policies.json", &policies)?, "GET policies")
}

fn requests_and_answers_of_the_api() -> Outcome {
    let bed = Bed::new("earlier-api")?;
    let config = fs::read_to_string(file("steer.toml"))?;
    let without_policies = config.split("[[policy]]").next().unwrap_or_default().replace("parent = \"@/pods\"\n", "");
    let _daemon = bed.daemon(&without_policies)?;
    // What 0.1.0 answers is a valid request.
    let listed = read("policies.json")?;
    for policy in listed.as_array().context("no list")?.iter().filter(|policy| policy["name"] != "unclassified") {
        let mut body = policy.clone();
        let fields = body.as_object_mut().context("no policy")?;
        for key in ["name", "kept", "file"] {
            fields.remove(key);
        }
        let body = body.to_string().replace('@', bed.cgroup.path());
        let path = format!("/v1/policies/{}", policy["name"].as_str().context("no name")?);
        let answer = bed.ask(User::Root, "PUT", &path, Some(&body))?;
        ensure!(answer.status == 201, "{path}: {answer:?}");
        contains(&answer.body, &serde_json::from_str(&body)?, "the policy that was put")?;
    }
    // Answers are as 0.1.0 described them. They may have further fields.
    let document = recorded("openapi.json", &bed.get("/v1/openapi.json")?)?;
    let closed = "\"additionalProperties\":false";
    let document = serde_json::from_str(&document.to_string().replace(closed, "\"additionalProperties\":true"))?;
    let checked = api::check_answers(&bed, &document, "everything", ("lines", "a1"))?;
    ensure!(checked > 8, "only {checked} answers were checked");
    Ok(())
}

fn json_of_commands() -> Outcome {
    let bed = bed("earlier-json")?;
    let config = bed.config_file().to_string_lossy().into_owned();
    let cgroup = bed.cgroup.child("everything")?;
    let daemon = Daemon::start(&bed)?;
    let commands: [&[&str]; 10] = [
        &["status", "--json"],
        &["uplinks", "--json"],
        &["interfaces", "--json"],
        &["policy", "list", "--json", "--config", &config],
        &["check", "--json", "--config", &config],
        &["explain", cgroup.path(), "--json"],
        &["plan", "--json", &config],
        &["reload", "--dry-run", "--json"],
        &["top", "--json", "--count", "1", "--interval", "0.1"],
        &["off", "--json"],
    ];
    let mut shapes = Map::new();
    for command in commands {
        let ran = bed.run(command)?;
        let first = ran.stdout.trim_start().to_owned();
        let value = serde_json::Deserializer::from_str(&first).into_iter::<Value>().next();
        let value = value.with_context(|| format!("{command:?} printed nothing: {ran:?}"))?;
        let words: Vec<_> = command.iter().filter(|word| !word.starts_with('/')).copied().collect();
        shapes
            .insert(words.join(" "), shape(&general(&bed, &value.with_context(|| format!("{command:?}: {ran:?}"))?)?));
    }
    drop(daemon);
    let shapes = Value::Object(shapes);
    compare(&shapes, &recorded("shapes.json", &shapes)?, "JSON", true)
}

/// Another number is another layout of the pins. Two with the same number can share them; any version removes those of any other, once
/// its own are in force: `lifecycle::another_abi_version_in_its_place_under_load`.
fn pins_have_a_number() -> Outcome {
    let bed = bed("earlier-pins")?;
    let recorded = recorded("pins.json", &json!({"abi": steer_common::ABI_VERSION}))?;
    let then = recorded["abi"].as_u64().context("no number")?;
    ensure!(u64::from(steer_common::ABI_VERSION) >= then, "the number went back");
    bed.succeed(&["attach", bed.cgroup.path(), "-i", "a1"])?;
    // Steered by 0.1.0, or by the version before it, as far as this version can tell.
    let earlier = then.min(u64::from(steer_common::ABI_VERSION) - 1);
    fs::rename(bed.abi(), bed.pins.join(format!("abi{earlier}")))?;
    let status = bed.status()?;
    ensure!(status["other_versions"].as_array().is_some_and(|others| others.len() == 1), "{status}");
    Ok(())
}
