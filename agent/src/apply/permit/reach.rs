//! Decides whether a container gets the `local` and `except` that it requests.
//!
//! **Invariant:** a request never overrides an exception of its policy, and each word and each exception that the policy does not have
//! itself is granted by `[containers]`.

use super::grant::{Refused, refused};
use crate::model::{
    config::Config,
    spec::{Exception, Exceptions, Reach, annotations::Request},
};

/// The exception of the policy that decides about a destination of the request, and decides otherwise.
pub(super) fn overridden<'p>(own: &'p Exceptions, asked: &Exceptions) -> Option<&'p Exception> {
    asked.iter().find_map(|asked| own.deciding(&asked.to).filter(|own| own.by != asked.by))
}

/// What goes past the uplink leaves the policy, so the host grants each word and each exception that the policy does not have itself.
pub(super) fn refuse_reach(config: &Config, request: &Request, own: &Reach) -> Result<(), Refused> {
    let allowed = &config.containers;
    let mut words = request.spec.local.unwrap_or_default().words();
    let word = words.find(|word| !own.local.has(*word) && !allowed.local.allow_word(*word));
    if let Some(word) = word {
        return Err(refused(request, &format!("{word} is not in `local` of [containers] in the host's configuration")));
    }
    let asked = request.spec.except.clone().unwrap_or_default();
    let has = |wanted: &Exception| own.except.deciding(&wanted.to).is_some_and(|own| own.by == wanted.by);
    match asked.iter().find(|wanted| !has(wanted) && !allowed.except.allow_exception(wanted)) {
        None => Ok(()),
        Some(wanted) => {
            let why = format!("{wanted} is not in `except` of [containers] in the host's configuration");
            Err(refused(request, &why))
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        apply::permit::{Asker, grant},
        model::{
            config::{Config, parse},
            spec::annotations::Request,
        },
    };

    const POLICIES: &str = r#"
        [[policy]]
        name = "vpn"
        interface = "wg0"
        cgroups = []
        [[policy]]
        name = "direct"
        interface = "none"
        cgroups = []
        [[policy]]
        name = "near"
        interface = "wg0"
        cgroups = []
        local = ["host"]
        except = [{ to = "10.0.0.0/8", by = "refuse" }, { to = "192.0.2.0/24", by = "eth0" }]
        [[uplink]]
        name = "lines"
        members = ["eth1"]
    "#;

    /// The words and exceptions of a target, or a part of the refusal.
    type Want<'a> = Result<(&'a str, &'a str), &'a str>;
    type Case<'a> = (&'a str, [(&'a str, &'a str); 2], Want<'a>);

    fn config(containers: &str) -> Config {
        parse("f.toml", &format!("{containers}\n{POLICIES}")).expect("valid")
    }

    fn request(annotations: &[(&str, &str)]) -> Request {
        Request::of(annotations.iter().copied()).expect("right").expect("something")
    }

    #[test]
    fn grants_reach_word_by_word() {
        let all = "[containers]\npolicies = [\"*\"]\ninterfaces = [\"*\"]\n";
        let lan = &format!("{all}local = [\"lan\"]\nexcept = [\"198.51.100.0/24=eth0\", \"10.0.0.0/8=eth0\"]\n");
        let any = &format!("{all}local = [\"*\"]\nexcept = [\"*\"]\n");
        let (vpn, near, eth0) = (("steer.policy", "vpn"), ("steer.policy", "near"), ("steer.interface", "eth0"));
        let own = "10.0.0.0/8=refuse 192.0.2.0/24=eth0";
        // The configuration, the annotations, and the words and exceptions of the target, or a part of the refusal.
        let cases: &[Case] = &[
            (all, [vpn, ("steer.local", "host")], Err("host is not in `local`")),
            (all, [eth0, ("steer.local", "host")], Err("host is not in `local`")),
            (all, [near, ("steer.local", "host")], Ok(("host", own))),
            (all, [near, ("steer.local", "host,lan")], Err("lan is not in `local`")),
            (lan, [near, ("steer.local", "lan,host")], Ok(("host lan", own))),
            (lan, [near, ("steer.local", "lan")], Ok(("lan", own))),
            (
                any,
                [vpn, ("steer.except", "198.51.100.0/24=lines")],
                Err("which is an [[uplink]]; expected one interface"),
            ),
            (lan, [vpn, ("steer.local", "lan,discovery")], Err("discovery is not in `local`")),
            (any, [eth0, ("steer.local", "discovery")], Ok(("discovery", ""))),
            (all, [vpn, ("steer.except", "198.51.100.128/25=eth0")], Err("198.51.100.128/25=eth0 is not in `except`")),
            (
                all,
                [eth0, ("steer.except", "198.51.100.128/25=refuse")],
                Err("198.51.100.128/25=refuse is not in `except`"),
            ),
            (lan, [vpn, ("steer.except", "198.51.100.128/25=eth0")], Ok(("", "198.51.100.128/25=eth0"))),
            (lan, [vpn, ("steer.except", "198.51.100.128/25=main")], Err("198.51.100.128/25=main is not in `except`")),
            (all, [near, ("steer.except", "192.0.2.0/24=eth0")], Ok(("host", own))),
            (any, [near, ("steer.except", "192.0.2.0/24=main")], Err("its own exception 192.0.2.0/24=eth0")),
            (any, [near, ("steer.except", "10.1.0.0/16=eth0")], Err("its own exception 10.0.0.0/8=refuse")),
            (
                any,
                [near, ("steer.except", "198.51.100.128/25=main")],
                Ok(("host", "10.0.0.0/8=refuse 192.0.2.0/24=eth0 198.51.100.128/25=main")),
            ),
            (any, [("steer.policy", "direct"), ("steer.local", "host")], Err("it exempts")),
        ];
        for (containers, annotations, want) in cases {
            let decided = grant(&config(containers), &request(annotations), Asker::Container);
            match (decided, want) {
                (Ok(decision), Ok((words, exceptions))) => {
                    let reach = decision.target.reach;
                    let local: Vec<_> = reach.local.words().map(|word| word.to_string()).collect();
                    let except: Vec<_> = reach.except.iter().map(ToString::to_string).collect();
                    assert_eq!(
                        (local.join(" ").as_str(), except.join(" ").as_str()),
                        (*words, *exceptions),
                        "{annotations:?}"
                    );
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{annotations:?}: {error}"),
                (decided, _) => panic!("{annotations:?}: {decided:?}"),
            }
        }
        let host = grant(&config(all), &request(&[vpn, ("steer.local", "host")]), Asker::Host).expect("granted");
        assert!(host.target.reach.local.host);
    }

    #[test]
    fn defaults_are_for_policies_not_for_interfaces() {
        let text = "[defaults]\nlocal = [\"host\"]\n[containers]\npolicies = [\"*\"]\ninterfaces = [\"*\"]\n";
        let reach =
            |annotation| grant(&config(text), &request(&[annotation]), Asker::Container).expect("granted").target.reach;
        assert!(reach(("steer.policy", "vpn")).local.host);
        assert!(reach(("steer.interface", "eth0")).is_none(), "the host grants it, or nobody");
    }
}
