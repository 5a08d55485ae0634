//! Secrets, networks, the node, images, and what the daemon says about itself.

use http::StatusCode;
use serde_json::{Value, json};

use super::api::{API_VERSION, Answer};
use super::filters::Filters;
use super::wire::{Reply, Request, decoded};
use super::world::{Object, World};

pub(super) fn version() -> Value {
    json!({
        "Platform": {"Name": "Docker Engine - simulated"},
        "Version": "29.0.0",
        "ApiVersion": API_VERSION,
        "MinAPIVersion": "1.44",
        "Os": "linux",
        "Arch": "amd64",
        "KernelVersion": "6.1.0",
    })
}

pub(super) fn info(world: &World) -> Value {
    let swarm = if world.manager {
        json!({"NodeID": world.node.id, "LocalNodeState": "active", "ControlAvailable": true, "Error": "", "Managers": 1, "Nodes": 1})
    } else {
        json!({"NodeID": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": ""})
    };
    let containers = world.processes().len();
    json!({
        "ID": "simulated", "Name": "manager1", "ServerVersion": "29.0.0", "OSType": "linux",
        "Containers": containers, "ContainersRunning": containers, "Swarm": swarm,
    })
}

pub(super) fn handle(world: &mut World, request: &Request, parts: &[&str]) -> Answer {
    match (request.method.as_str(), parts) {
        ("GET", ["secrets"]) => {
            let filters = Filters::of(request, &["id", "label", "name", "names"])?;
            let matching = world.secrets.values().filter(|secret| {
                filters.begins("id", &secret.id)
                    && filters.begins("name", secret.name())
                    && filters.is("names", secret.name())
                    && filters.labels("label", |key| secret.label(key))
            });
            Ok(Reply::ok(&matching.map(|secret| render(world, secret)).collect()))
        }
        ("POST", ["secrets", "create"]) => create_secret(world, request.json()?),
        ("GET", ["secrets", name]) => Ok(Reply::ok(&render(world, find_secret(world, name)?))),
        ("DELETE", ["secrets", name]) => remove_secret(world, name),
        ("GET", ["networks"]) => {
            let filters = Filters::of(request, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
            let matching = world.networks.values().filter(|network| {
                filters.begins("id", &network.id)
                    && filters
                        .values("name")
                        .is_none_or(|names| names.iter().any(|name| network.name().contains(name.as_str())))
                    && filters.is("driver", driver(network))
                    && filters.is("scope", scope(network))
                    && filters.labels("label", |key| network.label(key))
            });
            Ok(Reply::ok(
                &matching.map(|network| render_network(world, network)).collect(),
            ))
        }
        ("POST", ["networks", "create"]) => {
            let spec = request.json()?;
            let name = spec.get("Name").and_then(Value::as_str).unwrap_or_default();
            if name.is_empty() {
                return Err(Reply::error(StatusCode::BAD_REQUEST, "network name cannot be empty"));
            }
            if find_network(world, name).is_some() {
                let message = format!("network with name {name} already exists");
                return Err(Reply::error(StatusCode::CONFLICT, message));
            }
            let id = world.add_network(spec);
            Ok(Reply::json(StatusCode::CREATED, &json!({"Id": id, "Warning": ""})))
        }
        ("GET", ["networks", name]) => match find_network(world, name) {
            Some(network) => Ok(Reply::ok(&render_network(world, network))),
            None => Err(Reply::error(StatusCode::NOT_FOUND, format!("network {name} not found"))),
        },
        ("DELETE", ["networks", name]) => match find_network(world, name).map(|network| network.id.clone()) {
            Some(id) => {
                world.networks.remove(&id);
                world.next_index();
                Ok(Reply::empty(StatusCode::NO_CONTENT))
            }
            None => Err(Reply::error(StatusCode::NOT_FOUND, format!("network {name} not found"))),
        },
        ("GET", ["nodes"]) => Ok(Reply::ok(&json!([render_node(world)]))),
        ("GET", ["nodes", name]) if *name == world.node.id || matches!(*name, "self" | "manager1") => {
            Ok(Reply::ok(&render_node(world)))
        }
        ("GET", ["nodes", name]) => Err(Reply::error(StatusCode::NOT_FOUND, format!("node {name} not found"))),
        _ => Err(Reply::error(StatusCode::NOT_FOUND, "page not found")),
    }
}

fn render(world: &World, secret: &Object) -> Value {
    json!({
        "ID": secret.id,
        "Version": {"Index": secret.version},
        "CreatedAt": world.time(secret.created),
        "UpdatedAt": world.time(secret.created),
        "Spec": secret.spec,
    })
}

fn find_secret<'a>(world: &'a World, name: &str) -> Result<&'a Object, Reply> {
    let by_name = || world.secrets.values().find(|secret| secret.name() == name);
    let found = world.secrets.get(name).or_else(by_name);
    found.ok_or_else(|| Reply::error(StatusCode::NOT_FOUND, format!("secret {name} not found")))
}

/// What is in a secret is never shown again.
fn create_secret(world: &mut World, mut spec: Value) -> Answer {
    let name = spec.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let data = spec.get("Data").and_then(Value::as_str);
    if name.is_empty() || data.is_none_or(str::is_empty) {
        let message =
            "rpc error: code = InvalidArgument desc = secret data must be larger than 0 and less than 512000 bytes";
        return Err(Reply::error(StatusCode::BAD_REQUEST, message));
    }
    if find_secret(world, &name).is_ok() {
        let message = format!("rpc error: code = AlreadyExists desc = secret {name} already exists");
        return Err(Reply::error(StatusCode::CONFLICT, message));
    }
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("Data");
    }
    let secret = Object {
        id: world.new_id(),
        version: world.next_index(),
        created: world.now,
        spec,
    };
    let id = secret.id.clone();
    world.secrets.insert(id.clone(), secret);
    Ok(Reply::json(StatusCode::CREATED, &json!({"ID": id})))
}

fn remove_secret(world: &mut World, name: &str) -> Answer {
    let secret = find_secret(world, name)?;
    let (id, name) = (secret.id.clone(), secret.name().to_owned());
    let user = world.services.values().find(|service| {
        let used = service
            .spec
            .pointer("/TaskTemplate/ContainerSpec/Secrets")
            .and_then(Value::as_array);
        let mut used = used.into_iter().flatten();
        used.any(|secret| secret.get("SecretID").and_then(Value::as_str) == Some(&id))
    });
    if let Some(user) = user {
        let message = format!(
            "rpc error: code = InvalidArgument desc = secret '{name}' is in use by the following service: {}",
            user.name()
        );
        return Err(Reply::error(StatusCode::BAD_REQUEST, message));
    }
    world.secrets.remove(&id);
    world.next_index();
    Ok(Reply::empty(StatusCode::NO_CONTENT))
}

pub(super) fn find_network<'a>(world: &'a World, name: &str) -> Option<&'a Object> {
    let by_name = || world.networks.values().find(|network| network.name() == name);
    world.networks.get(name).or_else(by_name)
}

fn driver(network: &Object) -> &str {
    network.spec.get("Driver").and_then(Value::as_str).unwrap_or("bridge")
}

fn scope(network: &Object) -> &str {
    if driver(network) == "overlay" { "swarm" } else { "local" }
}

fn render_network(world: &World, network: &Object) -> Value {
    let mut shown = network.spec.clone();
    shown["Id"] = json!(network.id);
    shown["Created"] = json!(world.time(network.created));
    shown["Scope"] = json!(scope(network));
    shown["Driver"] = json!(driver(network));
    shown
}

fn render_node(world: &World) -> Value {
    let state = if world.node_up { "ready" } else { "down" };
    json!({
        "ID": world.node.id,
        "Version": {"Index": world.node.version},
        "CreatedAt": world.time(world.node.created),
        "UpdatedAt": world.time(world.node.created),
        "Spec": world.node.spec,
        "Description": {"Hostname": "manager1", "Platform": {"OS": "linux", "Architecture": "x86_64"}},
        "Status": {"State": state, "Addr": "127.0.0.1"},
        "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "127.0.0.1:2377"},
    })
}

/// `/images/{name}/json`, `/images/create` and `/distribution/{name}/json`.
pub(super) fn images(world: &World, request: &Request) -> Answer {
    let path = decoded(&request.path);
    let refused = |message: String| Err(Reply::error(StatusCode::NOT_FOUND, message));
    if request.method == http::Method::POST && path == "/images/create" {
        let from = request.query("fromImage").unwrap_or_default();
        let image = match request.query("tag").filter(|tag| !tag.is_empty()) {
            Some(tag) if tag.contains(':') => format!("{from}@{tag}"),
            Some(tag) => format!("{from}:{tag}"),
            None => from.to_owned(),
        };
        if !world.has_image(&image) {
            return refused(format!(
                "pull access denied for {from}, repository does not exist or may require 'docker login'"
            ));
        }
        return Ok(Reply::ok(
            &json!({"status": format!("Status: Image is up to date for {image}")}),
        ));
    }
    let named = |kind: &str| path.strip_prefix(kind)?.strip_suffix("/json");
    if request.method != http::Method::GET {
        return refused("page not found".to_owned());
    }
    if let Some(image) = named("/images/") {
        if !world.has_image(image) {
            return refused(format!("no such image: {image}: No such image: {image}"));
        }
        return Ok(Reply::ok(
            &json!({"Id": digest(image), "RepoTags": [image], "Os": "linux", "Architecture": "amd64"}),
        ));
    }
    if let Some(image) = named("/distribution/") {
        if !world.has_image(image) {
            return refused(format!("manifest unknown: no {image} in the registry"));
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        return Ok(Reply::ok(&json!({
            "Descriptor": {"mediaType": kind, "digest": digest(image), "size": 1024},
            "Platforms": [{"architecture": "amd64", "os": "linux"}],
        })));
    }
    refused("page not found".to_owned())
}

/// The same for the same name, and nothing else.
fn digest(image: &str) -> String {
    let plain = image.split('@').next().unwrap_or(image);
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in plain.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("sha256:{}", format!("{hash:016x}").repeat(4))
}
