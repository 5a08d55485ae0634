//! From the body of a service back to a spec. Pure. What cannot be understood is reported, never dropped.

use std::collections::BTreeSet;

use saasodoo_core::{
    AdminAccount, Bytes, Cpu, DatabaseEndpoint, DatabaseName, EnvName, Hold, Host, InstanceId, InstanceSpec, LabelKey,
    LabelValue, ObjectName, RESERVED_ENVIRONMENT, Secret, Unparsed,
};
use serde_json::Value;

use crate::config::SwarmConfig;
use crate::convert::{self, ADMIN_PASSWORD, DATABASE_PASSWORD, label};
use crate::facts::{Disk, label_of};
use crate::fence;
use crate::traefik;

/// Docker's own grace period, for services that name none.
const DOCKER_GRACE_SECONDS: u16 = 10;

/// A service's body as a spec.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) spec: InstanceSpec,
    pub(crate) hosts: Vec<Host>,
    pub(crate) tls: bool,
    pub(crate) unparsed: Vec<Unparsed>,
}

/// Collects what was left over.
struct Reader<'a> {
    service: &'a Value,
    unparsed: Vec<Unparsed>,
}

impl Reader<'_> {
    fn at(&self, path: &str) -> Option<&Value> {
        self.service.pointer("/Spec/TaskTemplate")?.pointer(path)
    }

    fn label(&self, key: &str) -> Option<&str> {
        label_of(self.service, key)
    }

    fn left(&mut self, field: &str, raw: impl Into<String>, reason: impl Into<String>) {
        self.unparsed.push(Unparsed::new(field, raw, reason));
    }

    /// Reads a label's text; a bad one is reported.
    fn parsed_label<T: std::str::FromStr<Err = saasodoo_core::Error>>(&mut self, key: &str, field: &str) -> Option<T> {
        let text = self.label(key)?.to_owned();
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.left(field, text, error.message());
                None
            }
        }
    }
}

/// Reads a service's body.
pub(crate) fn spec(service: &Value, id: InstanceId, name: &ObjectName, disk: Disk, config: &SwarmConfig) -> Observed {
    let mut reader = Reader {
        service,
        unparsed: Vec::new(),
    };
    let reader = &mut reader;
    let database_name = database_name(reader, id, name);
    let mut spec = InstanceSpec::new(id, database_name, config.common.image.clone());
    spec.display_name = reader.label(label::NAME).unwrap_or_default().to_owned();
    spec.customer_id = reader.parsed_label(label::CUSTOMER, "customer_id");
    spec.odoo_version = reader.parsed_label(label::ODOO_VERSION, "odoo_version");
    read_image(reader, &mut spec);
    read_environment(reader, &mut spec);
    read_resources(reader, &mut spec);
    read_storage(reader, disk, &mut spec);
    let list = |text: Option<&str>| -> BTreeSet<String> {
        let text = text.unwrap_or_default();
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect()
    };
    spec.addons.custom = list(reader.label(label::ADDONS));
    spec.addons.disabled = list(reader.label(label::ADDONS_DISABLED));
    read_labels(reader, &mut spec);
    read_scheduling(reader, &mut spec);
    read_probes(reader, &mut spec);
    let (hosts, tls) = read_route(reader, name, &mut spec, &config.common.base_domain);
    read_leftovers(reader);
    Observed {
        spec,
        hosts,
        tls,
        unparsed: std::mem::take(&mut reader.unparsed),
    }
}

/// From our label; from a name of today's exact form, whose id is known; else from the routed host.
fn database_name(reader: &mut Reader<'_>, id: InstanceId, name: &ObjectName) -> DatabaseName {
    if let Some(name) = reader.parsed_label(label::DATABASE, "database_name") {
        return name;
    }
    let suffix = format!("-{}", id.short());
    let from_name = name
        .as_str()
        .strip_prefix("odoo-")
        .and_then(|rest| rest.strip_suffix(&suffix))
        .and_then(|slug| slug.parse().ok());
    if let Some(name) = from_name {
        return name;
    }
    let rule = reader
        .label(&format!("traefik.http.routers.{name}.rule"))
        .unwrap_or_default()
        .to_owned();
    let from_host = traefik::hosts(&rule)
        .first()
        .and_then(|host| host.split('.').next()?.parse().ok());
    reader.left(
        "database_name",
        name.as_str(),
        "the service's name is not made from a database name and this id",
    );
    from_host.unwrap_or_else(|| {
        let short = id.short().to_string();
        short
            .parse()
            .unwrap_or_else(|_| unreachable!("hexadecimal digits are a name"))
    })
}

fn read_image(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    let Some(text) = reader
        .at("/ContainerSpec/Image")
        .and_then(Value::as_str)
        .map(str::to_owned)
    else {
        reader.left("image", "", "the service has none");
        return;
    };
    match text.parse::<saasodoo_core::ImageRef>() {
        Ok(image) if reader.label(label::RESOLVED).is_some() => spec.image = image.without_digest(),
        Ok(image) => spec.image = image,
        Err(error) => reader.left("image", text, error.message()),
    }
}

fn read_environment(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    let entries: Vec<String> = reader
        .at("/ContainerSpec/Env")
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        .unwrap_or_default();
    let mut reserved = std::collections::BTreeMap::<&str, String>::new();
    let mut mounted = BTreeSet::<&str>::new();
    for entry in &entries {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        if let Some(known) = RESERVED_ENVIRONMENT.iter().find(|known| **known == name) {
            reserved.insert(known, convert::variable_value(value));
            continue;
        }
        let file_of = RESERVED_ENVIRONMENT
            .iter()
            .find(|known| name.strip_suffix("_FILE") == Some(**known));
        if let Some(known) = file_of {
            mounted.insert(known);
            continue;
        }
        match name.parse::<EnvName>() {
            Ok(name) => {
                spec.environment.insert(name, convert::variable_value(value));
            }
            // The value may be a secret.
            Err(error) => reader.left(&format!("environment.{name}"), "", error.message()),
        }
    }
    let secret = |variable: &str| {
        reserved
            .get(variable)
            .map_or_else(Secret::withheld, |value| Secret::new(value.clone()))
    };
    let text = |variable: &str| reserved.get(variable).cloned();
    match (text("ODOO_DATABASE_HOST"), text("ODOO_DATABASE_NAME")) {
        (None, None) => {}
        (host, name) => {
            for (part, variable) in [(&host, "ODOO_DATABASE_HOST"), (&name, "ODOO_DATABASE_NAME")] {
                if part.is_none() {
                    reader.left("database", "", format!("{variable} is not set"));
                }
            }
            let mut endpoint = DatabaseEndpoint::new(
                host.unwrap_or_default(),
                name.unwrap_or_default(),
                "",
                secret(DATABASE_PASSWORD),
            );
            endpoint.user = text("ODOO_DATABASE_USER");
            if let Some(port) = text("ODOO_DATABASE_PORT_NUMBER") {
                match port.parse() {
                    Ok(port) => endpoint.port = port,
                    Err(_) => reader.left("database.port", port, "is not a port"),
                }
            }
            spec.database = Some(endpoint);
        }
    }
    if let Some(email) = text("ODOO_EMAIL") {
        spec.admin = Some(AdminAccount {
            email,
            password: secret(ADMIN_PASSWORD),
        });
    }
    match text("ODOO_LOAD_DEMO_DATA").as_deref() {
        None | Some("no" | "") => {}
        Some("yes") => spec.demo_data = true,
        Some(other) => reader.left("demo_data", other, "is neither yes nor no"),
    }
    for file in mounted {
        if !matches!(file, DATABASE_PASSWORD | ADMIN_PASSWORD) {
            reader.left(
                &format!("environment.{file}_FILE"),
                "",
                "is in a file, which cannot be read",
            );
        }
    }
}

fn read_resources(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    let number = |reader: &Reader<'_>, path: &str| reader.at(path).filter(|value| !value.is_null()).cloned();
    let cpu = |value: &Value| value.as_i64().and_then(Cpu::from_nano_cpus);
    let bytes = |value: &Value| value.as_u64().map(Bytes::new);
    let mut limit = |path: &str, field: &str, take: &mut dyn FnMut(&Value) -> bool| match number(reader, path) {
        Some(value) if !take(&value) => reader.left(field, value.to_string(), "is not an amount"),
        None => reader.left(field, "", "the service has no limit"),
        Some(_) => {}
    };
    limit("/Resources/Limits/NanoCPUs", "resources.cpu", &mut |value| {
        cpu(value).map(|cpu| spec.resources.cpu = cpu).is_some()
    });
    limit("/Resources/Limits/MemoryBytes", "resources.memory", &mut |value| {
        bytes(value).map(|memory| spec.resources.memory = memory).is_some()
    });
    let reserved = |reader: &Reader<'_>, path: &str| number(reader, path).filter(|value| value.as_u64() != Some(0));
    if let Some(value) = reserved(reader, "/Resources/Reservations/NanoCPUs") {
        spec.resources.cpu_request = cpu(&value);
        if spec.resources.cpu_request.is_none() {
            reader.left("resources.cpu_request", value.to_string(), "is not an amount");
        }
    }
    if let Some(value) = reserved(reader, "/Resources/Reservations/MemoryBytes") {
        spec.resources.memory_request = bytes(&value);
        if spec.resources.memory_request.is_none() {
            reader.left("resources.memory_request", value.to_string(), "is not an amount");
        }
    }
}

/// From our label; today's services have nothing but the quota.
fn read_storage(reader: &mut Reader<'_>, disk: Disk, spec: &mut InstanceSpec) {
    match reader.label(label::STORAGE).map(str::to_owned) {
        Some(text) => match text.parse() {
            Ok(bytes) => spec.storage = Bytes::new(bytes),
            Err(_) => reader.left("storage", text, "is not a number of bytes"),
        },
        None => match disk.quota {
            Some(quota) => spec.storage = Bytes::new(quota),
            None => reader.left("storage", "", "the directory has no quota that can be read"),
        },
    }
}

fn read_labels(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    let labels = reader.service.pointer("/Spec/Labels").and_then(Value::as_object);
    for (key, value) in labels.into_iter().flatten() {
        if convert::is_platform_label(key) {
            continue;
        }
        let text = value.as_str().unwrap_or_default();
        match (key.parse::<LabelKey>(), text.parse::<LabelValue>()) {
            (Ok(key), Ok(value)) => {
                spec.labels.insert(key, value);
            }
            _ => reader.unparsed.push(Unparsed::new(
                format!("labels.{key}"),
                text,
                "is not a label that all platforms take",
            )),
        }
    }
}

fn read_scheduling(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    spec.scheduling.stop_grace_seconds = DOCKER_GRACE_SECONDS;
    if let Some(value) = reader.at("/ContainerSpec/StopGracePeriod").cloned() {
        let seconds = value.as_u64().filter(|nanos| nanos % 1_000_000_000 == 0);
        match seconds.and_then(|nanos| u16::try_from(nanos / 1_000_000_000).ok()) {
            Some(seconds) => spec.scheduling.stop_grace_seconds = seconds,
            None => reader.left(
                "scheduling.stop_grace_seconds",
                value.to_string(),
                "is not whole seconds",
            ),
        }
    }
    let constraints = reader.at("/Placement/Constraints").and_then(Value::as_array).cloned();
    for constraint in constraints.unwrap_or_default() {
        let text = constraint.as_str().unwrap_or_default();
        // A hold of ours, and none of the spec's.
        if fence::is_fence(text) {
            continue;
        }
        let parsed = text.split_once("==").and_then(|(key, value)| {
            let key = key.trim().strip_prefix("node.labels.")?.parse().ok()?;
            Some((key, value.trim().parse().ok()?))
        });
        match parsed {
            Some((key, value)) => {
                spec.scheduling.node_selector.insert(key, value);
            }
            None => reader.left("scheduling.node_selector", text, "is not an equality of a node label"),
        }
    }
}

fn read_probes(reader: &mut Reader<'_>, spec: &mut InstanceSpec) {
    let check = reader
        .at("/ContainerSpec/Healthcheck")
        .filter(|check| check.is_object())
        .cloned();
    match check.as_ref().map(convert::probes) {
        Some(Some(probes)) => spec.probes = probes,
        // Its text may hold a secret.
        Some(None) => reader.left("probes", "", "is a healthcheck of somebody else"),
        // Nothing looks whether it answers, so nothing restarts it.
        None => spec.probes.liveness = false,
    }
}

/// The hosts that are routed, in the rule's order, and the route that they stand for.
fn read_route(reader: &mut Reader<'_>, name: &ObjectName, spec: &mut InstanceSpec, base: &Host) -> (Vec<Host>, bool) {
    let rule = match reader.label(&format!("traefik.http.routers.{name}.rule")) {
        Some(rule) => rule.to_owned(),
        None => {
            reader.left("route", "", "no rule routes anything to the service");
            return (Vec::new(), false);
        }
    };
    let labels = reader.service.pointer("/Spec/Labels").and_then(Value::as_object);
    let tls = labels.is_some_and(|labels| {
        let prefix = format!("traefik.http.routers.{name}.tls");
        labels.keys().any(|key| key.starts_with(&prefix))
    });
    spec.route.subdomain = reader.parsed_label(label::SUBDOMAIN, "route.subdomain");
    let default = spec.hosts(base).ok().and_then(|hosts| hosts.into_iter().next());
    let mut hosts: Vec<Host> = Vec::new();
    for text in traefik::hosts(&rule) {
        let host: Host = match text.parse() {
            Ok(host) => host,
            Err(error) => {
                reader.left("route", text, error.message());
                continue;
            }
        };
        hosts.push(host.clone());
        if default.as_ref() == Some(&host) {
            continue;
        }
        let under = host
            .as_str()
            .strip_suffix(base.as_str())
            .and_then(|rest| rest.strip_suffix('.'))
            .and_then(|label| label.parse().ok());
        match under {
            Some(label) if spec.route.subdomain.is_none() && hosts.len() == 1 => spec.route.subdomain = Some(label),
            _ if host.is_under(base) => reader.left("route", host.as_str(), "is a second host under the base domain"),
            _ => {
                spec.route.custom_domains.insert(host);
            }
        }
    }
    if hosts.is_empty() {
        reader.left("route", rule, "names no host");
    }
    (hosts, tls)
}

/// Parts of a body that a spec has nothing for.
fn read_leftovers(reader: &mut Reader<'_>) {
    let is_set = |value: &&Value| !matches!(value, Value::Null) && value.as_array().is_none_or(|list| !list.is_empty());
    for (path, field, open) in [
        // Arguments may be secrets.
        ("/ContainerSpec/Command", "command", false),
        ("/ContainerSpec/Args", "args", false),
        ("/ContainerSpec/User", "user", true),
        ("/ContainerSpec/Configs", "configs", true),
    ] {
        if let Some(value) = reader.at(path).filter(is_set).cloned() {
            let raw = if open { value.to_string() } else { String::new() };
            reader.left(field, raw, "the spec has nothing for it; it is kept");
        }
    }
    if let Some(hold) = reader.label(label::HOLD).map(str::to_owned)
        && Hold::from_name(&hold).is_none()
    {
        reader.left(
            "hold",
            hold,
            "is no hold that this library knows; it counts as maintenance",
        );
    }
    let mounts = reader.at("/ContainerSpec/Mounts").and_then(Value::as_array).cloned();
    let mut data = 0;
    for mount in mounts.unwrap_or_default() {
        let text = |name: &str| mount.get(name).and_then(Value::as_str).unwrap_or_default();
        if text("Target") == convert::DATA_TARGET && text("Type") == "bind" {
            data += 1;
        } else {
            reader.left(
                &format!("mounts.{}", text("Target")),
                format!("{} {}", text("Type"), text("Source")),
                "the spec has nothing for it; it is kept",
            );
        }
    }
    if data == 0 {
        reader.left("storage", "", "no directory is mounted as the instance's data");
    }
    let body = reader.service.get("Spec").unwrap_or(&Value::Null);
    match convert::replicas(body) {
        Some(0 | 1) => {}
        Some(more) => reader.left("replicas", more.to_string(), "an instance is one process"),
        None => reader.left(
            "mode",
            body.get("Mode").map(ToString::to_string).unwrap_or_default(),
            "is not replicated",
        ),
    }
}
