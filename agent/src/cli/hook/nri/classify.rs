//! What becomes of a container of a pod, by what both say of themselves. Pure.

use std::collections::BTreeMap;

use crate::{
    cgroup_path::CgroupPath,
    config::Config,
    container::{Asked, Asker, Error, Fate, PREFIX, decide},
    nri::{Container, PodSandbox},
};

/// What says by what to steer. A container that says one of these says all.
const BY: [&str; 2] = ["steer.policy", "steer.interface"];

/// The fate of a container in this cgroup; none where nobody asks for one, and nobody holds it closed until it has one.
pub(super) fn fate(
    config: &Config,
    pod: &PodSandbox,
    container: &Container,
    cgroup: &CgroupPath,
) -> Result<Option<Fate>, Error> {
    let asked = if is_exempt(config, pod) { None } else { asked(pod, container)? };
    Ok(match asked {
        Some(asked) => Some(Fate::By(decide(config, &asked, Asker::Container)?)),
        None => is_held(config, cgroup).then_some(Fate::Exempt),
    })
}

/// Whether the host leaves the namespace of this pod alone, whatever its pods ask for.
pub(super) fn is_exempt(config: &Config, pod: &PodSandbox) -> bool {
    config.containers.exempt_namespaces.contains(&pod.namespace)
}

/// Whether the pod or the container asks for anything.
pub(super) fn asks(pod: &PodSandbox, container: &Container) -> bool {
    pod.annotations.keys().chain(container.annotations.keys()).any(|name| name.starts_with(PREFIX))
}

/// The container's annotations win over the pod's: one by one where they say how, as a whole where they say by what.
fn asked(pod: &PodSandbox, container: &Container) -> Result<Option<Asked>, Error> {
    let of = |annotations: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let mut annotations = of(&container.annotations);
    if !BY.iter().any(|by| annotations.contains_key(*by)) {
        for (name, value) in of(&pod.annotations) {
            annotations.entry(name).or_insert(value);
        }
    }
    Asked::of(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// Whether the cgroup is in the one that is held closed.
fn is_held(config: &Config, cgroup: &CgroupPath) -> bool {
    config.containers.parent.as_ref().is_some_and(|parent| {
        let is_parent = |outer: &CgroupPath| parent.matches(&outer.parts().collect::<Vec<_>>());
        cgroup.self_and_ancestors().iter().any(is_parent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    const CONFIG: &str = r#"
        [containers]
        interfaces = ["eth1"]
        exempt_namespaces = ["kube-system"]
        parent = "/kubepods.slice"
        [[policy]]
        name = "vpn"
        interface = "wg0"
        cgroups = []
    "#;

    fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn who_gets_what() {
        let config = parse("f.toml", CONFIG).expect("valid");
        let (held, free) = ("/kubepods.slice/pod1/c", "/system.slice/c");
        type Pairs = &'static [(&'static str, &'static str)];
        let vpn: Pairs = &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.1")];
        let eth1: Pairs = &[("steer.interface", "eth1")];
        let how: Pairs = &[("steer.dns", "10.0.0.2"), ("other", "x")];
        // Namespace, the pod's, the container's, cgroup; name and first resolver, "" for an exemption.
        let cases: [(&str, Pairs, Pairs, &str, Option<(&str, Option<&str>)>); 9] = [
            ("default", vpn, &[], free, Some(("vpn", Some("10.0.0.1")))),
            ("default", &[], eth1, free, Some(("eth1", None))),
            ("default", vpn, eth1, held, Some(("eth1", None))),
            ("default", vpn, how, free, Some(("vpn", Some("10.0.0.2")))),
            ("default", &[("other", "x")], &[], free, None),
            ("default", &[], &[], held, Some(("", None))),
            ("default", &[], &[], "/kubepods.slicer/c", None),
            ("kube-system", vpn, eth1, free, None),
            ("kube-system", vpn, &[("steer.nonsense", "")], held, Some(("", None))),
        ];
        for (namespace, pods, containers, cgroup, expected) in cases {
            let pod =
                PodSandbox { namespace: namespace.to_owned(), annotations: strings(pods), ..PodSandbox::default() };
            let container = Container { annotations: strings(containers), ..Container::default() };
            let fate = fate(&config, &pod, &container, &cgroup.parse().expect("a path")).expect("granted");
            let told = fate.as_ref().map(|fate| match fate {
                Fate::By(decision) => {
                    let dns = decision.target.manner.dns.iter().next().map(|address| address.to_string());
                    (decision.name.as_str(), dns)
                }
                Fate::Exempt => ("", None),
                Fate::Closed => panic!("nobody is closed"),
            });
            let expected = expected.map(|(name, dns)| (name, dns.map(str::to_owned)));
            assert_eq!(told, expected, "{namespace} {pods:?} {containers:?} {cgroup}");
        }
        let pod = PodSandbox { annotations: strings(&[("steer.interface", "eth2")]), ..PodSandbox::default() };
        let container = Container::default();
        assert!(asks(&pod, &container) && !asks(&PodSandbox::default(), &container));
        let refusal = fate(&config, &pod, &container, &free.parse().expect("a path")).expect_err("refused");
        assert!(refusal.to_string().contains("not in `interfaces`"), "{refusal}");
    }
}
