//! Requests to the daemon's API. The client is curl, which shares no code with the daemon.

use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use crate::{Bed, NOBODY, User, output};

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body if it is JSON, else null.
    pub body: Value,
    /// The raw body.
    pub text: String,
}

impl Bed {
    /// Sends a request to the bed's daemon. `path` may include a query.
    pub fn ask(&self, user: User, method: &str, path: &str, body: Option<&str>) -> anyhow::Result<Answer> {
        use std::os::unix::process::CommandExt as _;
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]);
        curl.arg("--unix-socket").arg(self.socket()).args(["--request", method, &format!("http://steer{path}")]);
        if let Some(body) = body {
            curl.args(["--data-binary", body]);
        }
        if user == User::Nobody {
            curl.uid(NOBODY.0).gid(NOBODY.1);
        }
        let asked = output(&mut curl)?;
        let (text, status) = asked.stdout.rsplit_once('\n').with_context(|| format!("{method} {path}: {asked:?}"))?;
        let status = status.parse().with_context(|| format!("{method} {path}: {asked:?}"))?;
        Ok(Answer { status, body: serde_json::from_str(text).unwrap_or_default(), text: text.to_owned() })
    }

    /// Reads a resource, which must exist.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.ask(User::Root, "GET", path, None)?;
        anyhow::ensure!(answer.status == 200, "GET {path}: {answer:?}");
        Ok(answer.body)
    }
}
