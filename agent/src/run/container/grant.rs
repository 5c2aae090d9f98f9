//! From what is asked to what is done, as far as the host allows it. Pure.

use super::{Asked, Error};
use crate::model::{
    config::{Config, Enforce, Ingress, Manner, Policy},
    policy::Target,
};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Whoever starts the container: `[containers]` says what may be asked for.
    Container,
    /// Whoever has set up the runtime.
    Host,
}

/// How a container is to be steered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The policy's name; an interface's, where that was asked for.
    pub name: String,
    /// What it does.
    pub target: Target,
}

/// Grants what is asked, or says why not.
pub fn decide(config: &Config, asked: &Asked, by: Asker) -> Result<Decision, Error> {
    match (&asked.policy, &asked.interface) {
        (Some(_), Some(_)) => Err(refused(asked, "both a policy and an interface; expected one of them")),
        (None, None) => Err(refused(asked, "it says how to steer, but neither by which policy nor by which interface")),
        (Some(name), None) => by_policy(config, asked, name, by),
        (None, Some(interface)) => by_interface(config, asked, interface, by),
    }
}

fn by_policy(config: &Config, asked: &Asked, name: &str, by: Asker) -> Result<Decision, Error> {
    let policies = || config.policies.iter().filter(|policy| !policy.is_closed());
    let Some(policy) = policies().find(|policy| policy.name == name) else {
        let known: Vec<_> = policies().map(|policy| policy.name.as_str()).collect();
        let known =
            if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
        return Err(refused(asked, &format!("the configuration has no policy {name:?}; {known}")));
    };
    if by == Asker::Container {
        match &config.containers.policies {
            Some(allowed) if !allowed.iter().any(|allowed| allowed == name) => {
                return Err(refused(asked, "it is not in `policies` of [containers] in the host's configuration"));
            }
            None if policy.interface.is_none() => {
                let why = "it exempts, which only a policy may do that `policies` of [containers] names";
                return Err(refused(asked, why));
            }
            _ => {}
        }
    }
    let manner = manner_of(config, asked, policy, by)?;
    Ok(Decision { name: name.to_owned(), target: Target { interface: policy.interface.clone(), manner } })
}

/// The policy's, with what the container adds.
fn manner_of(config: &Config, asked: &Asked, policy: &Policy, by: Asker) -> Result<Manner, Error> {
    let mut manner = policy.manner;
    if policy.interface.is_none() && (asked.enforce.is_some() || !asked.dns.is_empty()) {
        return Err(refused(asked, "an exemption binds no socket; expected neither steer.enforce nor steer.dns"));
    }
    if let Some(enforce) = asked.enforce {
        if by == Asker::Container && enforce < manner.enforce && enforce < config.containers.enforce {
            return Err(refused(asked, "less than the policy does, and than `enforce` of [containers] allows"));
        }
        if enforce < Enforce::Strict && manner.ingress == Ingress::Uplink {
            return Err(refused(asked, "the policy's ingress = \"uplink\" needs strict"));
        }
        manner.enforce = enforce;
    }
    if !asked.dns.is_empty() {
        if !manner.dns.is_empty() && manner.dns != asked.dns {
            return Err(refused(asked, "the policy says itself whom to ask for names; expected no steer.dns"));
        }
        manner.dns = asked.dns;
    }
    Ok(manner)
}

fn by_interface(config: &Config, asked: &Asked, interface: &str, by: Asker) -> Result<Decision, Error> {
    // "*" is every interface; an exemption is none.
    let allowed = match interface {
        "none" => config.containers.interfaces.name(interface),
        _ => config.containers.interfaces.allow(interface),
    };
    if by == Asker::Container && !allowed {
        return Err(refused(asked, "it is not in `interfaces` of [containers] in the host's configuration"));
    }
    let manner = Manner { enforce: asked.enforce.unwrap_or_default(), dns: asked.dns, ..Manner::default() };
    if by == Asker::Container && manner.enforce < config.containers.enforce {
        return Err(refused(asked, "less than `enforce` of [containers] allows"));
    }
    if interface == "none" && (asked.enforce.is_some() || !asked.dns.is_empty()) {
        return Err(refused(asked, "an exemption binds no socket; expected neither steer.enforce nor steer.dns"));
    }
    let target = Target { interface: (interface != "none").then(|| interface.to_owned()), manner };
    Ok(Decision { name: interface.to_owned(), target })
}

fn refused(asked: &Asked, why: &str) -> Error {
    let mut words = Vec::new();
    words.extend(asked.policy.as_ref().map(|name| format!("policy {name:?}")));
    words.extend(asked.interface.as_ref().map(|name| format!("interface {name:?}")));
    words.extend(
        asked.enforce.map(|level| format!("enforce {:?}", if level == Enforce::Strict { "strict" } else { "steer" })),
    );
    Error::Refused { asked: if words.is_empty() { "dns".to_owned() } else { words.join(", ") }, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Asker, decide};
    use crate::{
        model::config::{Config, Enforce, parse},
        run::container::Asked,
    };

    const POLICIES: &str = r#"
        [[policy]]
        name = "vpn"
        interface = "wg0"
        cgroups = []
        [[policy]]
        name = "loose"
        interface = "eth1"
        cgroups = []
        enforce = "steer"
        [[policy]]
        name = "direct"
        interface = "none"
        cgroups = []
    "#;

    type Case<'a> = (&'a str, &'a [(&'a str, &'a str)], Result<Option<&'a str>, &'a str>);

    fn config(containers: &str) -> Config {
        parse("f.toml", &format!("{containers}\n{POLICIES}")).expect("valid")
    }

    fn asked(annotations: &[(&str, &str)]) -> Asked {
        Asked::of(annotations.iter().copied()).expect("right").expect("something")
    }

    #[test]
    fn grants_what_the_host_allows() {
        let some = "[containers]\npolicies = [\"vpn\", \"direct\"]\ninterfaces = [\"eth0\"]\n";
        let any = "[containers]\ninterfaces = [\"*\"]\nenforce = \"steer\"\n";
        let none = "";
        // Configuration, annotations, and the uplink, or what the refusal says.
        let cases: &[Case] = &[
            (none, &[("steer.policy", "vpn")], Ok(Some("wg0"))),
            (none, &[("steer.policy", "vpm")], Err("no policy \"vpm\"; there are vpn, loose, direct")),
            (none, &[("steer.policy", "direct")], Err("it exempts")),
            (none, &[("steer.interface", "eth0")], Err("not in `interfaces`")),
            (none, &[("steer.policy", "vpn"), ("steer.interface", "eth0")], Err("both")),
            (none, &[("steer.enforce", "strict")], Err("neither by which")),
            (none, &[("steer.policy", "vpn"), ("steer.enforce", "steer")], Err("less than the policy does")),
            (none, &[("steer.policy", "loose"), ("steer.enforce", "steer")], Ok(Some("eth1"))),
            (none, &[("steer.policy", "loose"), ("steer.enforce", "strict")], Ok(Some("eth1"))),
            (some, &[("steer.policy", "direct")], Ok(None)),
            (some, &[("steer.policy", "loose")], Err("not in `policies`")),
            (some, &[("steer.interface", "eth0")], Ok(Some("eth0"))),
            (some, &[("steer.interface", "eth0"), ("steer.enforce", "steer")], Err("less than `enforce`")),
            (some, &[("steer.policy", "direct"), ("steer.dns", "10.0.0.1")], Err("an exemption")),
            (any, &[("steer.interface", "eth7"), ("steer.enforce", "steer")], Ok(Some("eth7"))),
            (any, &[("steer.interface", "none")], Err("not in `interfaces`")),
        ];
        for (containers, annotations, want) in cases {
            let decided = decide(&config(containers), &asked(annotations), Asker::Container);
            match (decided, want) {
                (Ok(decision), Ok(uplink)) => {
                    assert_eq!(decision.target.interface.as_deref(), *uplink, "{annotations:?}");
                }
                (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{annotations:?}: {error}"),
                (decided, _) => panic!("{annotations:?}: {decided:?}"),
            }
        }
    }

    #[test]
    fn the_host_may_ask_for_anything() {
        let decision = decide(&config(""), &asked(&[("steer.interface", "eth9")]), Asker::Host).expect("granted");
        assert_eq!(decision.target.manner.enforce, Enforce::Strict);
        assert!(decide(&config(""), &asked(&[("steer.policy", "direct")]), Asker::Host).is_ok());
    }

    #[test]
    fn the_closed_policy_is_nobodys() {
        let config = config("[containers]\nparent = \"/kubepods\"\n");
        let error =
            decide(&config, &asked(&[("steer.policy", "unclassified")]), Asker::Container).expect_err("refused");
        assert!(error.to_string().contains("no policy"), "{error}");
    }
}
