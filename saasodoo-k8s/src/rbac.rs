//! What the service account must be allowed to do: the list that the health check asks the server about, and the roles
//! that grant exactly that.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::config::{KubernetesConfig, Routing};
use crate::route::kind as route_kind;
use crate::wire::{
    CLAIM, DEPLOYMENT, EVENT, Kind, NAMESPACE, NETWORK_POLICY, POD, SECRET, SERVICE, STORAGE_CLASS, VOLUME,
};

/// One thing that the service account must be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Permission {
    /// The API group; empty for the core one.
    pub group: &'static str,
    /// The resource, with its subresource after a slash.
    pub resource: String,
    /// The verb.
    pub verb: &'static str,
    /// Whether it is about the whole cluster and not the namespace.
    pub cluster: bool,
    /// False when everything works without it, with less certainty or less cleaning up.
    pub required: bool,
    /// What it is for.
    pub purpose: &'static str,
}

/// Everything that a service account must be allowed to do under this configuration.
#[must_use]
pub fn permissions(config: &KubernetesConfig) -> Vec<Permission> {
    let mut all = Vec::new();
    let mut add = |kind: &Kind, sub: &str, verbs: &[&'static str], required: bool, purpose: &'static str| {
        for verb in verbs {
            all.push(Permission {
                group: kind.group,
                resource: format!("{}{sub}", kind.plural),
                verb,
                cluster: !kind.namespaced,
                required,
                purpose,
            });
        }
    };
    let own = &["get", "list", "create", "patch", "delete"];
    add(&DEPLOYMENT, "", own, true, "the workload");
    add(&DEPLOYMENT, "", &["watch"], true, "watching");
    add(
        &DEPLOYMENT,
        "/finalizers",
        &["update"],
        false,
        "seeing a deletion through, where owner references are checked",
    );
    add(&POD, "", &["get", "list", "watch"], true, "the status");
    add(&POD, "/log", &["get"], true, "logs");
    add(&EVENT, "", &["list"], false, "saying why a volume is not mounted");
    add(
        &CLAIM,
        "",
        &["get", "list", "watch", "create", "patch", "delete"],
        true,
        "the data",
    );
    add(&SECRET, "", &["get", "create", "delete"], true, "passwords");
    add(
        &SERVICE,
        "",
        &["get", "create", "delete"],
        true,
        "the address inside the cluster",
    );
    if let Some(kind) = route_kind(config) {
        add(&kind, "", own, true, "the hosts");
    }
    if config.network_policy.is_some() {
        add(
            &NETWORK_POLICY,
            "",
            &["get", "create", "delete"],
            true,
            "who may connect",
        );
    }
    let adoption = config.adoption.is_some();
    if adoption {
        add(&VOLUME, "", &["create", "delete"], true, "adopting directories");
    }
    add(
        &VOLUME,
        "",
        &["get", "patch"],
        adoption,
        "purging data whose class retains volumes",
    );
    add(
        &STORAGE_CLASS,
        "",
        &["get"],
        false,
        "noticing a missing storage class before anything is made",
    );
    add(&NAMESPACE, "", &["get"], false, "noticing a missing namespace");
    all
}

/// The roles and bindings that grant exactly [`permissions`] to a service account, as YAML for `kubectl apply`.
///
/// ```
/// use saasodoo_core::Config;
/// use saasodoo_k8s::{KubernetesConfig, rbac_yaml};
///
/// let yaml = rbac_yaml(&KubernetesConfig::new(Config::default()), "instance-service");
/// assert!(yaml.contains("kind: Role\n"));
/// assert!(yaml.contains("name: \"instance-service\""));
/// ```
#[must_use]
pub fn rbac_yaml(config: &KubernetesConfig, service_account: &str) -> String {
    let namespace = config.common.namespace.as_str();
    let cluster_name = format!("saasodoo-{namespace}");
    let mut yaml = String::new();
    let _ = writeln!(
        yaml,
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {}\n  namespace: {}",
        quoted(service_account),
        quoted(namespace)
    );
    for (kind, name, cluster) in [
        ("Role", "saasodoo", false),
        ("ClusterRole", cluster_name.as_str(), true),
    ] {
        let scope = if cluster {
            String::new()
        } else {
            format!("\n  namespace: {}", quoted(namespace))
        };
        let _ = write!(
            yaml,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\nmetadata:\n  name: {}{scope}\nrules:\n",
            quoted(name)
        );
        for ((group, resource), verbs) in rules(config, cluster) {
            let verbs: Vec<String> = verbs.iter().map(|verb| quoted(verb)).collect();
            let _ = writeln!(
                yaml,
                "- apiGroups: [{}]\n  resources: [{}]\n  verbs: [{}]",
                quoted(group),
                quoted(&resource),
                verbs.join(", ")
            );
        }
        let _ = writeln!(
            yaml,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\nmetadata:\n  name: {}{scope}\n\
             roleRef:\n  apiGroup: rbac.authorization.k8s.io\n  kind: {kind}\n  name: {}\nsubjects:\n\
             - kind: ServiceAccount\n  name: {}\n  namespace: {}",
            quoted(name),
            quoted(name),
            quoted(service_account),
            quoted(namespace)
        );
    }
    yaml
}

/// The rules of one role: verbs by group and resource.
fn rules(config: &KubernetesConfig, cluster: bool) -> BTreeMap<(&'static str, String), Vec<&'static str>> {
    let mut rules: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for permission in permissions(config)
        .into_iter()
        .filter(|permission| permission.cluster == cluster)
    {
        let verbs = rules.entry((permission.group, permission.resource)).or_default();
        if !verbs.contains(&permission.verb) {
            verbs.push(permission.verb);
        }
    }
    rules
}

/// A text that YAML takes for a text: JSON's quotes are YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The custom resources that the configuration needs.
pub(crate) fn custom_kind(config: &KubernetesConfig) -> Option<Kind> {
    match config.routing {
        Routing::Traefik { .. } => route_kind(config),
        Routing::Ingress { .. } | Routing::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdoptionSource, NetworkPolicy};

    #[test]
    fn the_roles_grant_what_is_asked_about_and_nothing_more() {
        let mut config = KubernetesConfig::new(saasodoo_core::Config::default());
        for change in 0..4 {
            match change {
                1 => config.routing = Routing::None,
                2 => config.network_policy = Some(NetworkPolicy::default()),
                3 => {
                    config.adoption = Some(AdoptionSource::HostPath {
                        root: "/mnt".to_owned(),
                    })
                }
                _ => {}
            }
            let mut granted = Vec::new();
            for cluster in [false, true] {
                for ((group, resource), verbs) in rules(&config, cluster) {
                    granted.extend(verbs.into_iter().map(|verb| (group, resource.clone(), verb, cluster)));
                }
            }
            let mut wanted: Vec<_> = permissions(&config)
                .into_iter()
                .map(|p| (p.group, p.resource, p.verb, p.cluster))
                .collect();
            granted.sort();
            wanted.sort();
            wanted.dedup();
            assert_eq!(granted, wanted);
            let yaml = rbac_yaml(&config, "instance-service");
            for (_, resource, _, _) in &wanted {
                assert!(yaml.contains(&format!("\"{resource}\"")), "{resource}");
            }
            assert!(!yaml.contains('*'), "nothing is granted wholesale");
        }
    }

    #[test]
    fn secrets_are_not_listed() {
        let config = KubernetesConfig::new(saasodoo_core::Config::default());
        let secrets: Vec<_> = permissions(&config)
            .into_iter()
            .filter(|p| p.resource == "secrets")
            .collect();
        assert!(secrets.iter().all(|p| !matches!(p.verb, "list" | "watch")));
    }
}
