//! Routes: the object that leads hosts to a Service, and the hosts that objects of others claim.

use std::collections::BTreeSet;

use saasodoo_core::Host;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{KubernetesConfig, Routing, RoutingTls};
use crate::names::{HTTP_PORT, WEBSOCKET_PORT};
use crate::wire::{INGRESS, INGRESS_ROUTE, Kind, StubMeta};

/// The paths that Odoo serves on its second port: the one of 16.0 and later, and the one before.
const WEBSOCKET_PATHS: [&str; 2] = ["/websocket", "/longpolling"];

/// The kind of the routes, if the configuration has any.
pub(crate) fn kind(config: &KubernetesConfig) -> Option<Kind> {
    match config.routing {
        Routing::Traefik { .. } => Some(INGRESS_ROUTE),
        Routing::Ingress { .. } => Some(INGRESS),
        Routing::None => None,
    }
}

/// The route of these hosts to the Service of this name. `websocket`: the Service has the second port.
pub(crate) fn object(
    config: &KubernetesConfig,
    mut metadata: Value,
    service: &str,
    hosts: &[Host],
    websocket: bool,
) -> Option<(Kind, Value)> {
    let kind = kind(config)?;
    if let Routing::Ingress { annotations, .. } = &config.routing {
        for (key, value) in annotations {
            metadata["annotations"][key] = json!(value);
        }
    }
    let object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.kind,
        "metadata": metadata,
        "spec": spec(config, service, hosts, websocket)?,
    });
    Some((kind, object))
}

/// The part of the route that depends on the hosts.
pub(crate) fn spec(config: &KubernetesConfig, service: &str, hosts: &[Host], websocket: bool) -> Option<Value> {
    match &config.routing {
        Routing::Traefik {
            entry_points,
            tls,
            middlewares,
        } => {
            let any_host = any_of("Host", hosts.iter().map(Host::as_str));
            let any_path = any_of("PathPrefix", WEBSOCKET_PATHS.into_iter());
            let rule = |rule: String, port: u16| {
                let mut route = json!({
                    "match": rule,
                    "kind": "Rule",
                    "services": [{"name": service, "port": port}],
                });
                if !middlewares.is_empty() {
                    route["middlewares"] = middlewares.iter().map(|name| json!({"name": name})).collect();
                }
                route
            };
            let mut routes = vec![rule(any_host.clone(), HTTP_PORT)];
            if websocket {
                // The longer rule has the higher priority.
                routes.push(rule(format!("({any_host}) && ({any_path})"), WEBSOCKET_PORT));
            }
            let mut spec = json!({"entryPoints": entry_points, "routes": routes});
            match tls {
                None => {}
                Some(RoutingTls::Default) => spec["tls"] = json!({}),
                Some(RoutingTls::CertResolver(resolver)) => spec["tls"] = json!({"certResolver": resolver}),
                Some(RoutingTls::Secret(name)) => spec["tls"] = json!({"secretName": name}),
            }
            Some(spec)
        }
        Routing::Ingress { class, tls, .. } => {
            let path = |path: &str, port: u16| {
                json!({
                    "path": path,
                    "pathType": "Prefix",
                    "backend": {"service": {"name": service, "port": {"number": port}}},
                })
            };
            let mut paths = Vec::new();
            if websocket {
                paths.extend(WEBSOCKET_PATHS.map(|prefix| path(prefix, WEBSOCKET_PORT)));
            }
            paths.push(path("/", HTTP_PORT));
            let rules = hosts.iter().map(|host| json!({"host": host, "http": {"paths": paths}}));
            let mut spec = json!({"rules": rules.collect::<Vec<_>>()});
            if let Some(class) = class {
                spec["ingressClassName"] = json!(class);
            }
            match tls {
                Some(RoutingTls::Secret(name)) => spec["tls"] = json!([{"hosts": hosts, "secretName": name}]),
                Some(_) => spec["tls"] = json!([{"hosts": hosts}]),
                None => {}
            }
            Some(spec)
        }
        Routing::None => None,
    }
}

/// `Matcher(`a`) || Matcher(`b`)`. What goes in has been checked and holds no backtick.
fn any_of<'a>(matcher: &str, values: impl Iterator<Item = &'a str>) -> String {
    let rules: Vec<String> = values.map(|value| format!("{matcher}(`{value}`)")).collect();
    rules.join(" || ")
}

/// A route of anybody, with the parts that name hosts.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct RouteView {
    #[serde(default)]
    pub(crate) metadata: StubMeta,
    #[serde(default)]
    pub(crate) spec: RouteSpecView,
}

/// The hosts are in `routes` of an IngressRoute and in `rules` of an Ingress.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RouteSpecView {
    routes: Vec<RuleView>,
    rules: Vec<IngressRuleView>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct RuleView {
    #[serde(rename = "match")]
    rule: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct IngressRuleView {
    host: Option<String>,
}

impl RouteView {
    /// The hosts that the route claims, each once, in the order in which they appear.
    pub(crate) fn hosts(&self) -> Vec<Host> {
        let rules = self.spec.routes.iter().flat_map(|route| hosts_of_rule(&route.rule));
        let ingress = self.spec.rules.iter().filter_map(|rule| rule.host.clone());
        let mut seen = BTreeSet::new();
        rules
            .chain(ingress)
            .filter_map(|host| host.parse().ok())
            .filter(|host: &Host| seen.insert(host.clone()))
            .collect()
    }
}

/// The hosts in a rule of Traefik: each text in backticks or quotes within `Host(…)`.
fn hosts_of_rule(rule: &str) -> Vec<String> {
    let mut hosts = Vec::new();
    let mut rest = rule;
    while let Some(start) = rest.find("Host(") {
        let end = rest[start..].find(')').map_or(rest.len(), |end| start + end);
        let arguments = &rest[start + "Host(".len()..end];
        let quoted = arguments
            .split(',')
            .map(|text| text.trim().trim_matches(['`', '"', '\'']));
        hosts.extend(quoted.filter(|host| !host.is_empty()).map(str::to_owned));
        rest = &rest[end..];
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_in_the_rules_of_others() {
        for (rule, hosts) in [
            ("Host(`a.example`)", vec!["a.example"]),
            ("Host(`a.example`) || Host(`b.example`)", vec!["a.example", "b.example"]),
            (
                "Host(`a.example`, `b.example`) && PathPrefix(`/x`)",
                vec!["a.example", "b.example"],
            ),
            ("Host(\"a.example\")", vec!["a.example"]),
            ("PathPrefix(`/x`)", vec![]),
            ("Host(", vec![]),
            ("HostRegexp(`.+`)", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(hosts_of_rule(rule), hosts, "{rule}");
        }
    }

    #[test]
    fn both_kinds_of_routes_name_their_hosts() {
        let hosts: Vec<Host> = ["a.example", "b.example"]
            .map(|host| host.parse().expect("a host"))
            .to_vec();
        let mut config = KubernetesConfig::new(saasodoo_core::Config::default());
        for routing in [
            Routing::default(),
            Routing::Ingress {
                class: Some("nginx".parse().expect("a name")),
                tls: Some(RoutingTls::Secret("wildcard".parse().expect("a name"))),
                annotations: [("a".to_owned(), "b".to_owned())].into(),
            },
        ] {
            config.routing = routing;
            let (_, object) = object(&config, json!({"name": "x"}), "x", &hosts, true).expect("a route");
            let view: RouteView = serde_json::from_value(object.clone()).expect("a view");
            assert_eq!(view.hosts(), hosts);
            assert!(object.to_string().contains("/websocket") && object.to_string().contains("8072"));
        }
        config.routing = Routing::None;
        assert!(object(&config, json!({}), "x", &hosts, true).is_none());
    }
}
