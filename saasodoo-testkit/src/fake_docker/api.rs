//! Which request is answered by what, and services and tasks.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::FakeDocker;
use super::filters::Filters;
use super::task::{Desired, State};
use super::wire::{Reply, Request, decoded};
use super::world::{Service, Step, World, replicas};
use super::{objects, streams};

pub(super) const API_VERSION: &str = "1.52";
const NOT_A_MANAGER: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to \
                             connect this node to swarm and try again.";
/// Docker's least limit of memory.
const LEAST_MEMORY: u64 = 4 << 20;

pub(super) type Answer = Result<Reply, Reply>;

pub(super) fn handle(fake: &FakeDocker, request: &Request) -> Reply {
    let path = request.path.trim_start_matches('/');
    let whole: Vec<&str> = path.split('/').collect();
    let answer = match (request.method.as_str(), whole.as_slice()) {
        ("GET", ["_ping"]) => Ok(Reply::text("OK")),
        ("HEAD", ["_ping"]) => Ok(Reply::empty(StatusCode::OK)),
        ("GET", ["version"]) => Ok(Reply::ok(&objects::version())),
        ("GET", ["info"]) => fake.with(|world| Ok(Reply::ok(&objects::info(world)))),
        ("GET", ["events"]) => streams::events(fake, request),
        // Names of images have slashes.
        (_, ["images", ..] | ["distribution", ..]) => fake.with(|world| objects::images(world, request)),
        (_, ["services" | "tasks" | "secrets" | "networks" | "nodes", ..]) => {
            let parts: Vec<String> = whole.iter().map(|part| decoded(part)).collect();
            let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
            swarm(fake, request, &parts)
        }
        _ => Err(not_a_page()),
    };
    answer.unwrap_or_else(|refusal| refusal)
}

fn not_a_page() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "page not found")
}

fn swarm(fake: &FakeDocker, request: &Request, parts: &[&str]) -> Answer {
    if !fake.with(|world| world.manager) && parts.first() != Some(&"networks") {
        return Err(Reply::error(StatusCode::SERVICE_UNAVAILABLE, NOT_A_MANAGER));
    }
    let (get, post, delete) = (Method::GET, Method::POST, Method::DELETE);
    let method = &request.method;
    match parts {
        ["services" | "tasks", _, "logs"] if *method == get => streams::logs(fake, request, parts[0], parts[1]),
        ["services"] if *method == get => fake.with(|world| list_services(world, request)),
        ["services", "create"] if *method == post => fake.with(|world| create(world, request)),
        ["services", id] if *method == get => fake.with(|world| {
            let service = find_service(world, id)?;
            Ok(Reply::ok(&render(world, service, request.flag("insertDefaults"))))
        }),
        ["services", id] if *method == delete => fake.with(|world| remove(world, id)),
        ["services", id, "update"] if *method == post => fake.with(|world| update(world, id, request)),
        ["tasks"] if *method == get => fake.with(|world| list_tasks(world, request)),
        ["tasks", id] if *method == get => fake.with(|world| {
            let found = world
                .tasks
                .values()
                .find(|task| task.id.starts_with(id) && !id.is_empty());
            match found {
                Some(task) => Ok(Reply::ok(&task.render(|at| world.time(at)))),
                None => Err(Reply::error(StatusCode::NOT_FOUND, format!("task {id} not found"))),
            }
        }),
        _ => fake.with(|world| objects::handle(world, request, parts)),
    }
}

/// By id, by name, or by the beginning of an id.
pub(super) fn find_service<'a>(world: &'a World, name: &str) -> Result<&'a Service, Reply> {
    let by_name = || world.services.values().find(|service| service.name() == name);
    let by_prefix = || {
        let mut found = world.services.values().filter(|service| service.id.starts_with(name));
        let first = found.next().filter(|_| !name.is_empty());
        first.filter(|_| found.next().is_none())
    };
    let found = world.services.get(name).or_else(by_name).or_else(by_prefix);
    found.ok_or_else(|| Reply::error(StatusCode::NOT_FOUND, format!("service {name} not found")))
}

fn render(world: &World, service: &Service, defaults: bool) -> Value {
    let mut spec = service.spec.clone();
    if defaults {
        insert_defaults(&mut spec);
    }
    let mut shown = json!({
        "ID": service.id,
        "Version": {"Index": service.version},
        "CreatedAt": world.time(service.created),
        "UpdatedAt": world.time(service.updated),
        "Spec": spec,
        "Endpoint": {"Spec": {"Mode": "vip"}},
    });
    if let Some(previous) = &service.previous {
        shown["PreviousSpec"] = previous.clone();
    }
    if let Some(update) = &service.update {
        shown["UpdateStatus"] = json!({
            "State": update.state,
            "StartedAt": world.time(update.started),
            "Message": update.message,
        });
        if let Some(completed) = update.completed {
            shown["UpdateStatus"]["CompletedAt"] = json!(world.time(completed));
        }
    }
    shown
}

/// What Swarm takes where a spec says nothing.
fn insert_defaults(spec: &mut Value) {
    let update = json!({"Parallelism": 1, "FailureAction": "pause", "Monitor": 5_000_000_000_u64, "MaxFailureRatio": 0, "Order": "stop-first"});
    for (path, value) in [
        (["UpdateConfig", ""], update.clone()),
        (["RollbackConfig", ""], update),
        (
            ["TaskTemplate", "RestartPolicy"],
            json!({"Condition": "any", "Delay": 5_000_000_000_u64, "MaxAttempts": 0}),
        ),
        (["TaskTemplate", "Placement"], json!({})),
        (["TaskTemplate", "Resources"], json!({"Limits": {}, "Reservations": {}})),
    ] {
        let place = match path {
            [outer, ""] => &mut spec[outer],
            [outer, inner] => &mut spec[outer][inner],
        };
        match (place, value) {
            (Value::Object(given), Value::Object(defaults)) => {
                for (key, value) in defaults {
                    given.entry(key).or_insert(value);
                }
            }
            (place @ Value::Null, value) => *place = value,
            _ => {}
        }
    }
    let container = &mut spec["TaskTemplate"]["ContainerSpec"];
    if container.is_object() && container.get("StopGracePeriod").is_none() {
        container["StopGracePeriod"] = json!(10_000_000_000_u64);
    }
}

fn list_services(world: &World, request: &Request) -> Answer {
    let filters = Filters::of(request, &["id", "label", "mode", "name", "runtime"])?;
    let mode = |service: &Service| {
        let mode = service.spec.get("Mode").and_then(Value::as_object);
        let named = mode.and_then(|mode| mode.keys().next());
        named.map_or_else(|| "replicated".to_owned(), |name| name.to_ascii_lowercase())
    };
    let matching = world.services.values().filter(|service| {
        filters.begins("id", &service.id)
            && filters.begins("name", service.name())
            && filters.labels("label", |key| service.label(key))
            && filters.is("mode", &mode(service))
            && filters.is("runtime", "container")
    });
    let defaults = request.flag("insertDefaults");
    let shown = matching.map(|service| {
        let mut shown = render(world, service, defaults);
        if request.flag("status") {
            shown["ServiceStatus"] = status(world, service);
        }
        shown
    });
    Ok(Reply::ok(&shown.collect()))
}

fn status(world: &World, service: &Service) -> Value {
    let tasks = || world.tasks.values().filter(|task| task.service == service.id);
    let running = tasks().filter(|task| task.state == State::Running && task.desired == Desired::Running);
    json!({"RunningTasks": running.count(), "DesiredTasks": service.replicas(), "CompletedTasks": 0})
}

fn list_tasks(world: &World, request: &Request) -> Answer {
    let known = [
        "desired-state",
        "id",
        "label",
        "name",
        "node",
        "runtime",
        "service",
        "_up-to-date",
    ];
    let filters = Filters::of(request, &known)?;
    for state in filters.values("desired-state").unwrap_or_default() {
        if !matches!(state.as_str(), "running" | "shutdown" | "accepted" | "ready" | "remove") {
            let message = format!("invalid task state filter '{state}'");
            return Err(Reply::error(StatusCode::BAD_REQUEST, message));
        }
    }
    let mut services = None;
    for name in filters.values("service").unwrap_or_default() {
        let found = find_service(world, name)?;
        services.get_or_insert_with(Vec::new).push(found.id.as_str());
    }
    let matching = world.tasks.values().filter(|task| {
        filters.begins("id", &task.id)
            && services.as_ref().is_none_or(|ids| ids.contains(&task.service.as_str()))
            && filters.begins("name", &format!("{}.{}.{}", task.name, task.slot, task.id))
            && filters.labels("label", |key| task.labels.get(key).map(String::as_str))
            && filters.is("desired-state", task.desired.as_str())
            && filters.is("runtime", "container")
            && filters.values("node").is_none_or(|names| {
                let node = task.node.as_deref().unwrap_or_default();
                names
                    .iter()
                    .any(|name| name == node || (name == "manager1" && !node.is_empty()))
            })
    });
    Ok(Reply::ok(
        &matching.map(|task| task.render(|at| world.time(at))).collect(),
    ))
}

fn refuse(status: StatusCode, code: &str, why: impl AsRef<str>) -> Reply {
    Reply::error(status, format!("rpc error: code = {code} desc = {}", why.as_ref()))
}

/// Refuses what the daemon refuses, and keeps everything else as it was sent, known or not, but for what the daemon
/// itself rewrites.
fn checked(world: &World, request: &Request) -> Result<Value, Reply> {
    let invalid = |why: &str| refuse(StatusCode::BAD_REQUEST, "InvalidArgument", why);
    let mut spec = request.json()?;
    if !spec.is_object() {
        return Err(Reply::error(StatusCode::BAD_REQUEST, "invalid JSON: not an object"));
    }
    let name = spec.get("Name").and_then(Value::as_str).unwrap_or_default();
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let edges = name.starts_with(['-', '_']) || name.ends_with(['-', '_']);
    if name.is_empty() || name.len() > 63 || !name.bytes().all(plain) || edges {
        return Err(invalid("name must be valid as a DNS name component"));
    }
    let container = spec
        .pointer_mut("/TaskTemplate/ContainerSpec")
        .and_then(Value::as_object_mut);
    let Some(container) = container else {
        return Err(invalid("Container spec must be provided"));
    };
    if container
        .get("Image")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .is_empty()
    {
        return Err(invalid("ContainerSpec: image reference must be provided"));
    }
    // Field names are read in any case and written in one, and what is nothing is not written.
    respell(container, "HealthCheck", "Healthcheck");
    for name in ["Args", "Command", "Env", "Mounts", "Secrets"] {
        let nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        if container.get(name).is_some_and(nothing) {
            container.remove(name);
        }
    }
    for mount in container
        .get_mut("Mounts")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(fields) = mount
            .as_object_mut()
            .filter(|fields| fields.get("ReadOnly") == Some(&json!(false)))
        {
            fields.remove("ReadOnly");
        }
    }
    container.entry("Isolation").or_insert_with(|| json!("default"));
    for secret in container.get("Secrets").and_then(Value::as_array).into_iter().flatten() {
        let id = secret.get("SecretID").and_then(Value::as_str).unwrap_or_default();
        if !world.secrets.contains_key(id) {
            let name = secret.get("SecretName").and_then(Value::as_str).unwrap_or(id);
            return Err(invalid(&format!("secret not found: {name}")));
        }
    }
    if let Some(mode) = spec.get_mut("Mode").and_then(Value::as_object_mut) {
        respell(mode, "replicated", "Replicated");
        respell(mode, "global", "Global");
    }
    let memory = spec
        .pointer("/TaskTemplate/Resources/Limits/MemoryBytes")
        .and_then(Value::as_u64);
    if let Some(memory) = memory.filter(|memory| *memory != 0 && *memory < LEAST_MEMORY) {
        return Err(invalid(&format!(
            "invalid memory value {memory}: Must be at least 4MiB"
        )));
    }
    let template = &mut spec["TaskTemplate"];
    if template.get("ForceUpdate").is_none() {
        template["ForceUpdate"] = json!(0);
    }
    if template.get("Runtime").is_none() {
        template["Runtime"] = json!("container");
    }
    for network in template
        .get_mut("Networks")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let target = network.get("Target").and_then(Value::as_str).unwrap_or_default();
        match objects::find_network(world, target) {
            Some(found) => network["Target"] = json!(found.id),
            None => {
                let message = format!("network {target} not found");
                return Err(Reply::error(StatusCode::INTERNAL_SERVER_ERROR, message));
            }
        }
    }
    Ok(spec)
}

fn respell(fields: &mut serde_json::Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

fn create(world: &mut World, request: &Request) -> Answer {
    let spec = checked(world, request)?;
    let name = spec.get("Name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if world.services.values().any(|service| service.name() == name) {
        let why = format!("name conflicts with an existing object: service {name} already exists");
        return Err(refuse(StatusCode::CONFLICT, "AlreadyExists", why));
    }
    let (id, version) = (world.new_id(), world.next_index());
    let service = Service {
        id: id.clone(),
        version,
        created: world.now,
        updated: world.now,
        spec,
        previous: None,
        update: None,
        settling: false,
    };
    world.services.insert(id.clone(), service);
    world.tell("create", &id, &[("name", name)]);
    world.at(world.settings.step, &id, Step::Allocate);
    Ok(Reply::json(StatusCode::CREATED, &json!({"ID": id})))
}

fn update(world: &mut World, name: &str, request: &Request) -> Answer {
    let version = request.query("version").unwrap_or_default();
    let version: u64 = version
        .parse()
        .map_err(|_| Reply::error(StatusCode::BAD_REQUEST, format!("invalid service version '{version}'")))?;
    let service = find_service(world, name)?;
    let id = service.id.clone();
    let rollback = request.query("rollback") == Some("previous");
    let spec = if rollback {
        let why = "service does not have a previous spec";
        let previous = service.previous.clone();
        previous.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "FailedPrecondition", why))?
    } else {
        checked(world, request)?
    };
    let service = find_service(world, &id)?;
    if spec.get("Name").and_then(Value::as_str) != Some(service.name()) {
        return Err(refuse(
            StatusCode::NOT_IMPLEMENTED,
            "Unimplemented",
            "renaming services is not supported",
        ));
    }
    if version != service.version {
        // The daemon does not know this error of Swarm's, and takes it for one of its own.
        return Err(refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "Unknown",
            "update out of sequence",
        ));
    }
    let (now, index) = (world.now, world.next_index());
    let Some(service) = world.services.get_mut(&id) else {
        return Err(Reply::error(StatusCode::NOT_FOUND, format!("service {name} not found")));
    };
    let before = std::mem::replace(&mut service.spec, spec);
    let mut attributes = vec![("name", service.name().to_owned())];
    let (old, new) = (replicas(&before), service.replicas());
    if old != new {
        attributes.extend([("replicas.old", old.to_string()), ("replicas.new", new.to_string())]);
    }
    let image = |spec: &Value| {
        let image = spec
            .pointer("/TaskTemplate/ContainerSpec/Image")
            .and_then(Value::as_str);
        image.unwrap_or_default().to_owned()
    };
    let (old, new) = (image(&before), image(&service.spec));
    if old != new {
        attributes.extend([("image.old", old), ("image.new", new)]);
    }
    service.previous = Some(before);
    service.update = None;
    service.settling = false;
    (service.version, service.updated) = (index, now);
    world.tell("update", &id, &attributes);
    if rollback {
        world.tell_update(&id, "rollback_started", "manually requested rollback");
    }
    world.reconcile(&id);
    Ok(Reply::ok(&json!({"Warnings": null})))
}

fn remove(world: &mut World, name: &str) -> Answer {
    let service = find_service(world, name)?;
    let (id, name) = (service.id.clone(), service.name().to_owned());
    world.services.remove(&id);
    world.next_index();
    world.tell("remove", &id, &[("name", name)]);
    world.reconcile(&id);
    Ok(Reply::empty(StatusCode::OK))
}
