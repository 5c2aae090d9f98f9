//! HTTP targets: a URL and the answer that proves the line.
//!
//! A captive portal answers in place of the target: by a redirect, or by a page of its own with status 200. So by default
//! an `http` target must answer with 204, which a page cannot, and an `https` target with any status from 200 to 299,
//! because its certificate proves who answers. Redirects are never followed, and are never an answer.
//!
//! **Invariant:** a URL has a host, a port and a path that starts with a slash, and nothing that is not sent.

use std::{fmt, net::IpAddr};

use hyper::{StatusCode, Uri};

use super::target::{address, one_host};

const STATUS: &str = "status=";
const BODY: &str = "body=";
/// The longest name in DNS.
const NAME_BYTES: usize = 253;
const LABEL_BYTES: usize = 63;

/// The host of a URL.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, in lower case. It is resolved by the member's own `dns`, and by nothing else: a name that another line
    /// resolved would say nothing about this one. Without `dns` of the family, the target is not asked.
    Name(String),
}

/// The answer that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Expect {
    /// This status. Without it: with `body` or by `https`, 200 to 299; else 204.
    pub status: Option<u16>,
    /// The body contains this text, within its first 64 KiB.
    pub body: Option<String>,
}

/// An `http` or `https` target.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    /// Whether it is `https`.
    pub is_secure: bool,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// Path and query.
    pub path: String,
    /// The answer that counts.
    pub expect: Expect,
}

impl Url {
    /// Reads a URL, then `status=` and `body=` if they are there. `None`: it is neither `http` nor `https`.
    pub(super) fn parse(text: &str) -> Option<Result<Self, String>> {
        let scheme = text.split_once("://")?.0.to_ascii_lowercase();
        let is_secure = match scheme.as_str() {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let (url, rest) = text.split_once(' ').unwrap_or((text, ""));
        let read = Self::parse_url(is_secure, url);
        Some(read.and_then(|url| Ok(Self { expect: Expect::parse(rest.trim())?, ..url })))
    }

    fn parse_url(is_secure: bool, text: &str) -> Result<Self, String> {
        let scheme = if is_secure { "https" } else { "http" };
        let expected =
            || format!("expected \"{scheme}://192.0.2.1/path\", \"{scheme}://[2001:db8::1]/path\" or a host name");
        if text.contains('#') {
            return Err("expected a URL without a fragment: servers do not see it".to_owned());
        }
        let uri = text.parse::<Uri>().map_err(|_invalid| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        if authority.as_str().contains('@') {
            return Err("expected a URL without a user and a password".to_owned());
        }
        let host = match address(authority.host()) {
            // Without brackets, an IPv6 address cannot be told from a port.
            Some(IpAddr::V6(_)) if !authority.host().starts_with('[') => return Err(expected()),
            Some(address) => Host::Address(one_host(address)?),
            None => Host::Name(name(authority.host()).ok_or_else(|| {
                if authority.host().is_empty() {
                    expected()
                } else {
                    format!("{:?} is no host name; {}", authority.host(), expected())
                }
            })?),
        };
        if host == Host::Name("localhost".to_owned()) {
            return Err("localhost is this host, and says nothing about a line; expected a host behind it".to_owned());
        }
        let port = match authority.as_str().rsplit_once(':').filter(|_| authority.port().is_some()) {
            Some(_) => authority.port_u16().filter(|port| *port != 0).ok_or("0 is not a port; expected 1 to 65535")?,
            None => default_port(is_secure),
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Ok(Self { is_secure, host, port, path, expect: Expect::default() })
    }

    /// As in the header `Host`.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]"),
            Host::Address(IpAddr::V4(address)) => address.to_string(),
            Host::Name(name) => name.clone(),
        };
        if self.port == default_port(self.is_secure) { host } else { format!("{host}:{}", self.port) }
    }

    /// Whether this status counts.
    pub fn accepts(&self, status: u16) -> bool {
        match self.expect.status {
            Some(expected) => status == expected,
            None if self.is_secure || self.expect.body.is_some() => (200..300).contains(&status),
            None => status == StatusCode::NO_CONTENT.as_u16(),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_secure { "https" } else { "http" };
        write!(formatter, "{scheme}://{}{}", self.authority(), self.path)?;
        if let Some(status) = self.expect.status {
            write!(formatter, " {STATUS}{status}")?;
        }
        if let Some(body) = &self.expect.body {
            write!(formatter, " {BODY}{body}")?;
        }
        Ok(())
    }
}

impl Expect {
    /// Reads `status=CODE` and `body=TEXT`, in this order. The text ends the line.
    fn parse(text: &str) -> Result<Self, String> {
        let mut expect = Self::default();
        let mut rest = text;
        if let Some(behind) = rest.strip_prefix(STATUS) {
            let (status, behind) = behind.split_once(' ').unwrap_or((behind, ""));
            let status = status.parse().ok().filter(|status| (200..600).contains(status));
            let status = status.ok_or("expected a status from 200 to 599, as in \"status=200\"")?;
            if (300..400).contains(&status) {
                return Err(format!(
                    "{status} is a redirect, which captive portals send, too; expected another status"
                ));
            }
            (expect.status, rest) = (Some(status), behind.trim_start());
        }
        if let Some(body) = rest.strip_prefix(BODY) {
            if body.is_empty() || body.contains(char::is_control) {
                return Err("expected \"body=TEXT\", a part of the body in one line".to_owned());
            }
            (expect.body, rest) = (Some(body.to_owned()), "");
        }
        if rest.is_empty() {
            return Ok(expect);
        }
        Err(format!("expected \"status=200\", \"body=TEXT\" or both behind the URL, and not {rest:?}"))
    }
}

fn default_port(is_secure: bool) -> u16 {
    if is_secure { 443 } else { 80 }
}

/// A host name in lower case; `None`: DNS has no such name.
fn name(text: &str) -> Option<String> {
    let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        (1..=LABEL_BYTES).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // The last label of a name is no number: such a host is a misspelled address.
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let last_is_word = text.rsplit('.').next().is_some_and(|label| !is_number(label));
    (text.len() <= NAME_BYTES && last_is_word && text.split('.').all(is_label)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::super::Target;

    #[test]
    fn what_counts_as_an_answer() {
        for (text, statuses) in [
            ("http://192.0.2.1/", [false, true, false, false]),
            ("http://192.0.2.1/ body=ok", [true, true, false, false]),
            ("http://192.0.2.1/ status=404", [false, false, false, true]),
            ("https://192.0.2.1/", [true, true, false, false]),
            ("https://192.0.2.1/ status=200 body=ok", [true, false, false, false]),
        ] {
            let Ok(Target::Http(url)) = Target::parse(text) else { panic!("{text}") };
            assert_eq!([200, 204, 302, 404].map(|status| url.accepts(status)), statuses, "{text}");
        }
    }

    #[test]
    fn a_misspelled_address_is_no_name() {
        for text in ["http://192.0.2.300/", "http://192.0.2/", "http://-a.example/", "http://a..example/"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
