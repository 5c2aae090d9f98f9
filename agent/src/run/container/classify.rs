//! The request of a container of a pod, from the annotations of both. Pure.

use std::collections::BTreeMap;

use crate::{
    model::{
        config::Config,
        spec::annotations::{self, Invalid, Request},
    },
    run::container::nri::{Container, PodSandbox},
};

/// The annotations that choose the policy. If a container has one of them, all annotations of its pod are ignored.
const BY: [&str; 2] = ["steer.policy", "steer.interface"];

/// The request of a container. `None` if the host exempts its namespace, or if there is no request. A container's annotations
/// override those of its pod: all of them if it chooses the policy, otherwise one by one.
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

/// Whether the host exempts the namespace of this pod, whatever its pods ask for.
pub(super) fn is_exempt(config: &Config, pod: &PodSandbox) -> bool {
    config.containers.exempt_namespaces.contains(&pod.namespace)
}

/// Whether the pod or the container has a request, valid or not.
pub(super) fn asks(pod: &PodSandbox, container: &Container) -> bool {
    of_steer(&pod.annotations).chain(of_steer(&container.annotations)).next().is_some()
}

fn of_steer(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (&str, &str)> {
    let all = annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| annotations::is_ours(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::parse;

    type Pairs = &'static [(&'static str, &'static str)];
    /// Policy, interface, resolver.
    type Expected = Option<[Option<&'static str>; 3]>;

    fn strings(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn of(namespace: &str, pods: Pairs, containers: Pairs) -> (PodSandbox, Container) {
        let pod = PodSandbox { namespace: namespace.to_owned(), annotations: strings(pods), ..PodSandbox::default() };
        (pod, Container { annotations: strings(containers), ..Container::default() })
    }

    #[test]
    fn annotations_of_a_container_override_those_of_its_pod() {
        let config = parse("f.toml", "[containers]\nexempt_namespaces = [\"kube-system\"]\n").expect("valid");
        let vpn: Pairs = &[("steer.policy", "vpn"), ("steer.dns", "10.0.0.1")];
        let eth1: Pairs = &[("steer.interface", "eth1")];
        let how: Pairs = &[("steer.dns", "10.0.0.2"), ("other", "x")];
        // Namespace, the annotations of the pod, those of the container.
        let cases: [(&str, Pairs, Pairs, Expected); 7] = [
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
            let actual = asked.as_ref().map(|asked| {
                let interface = asked.spec.interface.as_ref().and_then(|uplink| uplink.interface());
                [asked.policy.as_deref(), interface, dns.as_deref()]
            });
            assert_eq!(actual, expected, "{namespace} {pods:?} {containers:?}");
        }
        let (pod, container) = of("default", &[], &[("steer.nonsense", "")]);
        assert!(asked(&config, &pod, &container).is_err() && asks(&pod, &container));
        assert!(!asks(&pod, &Container::default()));
        let (pod, container) = of("default", &[("steer.example.com/team", "x")], &[]);
        assert!(!asks(&pod, &container));
    }
}
