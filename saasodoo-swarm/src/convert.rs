//! From a spec to the body of a service, and from a change to the parts of an inspected body that it touches. Pure.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bollard::models;
use saasodoo_core::{
    DatabaseEndpoint, DatabaseName, Error, Host, InstanceId, InstanceSpec, MAX_LABEL, ObjectName, Probes, Result,
    Secret,
};
use serde_json::{Value, json};

use crate::config::SwarmConfig;
use crate::traefik;

/// Labels of a service. The first three are today's; the others are on services of this library only, for what the
/// parts of a service itself cannot say.
pub(crate) mod label {
    pub(crate) const ID: &str = "saasodoo.instance.id";
    pub(crate) const NAME: &str = "saasodoo.instance.name";
    pub(crate) const CUSTOMER: &str = "saasodoo.customer.id";

    pub(crate) const MANAGED_BY: &str = "saasodoo.managed-by";
    pub(crate) const DATABASE: &str = "saasodoo.database.name";
    pub(crate) const STORAGE: &str = "saasodoo.storage.bytes";
    pub(crate) const SUBDOMAIN: &str = "saasodoo.route.subdomain";
    /// Followed by a host: who has it can be asked for by the label's name.
    pub(crate) const HOST: &str = "saasodoo.host.";
    pub(crate) const ODOO_VERSION: &str = "saasodoo.odoo.version";
    pub(crate) const ADDONS: &str = "saasodoo.addons.custom";
    pub(crate) const ADDONS_DISABLED: &str = "saasodoo.addons.disabled";
    /// Its creation has not started it yet.
    pub(crate) const UNFINISHED: &str = "saasodoo.creation.unfinished";
    /// [`CreateOptions::token`](saasodoo_core::CreateOptions::token).
    pub(crate) const TOKEN: &str = "saasodoo.creation.token";
    pub(crate) const HOLD: &str = "saasodoo.hold";
    /// With a time: since when the constraint of a suspension keeps everything from running.
    pub(crate) const SUSPENDED_AT: &str = "saasodoo.suspended-at";
    /// With the number of replicas: it is down only until the process before has ended.
    pub(crate) const RESTARTING: &str = "saasodoo.restarting";
    /// The directory was there before: a purge never touches it.
    pub(crate) const ADOPTED: &str = "saasodoo.data.adopted";
    /// The image's digest was found out by this library and is no part of the spec.
    pub(crate) const RESOLVED: &str = "saasodoo.image.resolved";
}

/// Where the image keeps its data.
pub(crate) const DATA_TARGET: &str = "/bitnami/odoo";
/// The variables of [`RESERVED_ENVIRONMENT`](saasodoo_core::RESERVED_ENVIRONMENT) that are passwords.
pub(crate) const DATABASE_PASSWORD: &str = "ODOO_DATABASE_PASSWORD";
pub(crate) const ADMIN_PASSWORD: &str = "ODOO_PASSWORD";

/// Docker's own grace period, for services that name none.
pub(crate) const DOCKER_GRACE: std::time::Duration = std::time::Duration::from_secs(10);

const SECOND: i64 = 1_000_000_000;
/// Failed probes in a row after which Docker gives the container up.
const RETRIES: i64 = 3;
/// Docker has no probe without consequences; this many failures never come together.
const NEVER: i64 = 1_000_000;

/// The service's name: exactly today's where Swarm takes it, else the name that other backends use too. Swarm's rule:
/// letters and digits, with `-` and `_` inside, 63 bytes at most.
pub(crate) fn service_name(database_name: &DatabaseName, id: InstanceId) -> Result<ObjectName> {
    let today = format!("odoo-{database_name}-{}", id.short());
    if today.len() <= MAX_LABEL {
        return ObjectName::existing(&today);
    }
    Ok(ObjectName::for_instance(database_name, id))
}

/// The name of the data directory, as today.
pub(crate) fn directory_name(spec: &InstanceSpec) -> String {
    format!("odoo_data_{}_{}", spec.database_name, spec.id.short())
}

/// Refuses what Swarm has nothing for.
pub(crate) fn check_supported(spec: &InstanceSpec) -> Result<()> {
    if !spec.scheduling.tolerations.is_empty() {
        return Err(Error::unsupported("scheduling.tolerations", "Swarm has no taints")
            .with_advice("use node labels and scheduling.node_selector"));
    }
    // What the daemon would refuse once the directory and the secrets are made.
    for (key, value) in &spec.scheduling.node_selector {
        let plain = |text: &str| {
            text.bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        };
        let (key, value) = (key.as_str(), value.as_str());
        if key.is_empty() || value.is_empty() || !plain(key) || !plain(value) {
            return Err(Error::unsupported(
                "scheduling.node_selector",
                format!("Swarm has no constraint for {key}={value}"),
            )
            .with_advice(
                "use a node label whose key has letters, digits, '-', '_' and '.', and a value that is not empty",
            ));
        }
    }
    if spec.scheduling.priority_class.is_some() {
        return Err(Error::unsupported(
            "scheduling.priority_class",
            "Swarm has no priorities",
        ));
    }
    Ok(())
}

/// A password that is mounted as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SecretFile {
    /// [`DATABASE_PASSWORD`] or [`ADMIN_PASSWORD`].
    pub(crate) variable: &'static str,
    pub(crate) id: String,
    pub(crate) name: String,
}

/// The passwords of a spec and the variables they belong to.
pub(crate) fn passwords(spec: &InstanceSpec) -> Vec<(&'static str, &Secret)> {
    let database = spec.database.as_ref().map(|d| (DATABASE_PASSWORD, &d.password));
    let admin = spec.admin.as_ref().map(|a| (ADMIN_PASSWORD, &a.password));
    database.into_iter().chain(admin).collect()
}

/// What a new service is made from, beside the spec.
#[derive(Debug)]
pub(crate) struct Creation<'a> {
    pub(crate) spec: &'a InstanceSpec,
    pub(crate) name: &'a ObjectName,
    pub(crate) hosts: &'a [Host],
    /// The absolute path of the data directory.
    pub(crate) directory: &'a Path,
    pub(crate) adopted: bool,
    pub(crate) stopped: bool,
    /// Passwords that are mounted; the others go into the environment.
    pub(crate) secrets: &'a [SecretFile],
    /// The image with its digest, if it was found out.
    pub(crate) resolved: Option<&'a str>,
}

/// The body of a new service: today's, with a healthcheck, a restart delay, stop-first updates and a grace period.
pub(crate) fn service(creation: &Creation<'_>, config: &SwarmConfig) -> Result<Value> {
    let Creation {
        spec,
        name,
        hosts,
        directory,
        adopted,
        stopped,
        secrets,
        resolved,
    } = creation;
    let source = directory.to_str().ok_or_else(|| {
        Error::new(
            saasodoo_core::ErrorKind::Configuration,
            "the data directory's path is not UTF-8",
        )
    })?;
    let mut labels: HashMap<String, String> = labels(spec, name, hosts, config).into_iter().collect();
    if *adopted {
        labels.insert(label::ADOPTED.to_owned(), "true".to_owned());
    }
    if resolved.is_some() {
        labels.insert(label::RESOLVED.to_owned(), "true".to_owned());
    }
    let constraints: Vec<String> = spec
        .scheduling
        .node_selector
        .iter()
        .map(|(key, value)| format!("node.labels.{key}=={value}"))
        .collect();
    let reserved = spec.resources.cpu_request.is_some() || spec.resources.memory_request.is_some();
    let body = models::ServiceSpec {
        name: Some(name.to_string()),
        labels: Some(labels),
        task_template: Some(models::TaskSpec {
            container_spec: Some(models::TaskSpecContainerSpec {
                image: Some(resolved.map_or_else(|| spec.image.to_string(), str::to_owned)),
                env: Some(environment(spec, secrets)),
                mounts: Some(vec![models::Mount {
                    target: Some(DATA_TARGET.to_owned()),
                    source: Some(source.to_owned()),
                    typ: Some(models::MountType::BIND),
                    read_only: Some(false),
                    ..Default::default()
                }]),
                stop_grace_period: Some(i64::from(spec.scheduling.stop_grace_seconds) * SECOND),
                secrets: (!secrets.is_empty()).then(|| secrets.iter().map(secret_reference).collect()),
                ..Default::default()
            }),
            resources: Some(models::TaskSpecResources {
                limits: Some(models::Limit {
                    nano_cpus: Some(spec.resources.cpu.nano_cpus()),
                    memory_bytes: Some(spec.resources.memory.as_i64()),
                    ..Default::default()
                }),
                reservations: reserved.then(|| models::ResourceObject {
                    nano_cpus: spec.resources.cpu_request.map(|cpu| cpu.nano_cpus()),
                    memory_bytes: spec.resources.memory_request.map(|memory| memory.as_i64()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            restart_policy: Some(models::TaskSpecRestartPolicy {
                condition: Some(models::TaskSpecRestartPolicyConditionEnum::ANY),
                delay: Some(5 * SECOND),
                max_attempts: Some(0),
                window: Some(0),
            }),
            placement: (!constraints.is_empty()).then(|| models::TaskSpecPlacement {
                constraints: Some(constraints),
                ..Default::default()
            }),
            networks: Some(vec![models::NetworkAttachmentConfig {
                target: Some(config.network.clone()),
                ..Default::default()
            }]),
            ..Default::default()
        }),
        mode: Some(models::ServiceSpecMode {
            replicated: Some(models::ServiceSpecModeReplicated {
                replicas: Some(i64::from(!stopped)),
            }),
            ..Default::default()
        }),
        update_config: Some(models::ServiceSpecUpdateConfig {
            parallelism: Some(1),
            order: Some(models::ServiceSpecUpdateConfigOrderEnum::STOP_FIRST),
            failure_action: Some(models::ServiceSpecUpdateConfigFailureActionEnum::PAUSE),
            ..Default::default()
        }),
        ..Default::default()
    };
    let mut body = serde_json::to_value(body)
        .map_err(|error| Error::new(saasodoo_core::ErrorKind::Unexpected, error.to_string()).with_source(error))?;
    // bollard spells it HealthCheck, which the daemon takes for the same and never says itself.
    *child(&mut body, HEALTHCHECK) = health_check(&spec.probes);
    Ok(body)
}

pub(crate) const HEALTHCHECK: &[&str] = &["TaskTemplate", "ContainerSpec", "Healthcheck"];

fn labels(spec: &InstanceSpec, name: &ObjectName, hosts: &[Host], config: &SwarmConfig) -> BTreeMap<String, String> {
    let mut labels = traefik::labels(name.as_str(), hosts, config);
    labels.extend(
        spec.labels
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string())),
    );
    let mut set = |key: &str, value: String| {
        labels.insert(key.to_owned(), value);
    };
    set(label::ID, spec.id.to_string());
    set(label::NAME, spec.display_name.clone());
    if let Some(customer) = spec.customer_id {
        set(label::CUSTOMER, customer.to_string());
    }
    set(label::MANAGED_BY, "saasodoo".to_owned());
    set(label::DATABASE, spec.database_name.to_string());
    set(label::STORAGE, spec.storage.get().to_string());
    for (key, value) in optional_labels(spec) {
        if let Some(value) = value {
            set(key, value);
        }
    }
    for host in hosts {
        set(&format!("{}{host}", label::HOST), "true".to_owned());
    }
    labels
}

/// Labels that are there only when the field is set.
pub(crate) fn optional_labels(spec: &InstanceSpec) -> [(&'static str, Option<String>); 4] {
    let join = |set: &std::collections::BTreeSet<String>| {
        (!set.is_empty()).then(|| set.iter().cloned().collect::<Vec<_>>().join(","))
    };
    [
        (label::SUBDOMAIN, spec.route.subdomain.as_ref().map(ToString::to_string)),
        (
            label::ODOO_VERSION,
            spec.odoo_version.map(|version| version.to_string()),
        ),
        (label::ADDONS, join(&spec.addons.custom)),
        (label::ADDONS_DISABLED, join(&spec.addons.disabled)),
    ]
}

/// Today's variables in today's order, then the tenant's, who cannot override one of them: the spec refuses their names.
fn environment(spec: &InstanceSpec, secrets: &[SecretFile]) -> Vec<String> {
    let mut env = Vec::new();
    let password = |variable: &str, secret: &Secret| {
        if secrets.iter().any(|file| file.variable == variable) {
            format!("{variable}_FILE={}", secret_path(variable))
        } else {
            variable_entry(variable, secret.expose().unwrap_or_default())
        }
    };
    if let Some(DatabaseEndpoint {
        host,
        port,
        name,
        user,
        password: secret,
    }) = &spec.database
    {
        env.push(variable_entry("ODOO_DATABASE_HOST", host));
        env.push(format!("ODOO_DATABASE_PORT_NUMBER={port}"));
        env.push(variable_entry("ODOO_DATABASE_NAME", name));
        if let Some(user) = user {
            env.push(variable_entry("ODOO_DATABASE_USER", user));
        }
        env.push(password(DATABASE_PASSWORD, secret));
    }
    if let Some(admin) = &spec.admin {
        env.push(variable_entry("ODOO_EMAIL", &admin.email));
        env.push(password(ADMIN_PASSWORD, &admin.password));
    }
    env.push(format!(
        "ODOO_LOAD_DEMO_DATA={}",
        if spec.demo_data { "yes" } else { "no" }
    ));
    env.extend(
        spec.environment
            .iter()
            .map(|(name, value)| variable_entry(name.as_str(), value)),
    );
    env
}

/// Swarm takes every variable for a template of Go's `text/template`, and puts in what stands between these.
const TEMPLATE: &str = "{{";
/// A template whose result is [`TEMPLATE`].
const LITERAL: &str = r#"{{"{{"}}"#;

/// A variable as the daemon takes it, whose value reaches the process as it is.
pub(crate) fn variable_entry(name: &str, value: &str) -> String {
    format!("{name}={}", value.replace(TEMPLATE, LITERAL))
}

/// The value that the process gets of what [`variable_entry`] wrote. Templates of others stay as they are.
pub(crate) fn variable_value(text: &str) -> String {
    text.replace(LITERAL, TEMPLATE)
}

fn secret_path(variable: &str) -> String {
    format!("/run/secrets/{}", variable.to_ascii_lowercase())
}

fn secret_reference(file: &SecretFile) -> models::TaskSpecContainerSpecSecrets {
    models::TaskSpecContainerSpecSecrets {
        file: Some(models::TaskSpecContainerSpecFile {
            name: Some(file.variable.to_ascii_lowercase()),
            uid: Some("0".to_owned()),
            gid: Some("0".to_owned()),
            mode: Some(0o444),
        }),
        secret_id: Some(file.id.clone()),
        secret_name: Some(file.name.clone()),
    }
}

/// The probe, asked inside the container by whichever of the two programs the image has.
pub(crate) fn health_check(probes: &Probes) -> Value {
    let Probes {
        path,
        period_seconds,
        startup_seconds,
        liveness,
        ..
    } = probes;
    let url = format!("{PROBE_URL}{path}");
    json!({
        // Without limits of their own: Docker has one, and the wget of some images crashes over its.
        "Test": [
            "CMD-SHELL",
            format!("curl -fsS -o /dev/null {url} 2>/dev/null || wget -q -O /dev/null {url} || exit 1"),
        ],
        "Interval": i64::from(*period_seconds) * SECOND,
        "Timeout": 5 * SECOND,
        "Retries": if *liveness { RETRIES } else { NEVER },
        "StartPeriod": i64::from(*startup_seconds) * SECOND,
    })
}

const PROBE_URL: &str = "http://127.0.0.1:8069";

/// The probes that a healthcheck of ours stands for.
pub(crate) fn probes(health_check: &Value) -> Option<Probes> {
    let test = health_check.pointer("/Test/1")?.as_str()?;
    let (_, rest) = test.split_once(PROBE_URL)?;
    let seconds = |name: &str| {
        let nanos = health_check.get(name)?.as_i64()?;
        (nanos % SECOND == 0)
            .then(|| u16::try_from(nanos / SECOND).ok())
            .flatten()
    };
    let mut probes = Probes::default();
    probes.path = rest.split_whitespace().next()?.parse().ok()?;
    probes.period_seconds = seconds("Interval")?;
    probes.startup_seconds = seconds("StartPeriod")?;
    probes.liveness = health_check.get("Retries")?.as_i64()? < NEVER;
    Some(probes)
}

/// Sets the number of replicas.
pub(crate) fn set_replicas(body: &mut Value, replicas: u64) {
    *child(body, &["Mode", "Replicated", "Replicas"]) = json!(replicas);
}

/// The number of replicas. `None` for a service that is not replicated.
pub(crate) fn replicas(body: &Value) -> Option<u64> {
    let replicated = body.pointer("/Mode/Replicated")?;
    // Docker's own default.
    Some(replicated.get("Replicas").and_then(Value::as_u64).unwrap_or(1))
}

/// Has Swarm replace the tasks of an otherwise unchanged service.
pub(crate) fn force_update(body: &mut Value) {
    let counter = child(body, &["TaskTemplate", "ForceUpdate"]);
    *counter = json!(counter.as_u64().unwrap_or(0).wrapping_add(1));
}

/// Labels of the platform itself, which are no part of a spec.
pub(crate) fn is_platform_label(key: &str) -> bool {
    ["saasodoo.", "traefik.", "com.docker."]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

/// Sets or removes a label of the service.
pub(crate) fn set_label(body: &mut Value, key: &str, value: Option<String>) {
    match value {
        Some(value) => *child(body, &["Labels", key]) = Value::String(value),
        None => {
            if let Some(labels) = body.get_mut("Labels").and_then(Value::as_object_mut) {
                labels.remove(key);
            }
        }
    }
}

/// The place at this path; objects on the way are made.
pub(crate) fn child<'a>(value: &'a mut Value, path: &[&str]) -> &'a mut Value {
    path.iter().fold(value, |value, name| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[*name]
    })
}
