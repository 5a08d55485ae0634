//! Traefik's labels on a service, to and from host names.

use std::collections::BTreeMap;

use saasodoo_core::{Error, Host, Result};

use crate::config::SwarmConfig;

/// Odoo's own port, and that of its websocket.
pub(crate) const HTTP_PORT: u16 = 8069;
const WEBSOCKET_PORT: u16 = 8072;

/// The labels that route these hosts to the service. The first four are today's, in its words; the others are the
/// websocket's, and those that the configuration asks for.
pub(crate) fn labels(service: &str, hosts: &[Host], config: &SwarmConfig) -> BTreeMap<String, String> {
    let websocket = websocket(service);
    let mut labels = BTreeMap::from([("traefik.enable".to_owned(), "true".to_owned())]);
    for (router, rule, port) in [
        (service, http_rule(hosts), HTTP_PORT),
        (websocket.as_str(), websocket_rule(hosts), WEBSOCKET_PORT),
    ] {
        labels.insert(rule_label(router), rule);
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

/// The label of a router's rule.
pub(crate) fn rule_label(router: &str) -> String {
    format!("traefik.http.routers.{router}.rule")
}

/// The router of a service's websocket.
pub(crate) fn websocket(service: &str) -> String {
    format!("{service}-ws")
}

/// A rule with these hosts in the place of those that it names. What it demands beside them stays.
///
/// # Errors
/// `Unsupported` where the hosts are not side by side: what the rule would mean afterwards is not known.
pub(crate) fn reroute(rule: &str, hosts: &[Host]) -> Result<String> {
    let refuse = |why: &str| {
        Err(Error::unsupported(
            "route",
            format!("the rule {rule} {why}, so its hosts cannot be replaced"),
        )
        .with_advice("change the rule's label on the service by hand"))
    };
    let found = matchers(rule);
    let (Some(first), Some(last)) = (found.first(), found.last()) else {
        return refuse("names no host");
    };
    if !found.windows(2).all(|pair| rule[pair[0].1..pair[1].0].trim() == "||") {
        return refuse("names hosts in several places");
    }
    let (before, after) = (&rule[..first.0], &rule[last.1..]);
    if before.trim_end().ends_with('!') {
        return refuse("excludes a host");
    }
    let alone = before.trim().is_empty() && after.trim().is_empty();
    let enclosed = before.trim_end().ends_with('(') && after.trim_start().starts_with(')');
    if !alone && !enclosed && found.len() > 1 {
        return refuse("does not hold its hosts together");
    }
    let new = http_rule(hosts);
    Ok(if alone || enclosed || hosts.len() == 1 {
        format!("{before}{new}{after}")
    } else {
        format!("{before}({new}){after}")
    })
}

/// Where the `Host(…)` matchers of a rule begin and end.
fn matchers(rule: &str) -> Vec<(usize, usize)> {
    const HOST: &str = "Host(";
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = rule[at..].find(HOST).map(|start| at + start) {
        let inside = start + HOST.len();
        let Some(end) = rule[inside..].find(')').map(|end| inside + end + 1) else {
            break;
        };
        // `HostRegexp(` and `HostSNI(` do not match here; a longer name that ends with it does.
        if rule[..start].ends_with(|c: char| c.is_ascii_alphanumeric()) {
            at = inside;
        } else {
            found.push((start, end));
            at = end;
        }
    }
    found
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
    for (start, end) in matchers(rule) {
        for host in rule[start + "Host(".len()..end - 1].split(',') {
            let host = host.trim().trim_matches(['`', '"']);
            if !host.is_empty() && !hosts.iter().any(|seen| seen == host) {
                hosts.push(host.to_owned());
            }
        }
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
    fn only_the_hosts_of_a_rule_are_replaced() {
        let host = |text: &str| -> Host { text.parse().expect("a host") };
        let (one, two) = (vec![host("n.w")], vec![host("n.w"), host("n.x")]);
        for (rule, to_one, to_two) in [
            ("Host(`a.b`)", "Host(`n.w`)", "Host(`n.w`) || Host(`n.x`)"),
            (
                "Host(`a.b`) || Host(`c.d`)",
                "Host(`n.w`)",
                "Host(`n.w`) || Host(`n.x`)",
            ),
            (
                "(Host(`a.b`, `c.d`)) && PathPrefix(`/x`)",
                "(Host(`n.w`)) && PathPrefix(`/x`)",
                "(Host(`n.w`) || Host(`n.x`)) && PathPrefix(`/x`)",
            ),
            (
                "Host(`a.b`) && !PathPrefix(`/web/database`)",
                "Host(`n.w`) && !PathPrefix(`/web/database`)",
                "(Host(`n.w`) || Host(`n.x`)) && !PathPrefix(`/web/database`)",
            ),
        ] {
            assert_eq!(reroute(rule, &one).expect(rule), to_one);
            assert_eq!(reroute(rule, &two).expect(rule), to_two);
        }
        for rule in [
            "PathPrefix(`/x`)",
            "!Host(`a.b`)",
            "Host(`a.b`) || Host(`c.d`) && PathPrefix(`/x`)",
            "Host(`a.b`) && Path(`/x`) || Host(`c.d`) && Path(`/y`)",
            "",
        ] {
            let error = reroute(rule, &one).expect_err(rule);
            assert_eq!(error.field(), Some("route"), "{rule}: {error}");
        }
    }

    #[test]
    fn todays_labels_are_among_ours() {
        let config = SwarmConfig::new(saasodoo_core::Config::default());
        let host = "acme.saasodoo.local".parse().expect("a host");
        let labels = labels("odoo-acme-0a1b2c3d", &[host], &config);
        for (key, value) in [
            ("traefik.enable", "true"),
            (
                "traefik.http.routers.odoo-acme-0a1b2c3d.rule",
                "Host(`acme.saasodoo.local`)",
            ),
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
            let _ = reroute(&rule, &["a.b".parse().expect("a host")]);
        }
    }
}
