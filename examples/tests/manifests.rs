//! The sample role against what the Kubernetes backend asks for.

use std::collections::BTreeSet;

use saasodoo_core::Config;
use saasodoo_k8s::{KubernetesConfig, permissions};

const ROLES: &str = include_str!("../manifests/service-account.yaml");

/// The words of a list in brackets, in the style in which the file is written.
fn words(line: &str, key: &str) -> Option<Vec<String>> {
    let list = line
        .trim()
        .trim_start_matches("- ")
        .strip_prefix(key)?
        .trim()
        .strip_prefix('[')?
        .strip_suffix(']')?;
    Some(list.split(',').map(|word| word.trim().replace('"', "")).collect())
}

#[test]
fn the_sample_roles_grant_exactly_what_is_used() {
    let mut granted = BTreeSet::new();
    let (mut cluster, mut groups, mut resources) = (false, Vec::new(), Vec::new());
    for line in ROLES.lines() {
        match line {
            "kind: Role" => cluster = false,
            "kind: ClusterRole" => cluster = true,
            _ => {}
        }
        if let Some(found) = words(line, "apiGroups:") {
            groups = found;
        } else if let Some(found) = words(line, "resources:") {
            resources = found;
        } else if let Some(verbs) = words(line, "verbs:") {
            for verb in verbs {
                granted.insert((cluster, groups.join(","), resources.join(","), verb));
            }
        }
    }
    let wanted: BTreeSet<_> = permissions(&KubernetesConfig::new(Config::default()))
        .into_iter()
        .map(|p| (p.cluster, p.group.to_owned(), p.resource, p.verb.to_owned()))
        .collect();
    assert!(wanted.len() > 20, "{wanted:?}");
    assert_eq!(granted, wanted);
}
