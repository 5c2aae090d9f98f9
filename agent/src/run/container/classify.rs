//! What a container of a pod asks for, by what both say of themselves. Pure.

use std::collections::BTreeMap;

use crate::{
    model::{
        config::Config,
        spec::annotations::{Invalid, PREFIX, Request},
    },
    run::container::nri::{Container, PodSandbox},
};

/// What says by what to steer. A container that says one of these says all.
const BY: [&str; 2] = ["steer.policy", "steer.interface"];

/// What is asked for a container; nothing where the host leaves its namespace alone. The container's annotations win
/// over the pod's: one by one where they say how, as a whole where they say by what.
pub(super) fn asked(config: &Config, pod: &PodSandbox, container: &Container) -> Result<Option<Request>, Invalid> {
    if is_exempt(config, pod) {
        return Ok(None);
    }
    let mut annotations: BTreeMap<&str, &str> = of_steer(&container.annotations).collect();
    if !BY.iter().any(|by| annotations.contains_key(by)) {
        for (name, value) in of_steer(&pod.annotations) {
            annotations.entry(name).or_insert(value);
        }
    }
    Request::of(annotations)
}

/// Whether the host leaves the namespace of this pod alone, whatever its pods ask for.
pub(super) fn is_exempt(config: &Config, pod: &PodSandbox) -> bool {
    config.containers.exempt_namespaces.contains(&pod.namespace)
}

/// Whether the pod or the container asks for anything, be it right or wrong.
pub(super) fn asks(pod: &PodSandbox, container: &Container) -> bool {
    of_steer(&pod.annotations).chain(of_steer(&container.annotations)).next().is_some()
}

fn of_steer(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let all = annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| name.starts_with(PREFIX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::parse;

    type Pairs = &'static [(&'static str, &'static str)];
    /// Policy, interface, resolver.
    type Told = Option<[Option<&'static str>; 3]>;

    fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(namespace: &str, pods: Pairs, containers: Pairs) -> (PodSandbox, Container) {
        let pod = PodSandbox { namespace: namespace.to_owned(), annotations: strings(pods), ..PodSandbox::default() };
        (pod, Container { annotations: strings(containers), ..Container::default() })
    }

    #[test]
    fn who_asks_for_what() {
        let config = parse("f.toml", "[containers]\nexempt_namespaces = [\"kube-system\"]\n").expect("valid");
        let vpn: Pairs = &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.1")];
        let eth1: Pairs = &[("steer.interface", "eth1")];
        let how: Pairs = &[("steer.dns", "10.0.0.2"), ("other", "x")];
        // Namespace, the pod's, the container's.
        let cases: [(&str, Pairs, Pairs, Told); 7] = [
            ("default", vpn, &[], Some([Some("vpn"), None, Some("10.0.0.1")])),
            ("default", &[], eth1, Some([None, Some("eth1"), None])),
            ("default", vpn, eth1, Some([None, Some("eth1"), None])),
            ("default", vpn, how, Some([Some("vpn"), None, Some("10.0.0.2")])),
            ("default", &[("other", "x")], &[("steering", "y")], None),
            ("kube-system", vpn, eth1, None),
            ("kube-system", &[], &[("steer.nonsense", "")], None),
        ];
        for (namespace, pods, containers, expected) in cases {
            let (pod, container) = of(namespace, pods, containers);
            let asked = asked(&config, &pod, &container).expect("right");
            let dns = asked.as_ref().and_then(|asked| asked.spec.texts("dns")?.first().cloned());
            let told = asked.as_ref().map(|asked| {
                let interface = asked.spec.interface.as_ref().and_then(|uplink| uplink.interface());
                [asked.policy.as_deref(), interface, dns.as_deref()]
            });
            assert_eq!(told, expected, "{namespace} {pods:?} {containers:?}");
        }
        let (pod, container) = of("default", &[], &[("steer.nonsense", "")]);
        assert!(asked(&config, &pod, &container).is_err() && asks(&pod, &container));
        assert!(!asks(&pod, &Container::default()));
    }
}
