//! Traefik's labels on a service, to and from host names.

use std::collections::BTreeMap;

use saasodoo_core::Host;

use crate::config::SwarmConfig;

/// Odoo's own port, and that of its websocket.
pub(crate) const HTTP_PORT: u16 = 8069;
const WEBSOCKET_PORT: u16 = 8072;

/// The labels that route these hosts to the service. The first four are today's, in its words; the others are the
/// websocket's, and those that the configuration asks for.
pub(crate) fn labels(service: &str, hosts: &[Host], config: &SwarmConfig) -> BTreeMap<String, String> {
    let websocket = format!("{service}-ws");
    let mut labels = BTreeMap::from([("traefik.enable".to_owned(), "true".to_owned())]);
    for (router, rule, port) in [
        (service, http_rule(hosts), HTTP_PORT),
        (websocket.as_str(), websocket_rule(hosts), WEBSOCKET_PORT),
    ] {
        labels.insert(format!("traefik.http.routers.{router}.rule"), rule);
        labels.insert(format!("traefik.http.routers.{router}.service"), router.to_owned());
        labels.insert(
            format!("traefik.http.services.{router}.loadbalancer.server.port"),
            port.to_string(),
        );
        if !config.entry_points.is_empty() {
            labels.insert(
                format!("traefik.http.routers.{router}.entrypoints"),
                config.entry_points.join(","),
            );
        }
        if let Some(resolver) = &config.cert_resolver {
            labels.insert(
                format!("traefik.http.routers.{router}.tls.certresolver"),
                resolver.clone(),
            );
        }
    }
    labels
}

/// The new value of a router's rule when the hosts change; what the rule demands beside the hosts stays.
pub(crate) fn reroute(label: &str, hosts: &[Host]) -> Option<String> {
    let router = label.strip_prefix("traefik.http.routers.")?.strip_suffix(".rule")?;
    Some(if router.ends_with("-ws") {
        websocket_rule(hosts)
    } else {
        http_rule(hosts)
    })
}

fn http_rule(hosts: &[Host]) -> String {
    let rules: Vec<String> = hosts.iter().map(|host| format!("Host(`{host}`)")).collect();
    rules.join(" || ")
}

fn websocket_rule(hosts: &[Host]) -> String {
    format!(
        "({}) && (PathPrefix(`/websocket`) || PathPrefix(`/longpolling`))",
        http_rule(hosts)
    )
}

/// The texts in the `Host(…)` matchers of a rule, in order, each once: ``Host(`a`)``, ``Host("a")`` and ``Host(`a`, `b`)``.
pub(crate) fn hosts(rule: &str) -> Vec<String> {
    let mut hosts: Vec<String> = Vec::new();
    let mut rest = rule;
    while let Some(start) = rest.find("Host(") {
        let before = &rest[..start];
        rest = &rest[start + "Host(".len()..];
        let Some(end) = rest.find(')') else { break };
        // `HostRegexp(` and `HostSNI(` do not match here; a longer name that ends with it does.
        if before.ends_with(|c: char| c.is_ascii_alphanumeric()) {
            continue;
        }
        for host in rest[..end].split(',') {
            let host = host.trim().trim_matches(['`', '"']);
            if !host.is_empty() && !hosts.iter().any(|seen| seen == host) {
                hosts.push(host.to_owned());
            }
        }
        rest = &rest[end..];
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rules_are_read_in_all_their_forms() {
        for (rule, expected) in [
            ("Host(`acme.saasodoo.local`)", vec!["acme.saasodoo.local"]),
            ("Host(`a.b`) || Host(`c.d`)", vec!["a.b", "c.d"]),
            ("Host(`a.b`,`c.d`)", vec!["a.b", "c.d"]),
            ("(Host(\"a.b\") || Host(`a.b`)) && PathPrefix(`/x`)", vec!["a.b"]),
            ("HostRegexp(`{x:.*}`)", vec![]),
            ("PathPrefix(`/x`)", vec![]),
            ("Host(`a.b", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(hosts(rule), expected, "{rule}");
        }
    }

    #[test]
    fn todays_labels_are_among_ours() {
        let config = SwarmConfig::new(saasodoo_core::Config::default());
        let host = "acme.saasodoo.local".parse().expect("a host");
        let labels = labels("odoo-acme-0a1b2c3d", &[host], &config);
        for (key, value) in [
            ("traefik.enable", "true"),
            ("traefik.http.routers.odoo-acme-0a1b2c3d.rule", "Host(`acme.saasodoo.local`)"),
            ("traefik.http.routers.odoo-acme-0a1b2c3d.service", "odoo-acme-0a1b2c3d"),
            (
                "traefik.http.services.odoo-acme-0a1b2c3d.loadbalancer.server.port",
                "8069",
            ),
        ] {
            assert_eq!(labels.get(key).map(String::as_str), Some(value), "{key}");
        }
        let websocket = &labels["traefik.http.routers.odoo-acme-0a1b2c3d-ws.rule"];
        assert!(websocket.contains("PathPrefix(`/websocket`)"), "{websocket}");
        assert_eq!(
            labels["traefik.http.services.odoo-acme-0a1b2c3d-ws.loadbalancer.server.port"],
            "8072"
        );
    }

    proptest! {
        #[test]
        fn hosts_survive_their_rule(names in proptest::collection::hash_set("[a-z]{1,8}\\.[a-z]{2,5}", 1..5)) {
            let given: Vec<Host> = names.iter().map(|name| name.parse().expect("a host")).collect();
            let texts: Vec<String> = given.iter().map(ToString::to_string).collect();
            prop_assert_eq!(hosts(&http_rule(&given)), texts.clone());
            prop_assert_eq!(hosts(&websocket_rule(&given)), texts);
        }

        #[test]
        fn no_rule_panics(rule in "\\PC{0,80}|(Host\\(|`|,|\\)|a){0,20}") {
            let _ = hosts(&rule);
        }
    }
}
