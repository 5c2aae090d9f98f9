//! Decides whether a container gets the policy that it requests, by `[containers]` of the host's configuration.

use thiserror::Error;

use super::reach::{overridden, refuse_reach};
use crate::model::{
    config::{Config, Policy},
    spec::{Enforce, Exceptions, Ingress, PolicySpec, Reach, Target, Uplink, annotations::Request},
    uplink::group,
};

/// Who makes the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The user who starts the container: `[containers]` limits the request.
    Container,
    /// The administrator who configured the runtime: there is no limit.
    Host,
}

/// The policy that a container gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The policy's name; the name of the interface if the request names one.
    pub name: String,
    /// The uplink, and the enforcement.
    pub target: Target,
}

/// The host does not allow the request.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the container asks for {asked}: {why}")]
pub struct Refused {
    /// The request.
    pub asked: String,
    /// The reason.
    pub why: String,
}

/// Grants a request, or returns why it is refused.
pub fn grant(config: &Config, request: &Request, by: Asker) -> Result<Grant, Refused> {
    if request.spec.interface.is_some() && request.spec.uplink.is_some() {
        return Err(refused(request, "both an interface and a group of uplinks; expected one of them"));
    }
    let mistaken = |exception| group::mistaken(&config.uplinks, exception);
    if let Some(why) = request.spec.except.iter().flat_map(Exceptions::iter).find_map(mistaken) {
        return Err(refused(request, &why));
    }
    match (&request.policy, request.spec.named_uplink()) {
        (Some(_), Some(_)) => Err(refused(request, "both a policy and an interface; expected one of them")),
        (None, None) => Err(refused(request, "it has options, but names neither a policy nor an interface")),
        (Some(name), None) => by_policy(config, request, name, by),
        (None, Some(uplink)) => by_interface(config, request, &uplink, by),
    }
}

fn by_policy(config: &Config, request: &Request, name: &str, by: Asker) -> Result<Grant, Refused> {
    let policies = || config.policies.iter().filter(|policy| !policy.is_closed());
    let Some(policy) = policies().find(|policy| policy.name == name) else {
        let known: Vec<_> = policies().map(|policy| policy.name.as_str()).collect();
        let known =
            if known.is_empty() { "there is none".to_owned() } else { format!("there are {}", known.join(", ")) };
        return Err(refused(request, &format!("the configuration has no policy {name:?}; {known}")));
    };
    if by == Asker::Container {
        let allowed = &config.containers.policies;
        if !allowed.allow(name) {
            return Err(refused(request, "it is not in `policies` of [containers] in the host's configuration"));
        }
        if policy.target.uplink == Uplink::Exempt && !allowed.name(name) {
            let why = "it exempts, which only policies named in `policies` of [containers] may do";
            return Err(refused(request, why));
        }
    }
    let target = with_options(request, policy, by)?;
    if by == Asker::Container {
        if request.spec.dns != Some(policy.target.enforcement.dns) {
            refuse_resolvers(config, request)?;
        }
        refuse_reach(config, request, &policy.target.reach)?;
    }
    Ok(Grant { name: name.to_owned(), target })
}

/// The policy's target, with the options of the request.
fn with_options(request: &Request, policy: &Policy, by: Asker) -> Result<Target, Refused> {
    refuse_options_of_an_exemption(request, &policy.target.uplink)?;
    let own = &policy.target.enforcement;
    if let Some(enforce) = request.spec.enforce {
        if by == Asker::Container && enforce < own.enforce {
            return Err(refused(request, "less than the policy does, which no container may ask for"));
        }
        if enforce < Enforce::Observe && own.ingress == Ingress::Uplink {
            return Err(refused(request, "the policy's ingress = \"uplink\" needs strict or observe"));
        }
    }
    if request.spec.dns.is_some_and(|dns| !own.dns.is_empty() && own.dns != dns) {
        return Err(refused(request, "the policy has its own resolvers; expected no steer.dns"));
    }
    let mut spec = PolicySpec { interface: None, uplink: None, ..request.spec.clone() };
    if let Some(except) = &mut spec.except {
        if let Some(inside) = overridden(&policy.target.reach.except, except) {
            return Err(refused(request, &format!("the policy decides by its own exception {inside}")));
        }
        except.fill_from(&policy.target.reach.except);
    }
    spec.fill_from(policy.target.spec());
    target(request, &spec, policy.target.uplink.clone())
}

fn by_interface(config: &Config, request: &Request, uplink: &Uplink, by: Asker) -> Result<Grant, Refused> {
    let name = uplink.to_string();
    // "*" allows every interface, but no exemption.
    let allowed = match uplink {
        Uplink::Interface(_) | Uplink::Group(_) => config.containers.interfaces.allow(&name),
        Uplink::Exempt | Uplink::Closed => config.containers.interfaces.name(&name),
    };
    if by == Asker::Container && !allowed {
        return Err(refused(request, "it is not in `interfaces` of [containers] in the host's configuration"));
    }
    if by == Asker::Container && request.spec.enforce.unwrap_or_default() < config.containers.enforce {
        return Err(refused(request, "less than `enforce` of [containers] allows"));
    }
    refuse_options_of_an_exemption(request, uplink)?;
    if by == Asker::Container {
        refuse_resolvers(config, request)?;
        refuse_reach(config, request, &Reach::NONE)?;
    }
    Ok(Grant { name, target: target(request, &request.spec, uplink.clone())? })
}

/// A resolver sees and answers all DNS requests, so the host grants each.
fn refuse_resolvers(config: &Config, request: &Request) -> Result<(), Refused> {
    let asked = request.spec.dns.unwrap_or_default();
    match asked.iter().find(|resolver| !config.containers.dns.allow(&resolver.to_string())) {
        None => Ok(()),
        Some(resolver) => {
            let why = format!("{resolver} is not in `dns` of [containers] in the host's configuration");
            Err(refused(request, &why))
        }
    }
}

fn refuse_options_of_an_exemption(request: &Request, uplink: &Uplink) -> Result<(), Refused> {
    let mut options =
        request.spec.entries().map(|(key, _)| key.name).filter(|key| !["interface", "uplink"].contains(key));
    if *uplink == Uplink::Exempt
        && let Some(option) = options.next()
    {
        return Err(refused(request, &format!("an exemption binds no socket; expected no steer.{option}")));
    }
    Ok(())
}

fn target(request: &Request, spec: &PolicySpec, uplink: Uplink) -> Result<Target, Refused> {
    spec.target(uplink).map_err(|conflicts| {
        let problems: Vec<_> = conflicts.iter().map(|conflict| conflict.problem).collect();
        refused(request, &problems.join("; "))
    })
}

pub(super) fn refused(request: &Request, why: &str) -> Refused {
    Refused { asked: request.to_string(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::{Asker, grant};
    use crate::model::{
        config::{Config, parse},
        spec::{Enforce, annotations::Request},
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

    fn request(annotations: &[(&str, &str)]) -> Request {
        Request::of(annotations.iter().copied()).expect("right").expect("something")
    }

    #[test]
    fn grants_what_the_host_allows() {
        let some = "[containers]\npolicies = [\"vpn\", \"direct\"]\ninterfaces = [\"eth0\"]\n";
        let any = "[containers]\ninterfaces = [\"*\"]\nenforce = \"steer\"\n";
        let all = "[containers]\npolicies = [\"*\"]\n";
        let resolver = "[containers]\npolicies = [\"*\"]\ndns = [\"10.0.0.1\"]\n";
        let none = "";
        // The configuration, the annotations, and the uplink or a part of the refusal.
        let cases: &[Case] = &[
            (none, &[("steer.policy", "vpn")], Err("not in `policies`")),
            (all, &[("steer.policy", "vpn")], Ok(Some("wg0"))),
            (all, &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.1")], Err("10.0.0.1 is not in `dns`")),
            (any, &[("steer.interface", "eth7"), ("steer.dns", "10.0.0.1")], Err("10.0.0.1 is not in `dns`")),
            (resolver, &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.1")], Ok(Some("wg0"))),
            (resolver, &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.2")], Err("10.0.0.2 is not in `dns`")),
            (all, &[("steer.policy", "vpm")], Err("no policy \"vpm\"; there are vpn, loose, direct")),
            (all, &[("steer.policy", "direct")], Err("it exempts")),
            (none, &[("steer.interface", "eth0")], Err("not in `interfaces`")),
            (none, &[("steer.policy", "vpn"), ("steer.interface", "eth0")], Err("both")),
            (any, &[("steer.uplink", "lines"), ("steer.interface", "eth0")], Err("both")),
            (none, &[("steer.uplink", "lines")], Err("not in `interfaces`")),
            (none, &[("steer.enforce", "strict")], Err("neither a policy")),
            (all, &[("steer.policy", "vpn"), ("steer.enforce", "steer")], Err("less than the policy does")),
            (all, &[("steer.policy", "vpn"), ("steer.enforce", "observe")], Err("less than the policy does")),
            (all, &[("steer.policy", "loose"), ("steer.enforce", "steer")], Ok(Some("eth1"))),
            (all, &[("steer.policy", "loose"), ("steer.enforce", "observe")], Ok(Some("eth1"))),
            (all, &[("steer.policy", "loose"), ("steer.enforce", "strict")], Ok(Some("eth1"))),
            (some, &[("steer.policy", "direct")], Ok(None)),
            (some, &[("steer.policy", "loose")], Err("not in `policies`")),
            (some, &[("steer.interface", "eth0")], Ok(Some("eth0"))),
            (some, &[("steer.interface", "eth0"), ("steer.enforce", "steer")], Err("less than `enforce`")),
            (some, &[("steer.policy", "direct"), ("steer.dns", "10.0.0.1")], Err("an exemption")),
            (any, &[("steer.interface", "eth7"), ("steer.enforce", "steer")], Ok(Some("eth7"))),
            (any, &[("steer.interface", "none")], Err("not in `interfaces`")),
        ];
        for (containers, annotations, want) in cases {
            let decided = grant(&config(containers), &request(annotations), Asker::Container);
            match (decided, want) {
                (Ok(decision), Ok(uplink)) => {
                    assert_eq!(decision.target.uplink.interface(), *uplink, "{annotations:?}");
                }
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{annotations:?}: {error}"),
                (decided, _) => panic!("{annotations:?}: {decided:?}"),
            }
        }
    }

    #[test]
    fn the_host_may_request_anything() {
        let decision = grant(&config(""), &request(&[("steer.interface", "eth9")]), Asker::Host).expect("granted");
        assert_eq!(decision.target.enforcement.enforce, Enforce::Strict);
        assert!(grant(&config(""), &request(&[("steer.policy", "direct")]), Asker::Host).is_ok());
    }

    #[test]
    fn the_closed_policy_cannot_be_requested() {
        let config = config("[containers]\nparent = \"/kubepods\"\n");
        let error =
            grant(&config, &request(&[("steer.policy", "unclassified")]), Asker::Container).expect_err("refused");
        assert!(error.to_string().contains("no policy"), "{error}");
    }
}
