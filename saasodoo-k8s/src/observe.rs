//! From objects to an [`Instance`]: what the Deployment itself shows is read from it, so that changes by hand are seen;
//! the rest is in its annotations. Total: what cannot be understood is told in `unparsed`, and hides nothing else.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use saasodoo_core::{
    Addons, AdminAccount, Bytes, Cpu, DatabaseEndpoint, Endpoints, Host, Instance, InstanceId, InstanceSpec, LabelKey,
    LabelValue, ObjectName, Origin, Probes, Provenance, Resources, Route, Scheduling, Secret, Source, Storage,
    StorageLocation, StorageState, Subdomain, Unparsed,
};

use crate::config::KubernetesConfig;
use crate::convert::{recorded_period, startup_budget};
use crate::facts::facts;
use crate::names::{
    ADDONS, CLAIM, CONTAINER, CUSTOM_DOMAINS, CUSTOMER, DATA, DATABASE, DATABASE_NAME, DEFAULT_REQUESTS, DISPLAY_NAME,
    HOSTS, HTTP_PORT, ODOO_VERSION, PROBE_PERIOD, STARTUP_SECONDS, STORAGE, SUBDOMAIN, TOKEN, hash, id_of, is_ours,
};
use crate::read::is_usable;
use crate::views::{ClaimView, ContainerView, DeploymentView, PodView, ProbeView, View};

/// What an observation needs to know of the configuration.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    namespace: String,
    base: Host,
    tls: bool,
    data_path: String,
}

impl Observer {
    pub(crate) fn new(config: &KubernetesConfig) -> Self {
        Self {
            namespace: config.common.namespace.clone(),
            base: config.base_domain().clone(),
            tls: config.routing.has_tls(),
            data_path: config.data_path.clone(),
        }
    }
}

/// What is known of the data claim.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ClaimSeen<'a> {
    /// Nobody asked.
    NotRead,
    /// The server says that it is not there.
    Missing,
    /// It is there.
    Found(&'a ClaimView),
}

/// The identity of a Deployment's instance. One whose labels say nothing is listed under the Deployment's own UID, so
/// that it is not left out.
pub(crate) fn identity(deployment: &DeploymentView) -> Option<InstanceId> {
    id_of(deployment).or_else(|| deployment.uid().parse().ok())
}

/// True for a pod that the Deployment's selector fits.
pub(crate) fn belongs(deployment: &DeploymentView, pod: &PodView) -> bool {
    let wanted = &deployment.spec.selector.match_labels;
    !wanted.is_empty() && wanted.iter().all(|(key, value)| pod.label(key) == Some(value))
}

/// The name of the claim with the instance's data: the one that is mounted, never one computed from a name.
pub(crate) fn data_claim<'a>(deployment: &'a DeploymentView, data_path: &str) -> Option<&'a str> {
    let template = &deployment.spec.template.spec;
    let claim_of = |volume: &str| {
        let volume = template.volumes.iter().find(|other| other.name == volume)?;
        Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str())
    };
    let mounted = main_container(deployment)
        .into_iter()
        .flat_map(|container| &container.volume_mounts)
        .find(|mount| mount.mount_path == data_path)
        .and_then(|mount| claim_of(&mount.name));
    mounted
        .or_else(|| deployment.annotation(CLAIM))
        .filter(|name| !name.is_empty())
}

/// The container that runs Odoo.
pub(crate) fn main_container(deployment: &DeploymentView) -> Option<&ContainerView> {
    let containers = &deployment.spec.template.spec.containers;
    containers
        .iter()
        .find(|container| container.name == CONTAINER)
        .or_else(|| containers.first())
}

/// Puts one observation together. `pods` are those that [belong](belongs) to the Deployment.
pub(crate) fn observe(
    observer: &Observer,
    deployment: &DeploymentView,
    pods: &[&PodView],
    claim: ClaimSeen<'_>,
    source: Source,
    now: Timestamp,
) -> Instance {
    let mut reader = Reader {
        observer,
        deployment,
        unparsed: Vec::new(),
    };
    let mut spec = reader.spec();
    let storage = reader.storage(claim, &mut spec);
    let hosts = reader.hosts(&spec);
    let name = deployment.name();
    let internal = format!("http://{name}.{}.svc:{HTTP_PORT}", observer.namespace);
    let unparsed = reader.unparsed;
    let mut provenance = Provenance::live(revision_of(deployment), now);
    provenance.source = source;
    provenance.created_at = deployment.created_at();
    // A mark that cannot be read is nobody's.
    provenance.token = deployment.annotation(TOKEN).and_then(|token| token.parse().ok());
    provenance.origin = if is_ours(deployment) {
        Origin::Saasodoo
    } else {
        Origin::Legacy
    };
    let name = ObjectName::existing(name).unwrap_or_else(|_| spec.object_name());
    let facts = facts(deployment, pods, now);
    Instance::observed(saasodoo_core::BackendKind::Kubernetes, name, spec, facts, provenance)
        .with_endpoints(Endpoints::new(Some(internal), hosts, observer.tls))
        .with_storage(storage)
        .with_unparsed(unparsed)
}

/// The revision of an instance: it changes when somebody changes the instance, and not with each report of the platform,
/// as the server's own version does. The generation stands for the spec and the annotations.
pub(crate) fn revision_of(deployment: &DeploymentView) -> String {
    let mut text = deployment.uid().to_owned();
    for (key, value) in deployment.metadata.labels.iter().flatten() {
        text.push_str(&format!("\n{key}={value}"));
    }
    format!("{}-{}", deployment.metadata.generation.unwrap_or_default(), hash(&text))
}

/// Completes the observation of a guide's instance with the hosts of its route, which only that object has.
pub(crate) fn with_route_hosts(observer: &Observer, mut instance: Instance, hosts: Vec<Host>) -> Instance {
    let default = instance.spec.database_name.host_label();
    let mut route = Route::default();
    for host in &hosts {
        let label = host
            .as_str()
            .strip_suffix(observer.base.as_str())
            .and_then(|rest| rest.strip_suffix('.'));
        match label {
            Some(label) if label == default => {}
            Some(label) if route.subdomain.is_none() => match label.parse::<Subdomain>() {
                Ok(subdomain) => route.subdomain = Some(subdomain),
                Err(_) => drop(route.custom_domains.insert(host.clone())),
            },
            _ => drop(route.custom_domains.insert(host.clone())),
        }
    }
    instance.spec.route = route;
    instance.endpoints = Endpoints::new(instance.endpoints.internal.take(), hosts, observer.tls);
    instance.unparsed.retain(|left| left.field != "route");
    instance
}

struct Reader<'a> {
    observer: &'a Observer,
    deployment: &'a DeploymentView,
    unparsed: Vec<Unparsed>,
}

impl Reader<'_> {
    fn left(&mut self, field: &str, raw: &str, reason: impl Into<String>) {
        self.unparsed.push(Unparsed::new(field, raw, reason));
    }

    /// Reads a text, or says why not.
    fn parse<T: std::str::FromStr<Err = saasodoo_core::Error>>(&mut self, field: &str, text: &str) -> Option<T> {
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.left(field, text, error.message());
                None
            }
        }
    }

    fn annotation<T: std::str::FromStr<Err = saasodoo_core::Error>>(&mut self, field: &str, key: &str) -> Option<T> {
        let text = self.deployment.annotation(key)?;
        self.parse(field, text)
    }

    fn spec(&mut self) -> InstanceSpec {
        let deployment = self.deployment;
        let id = match id_of(deployment) {
            Some(id) => id,
            None => {
                self.left(
                    "id",
                    "",
                    "its labels do not name an instance; this is the Deployment's own UID",
                );
                identity(deployment).unwrap_or_else(|| InstanceId::new(uuid::Uuid::nil()))
            }
        };
        let database_name = self.database_name(id);
        let container = main_container(deployment).cloned().unwrap_or_default();
        let image = self.parse("image", &container.image);
        let image = image.unwrap_or_else(|| "unknown".parse().unwrap_or_else(|_| unreachable!("a valid image")));
        let mut spec = InstanceSpec::new(id, database_name, image);
        spec.display_name = deployment.annotation(DISPLAY_NAME).unwrap_or_default().to_owned();
        let customer = deployment.label(CUSTOMER).map(str::to_owned);
        spec.customer_id = customer.and_then(|text| self.parse("customer_id", &text));
        spec.odoo_version = self.annotation("odoo_version", ODOO_VERSION);
        self.environment(&container, &mut spec);
        spec.resources = self.resources(&container);
        spec.route = self.route();
        spec.probes = self.probes(&container);
        spec.addons = self.addons();
        spec.labels = self.labels();
        spec.scheduling = self.scheduling();
        if deployment.spec.replicas.is_some_and(|replicas| replicas > 1) {
            self.left("replicas", "", "several pods on one data directory damage it");
        }
        if deployment.spec.strategy.type_.as_deref() != Some("Recreate") {
            self.left("strategy", "", "not Recreate: two pods run at once during a change");
        }
        spec
    }

    fn database_name(&mut self, id: InstanceId) -> saasodoo_core::DatabaseName {
        let deployment = self.deployment;
        let labels = &deployment.spec.template.metadata.labels;
        let recorded = deployment
            .annotation(DATABASE_NAME)
            .or_else(|| deployment.label(DATABASE))
            .or_else(|| labels.get(DATABASE).map(String::as_str));
        let from_name = || {
            let rest = deployment.name().strip_prefix("odoo-")?;
            rest.strip_suffix(&format!("-{}", id.short()))
        };
        let text = recorded.or_else(from_name).unwrap_or_default();
        self.parse("database_name", text)
            .unwrap_or_else(|| "unknown".parse().unwrap_or_else(|_| unreachable!("a valid name")))
    }

    fn environment(&mut self, container: &ContainerView, spec: &mut InstanceSpec) {
        let mut known: BTreeMap<&str, String> = BTreeMap::new();
        let (mut user_elsewhere, mut has_password, mut has_admin_password) = (false, false, false);
        for variable in &container.env {
            let name = variable.name.as_str();
            match (name, &variable.value, &variable.value_from) {
                ("ODOO_DATABASE_USER", None, Some(_)) => user_elsewhere = true,
                ("ODOO_DATABASE_PASSWORD" | "ODOO_DATABASE_PASSWORD_FILE", _, _) => has_password = true,
                ("ODOO_PASSWORD" | "ODOO_PASSWORD_FILE", _, _) => has_admin_password = true,
                (
                    "ODOO_DATABASE_HOST"
                    | "ODOO_DATABASE_PORT_NUMBER"
                    | "ODOO_DATABASE_PORT"
                    | "ODOO_DATABASE_NAME"
                    | "ODOO_DATABASE_USER"
                    | "ODOO_EMAIL"
                    | "ODOO_LOAD_DEMO_DATA",
                    Some(value),
                    _,
                ) => drop(known.insert(name, value.clone())),
                (_, _, Some(_)) => self.left(
                    &format!("environment.{name}"),
                    "",
                    "its value comes from another object",
                ),
                (_, value, None) => {
                    if let Some(name) = self.parse("environment", name) {
                        spec.environment.insert(name, value.clone().unwrap_or_default());
                    }
                }
            }
        }
        for source in &container.env_from {
            let of = source.secret_ref.as_ref().or(source.config_map_ref.as_ref());
            self.left(
                "environment",
                of.map_or("", |of| &of.name),
                "its variables come from another object",
            );
        }
        // The guide's client sets a port that the image does not read.
        let port = known
            .remove("ODOO_DATABASE_PORT_NUMBER")
            .or_else(|| known.remove("ODOO_DATABASE_PORT"));
        if let (Some(host), Some(name)) = (known.remove("ODOO_DATABASE_HOST"), known.remove("ODOO_DATABASE_NAME")) {
            let mut database = DatabaseEndpoint::new(host, name, "", Secret::withheld());
            database.user = known.remove("ODOO_DATABASE_USER");
            if user_elsewhere || !has_password {
                self.left("database.user", "", "the credentials are in an object of somebody else");
            }
            if let Some(port) = port {
                match port.parse() {
                    Ok(port) => database.port = port,
                    Err(_) => self.left("database.port", &port, "is not a port"),
                }
            }
            spec.database = Some(database);
        }
        if let Some(email) = known.remove("ODOO_EMAIL") {
            spec.admin = Some(AdminAccount {
                email,
                password: Secret::withheld(),
            });
        } else if has_admin_password {
            self.left("admin.email", "", "there is a password without an address");
        }
        spec.demo_data = known.remove("ODOO_LOAD_DEMO_DATA").is_some_and(|value| value == "yes");
    }

    fn resources(&mut self, container: &ContainerView) -> Resources {
        let mut resources = Resources::default();
        let (limits, requests) = (&container.resources.limits, &container.resources.requests);
        match limits.get("cpu") {
            Some(text) => resources.cpu = self.cpu("resources.cpu", text).unwrap_or(resources.cpu),
            None => self.left("resources.cpu", "", "there is no limit"),
        }
        match limits.get("memory") {
            Some(text) => resources.memory = self.bytes("resources.memory", text).unwrap_or(resources.memory),
            None => self.left("resources.memory", "", "there is no limit"),
        }
        let defaults = default_requests(self.deployment);
        resources.cpu_request = requests
            .get("cpu")
            .and_then(|text| self.cpu("resources.cpu_request", text))
            .filter(|cpu| defaults.0 != Some(*cpu));
        resources.memory_request = requests
            .get("memory")
            .and_then(|text| self.bytes("resources.memory_request", text))
            .filter(|memory| defaults.1 != Some(*memory));
        resources
    }

    fn cpu(&mut self, field: &str, text: &str) -> Option<Cpu> {
        self.parse(field, text)
    }

    fn bytes(&mut self, field: &str, text: &str) -> Option<Bytes> {
        match Bytes::from_kubernetes(text) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.left(field, text, error.message());
                None
            }
        }
    }

    fn route(&mut self) -> Route {
        let mut route = Route::default();
        route.subdomain = self.annotation("route.subdomain", SUBDOMAIN);
        let custom = self.deployment.annotation(CUSTOM_DOMAINS).unwrap_or_default();
        let custom: Vec<String> = custom
            .split(',')
            .filter(|host| !host.is_empty())
            .map(str::to_owned)
            .collect();
        route.custom_domains = custom
            .iter()
            .filter_map(|host| self.parse("route.custom_domains", host))
            .collect();
        route
    }

    /// All hosts, as they were recorded when the route was made.
    fn hosts(&mut self, spec: &InstanceSpec) -> Vec<Host> {
        match self.deployment.annotation(HOSTS) {
            Some(text) => {
                let texts: Vec<String> = text
                    .split(',')
                    .filter(|host| !host.is_empty())
                    .map(str::to_owned)
                    .collect();
                texts.iter().filter_map(|host| self.parse("route", host)).collect()
            }
            None => {
                self.left("route", "", "the hosts are known to the route object only");
                spec.hosts(&self.observer.base).unwrap_or_default()
            }
        }
    }

    fn probes(&mut self, container: &ContainerView) -> Probes {
        let mut probes = Probes::default();
        let startup = container.startup_probe.as_ref();
        let liveness = container.liveness_probe.as_ref();
        let main = container.readiness_probe.as_ref().or(liveness).or(startup);
        probes.liveness = liveness.is_some();
        let Some(main) = main else {
            self.left("probes", "", "there are none: a process that runs counts as ready");
            return probes;
        };
        match main.http_get.as_ref().and_then(|get| get.path.clone()) {
            Some(path) => probes.path = self.parse("probes.path", &path).unwrap_or(probes.path),
            None => self.left("probes.path", "", "the probe asks no path"),
        }
        let number = |key: &str| -> Option<u16> { self.deployment.annotation(key).and_then(|text| text.parse().ok()) };
        let (period, failures) = (seconds(main.period_seconds), seconds(main.failure_threshold));
        probes.period_seconds = period.unwrap_or(10);
        // What was recorded is the truth as long as the object still says what was made of it.
        let recorded = number(PROBE_PERIOD)
            .zip(period.zip(failures))
            .and_then(|(recorded, (period, failures))| recorded_period(recorded, period, failures));
        probes.period_seconds = recorded.unwrap_or(probes.period_seconds);
        // Without a startup probe the liveness probe ends a start that takes too long.
        let budget = |probe: &ProbeView| {
            let rounds = u64::from(seconds(probe.failure_threshold).unwrap_or(3));
            let period = u64::from(seconds(probe.period_seconds).unwrap_or(10));
            let total = u64::from(seconds(probe.initial_delay_seconds).unwrap_or(0)) + rounds * period;
            u16::try_from(total).unwrap_or(u16::MAX)
        };
        let rendered = startup.or(liveness).map(budget);
        if let Some(recorded) = number(STARTUP_SECONDS) {
            probes.startup_seconds = recorded;
            if rendered == Some(startup_budget(&probes)) {
                return probes;
            }
        }
        probes.startup_seconds = rendered.unwrap_or(Probes::default().startup_seconds);
        probes
    }

    fn addons(&mut self) -> Addons {
        let text = self.deployment.annotation(ADDONS).unwrap_or_default();
        if text.is_empty() {
            return Addons::default();
        }
        serde_json::from_str(text).unwrap_or_else(|error| {
            self.left("addons", text, error.to_string());
            Addons::default()
        })
    }

    fn labels(&mut self) -> BTreeMap<LabelKey, LabelValue> {
        let labels = self.deployment.metadata.labels.clone().unwrap_or_default();
        let mut own = BTreeMap::new();
        for (key, value) in labels.iter().filter(|(key, _)| !is_platform_label(key)) {
            if let (Some(key), Some(value)) = (self.parse("labels", key), self.parse("labels", value)) {
                own.insert(key, value);
            }
        }
        own
    }

    fn scheduling(&mut self) -> Scheduling {
        let pod = self.deployment.spec.template.spec.clone();
        let mut scheduling = Scheduling::default();
        for (key, value) in &pod.node_selector {
            if let (Some(key), Some(value)) = (
                self.parse("scheduling.node_selector", key),
                self.parse("scheduling.node_selector", value),
            ) {
                scheduling.node_selector.insert(key, value);
            }
        }
        let mut tolerated = BTreeSet::new();
        for toleration in &pod.tolerations {
            match (&toleration.key, toleration.operator.as_deref()) {
                (Some(key), Some("Exists")) if toleration.effect.is_none() => {
                    tolerated.extend(self.parse("scheduling.tolerations", key));
                }
                (key, _) => {
                    let key = key.clone().unwrap_or_default();
                    self.left("scheduling.tolerations", &key, "is not the toleration of a key alone");
                }
            }
        }
        scheduling.tolerations = tolerated;
        let class = pod.priority_class_name.filter(|class| !class.is_empty());
        scheduling.priority_class = class.and_then(|class| self.parse("scheduling.priority_class", &class));
        if let Some(grace) = pod.termination_grace_period_seconds {
            if grace > 0 {
                scheduling.stop_grace_seconds = u16::try_from(grace).unwrap_or(u16::MAX);
            } else {
                self.left(
                    "scheduling.stop_grace_seconds",
                    &grace.to_string(),
                    "the server forgets such a pod before its process has ended, and the next one starts beside it",
                );
            }
        }
        scheduling
    }

    fn storage(&mut self, claim: ClaimSeen<'_>, spec: &mut InstanceSpec) -> Storage {
        let recorded: Option<Bytes> = self.annotation("storage", STORAGE);
        let mut storage = Storage::default();
        let name = data_claim(self.deployment, &self.observer.data_path);
        // A copy of what the claim says: there to be read without it.
        let directory = self.deployment.annotation(DATA).and_then(directory_of);
        let location = |volume: Option<String>, directory: Option<&str>| {
            name.map(|name| StorageLocation::Claim {
                namespace: self.observer.namespace.clone(),
                name: name.to_owned(),
                volume,
                directory: directory.map(str::to_owned),
            })
        };
        storage.requested = recorded;
        storage.location = location(None, directory);
        match claim {
            ClaimSeen::NotRead => storage.state = StorageState::NotObserved,
            ClaimSeen::Missing => storage.state = StorageState::Missing,
            ClaimSeen::Found(claim) => {
                let volume = claim.spec.volume_name.clone().filter(|volume| !volume.is_empty());
                storage.location = location(volume, claim.annotation(DATA).and_then(directory_of).or(directory));
                let quantity = |text: Option<&String>| text.and_then(|text| Bytes::from_kubernetes(text).ok());
                storage.requested = quantity(claim.spec.resources.requests.get("storage")).or(recorded);
                // The size of a static volume is a number in its object that nothing enforces.
                storage.capacity = quantity(claim.status.capacity.get("storage")).filter(|_| !is_static(claim));
                storage.state = match claim.status.phase.as_str() {
                    _ if !is_usable(claim) => StorageState::Missing,
                    "Bound" if is_static(claim) => StorageState::Ready,
                    "Bound" if storage.requested > storage.capacity => StorageState::Growing,
                    "Bound" => StorageState::Ready,
                    _ => StorageState::Pending,
                };
            }
        }
        match storage.requested {
            Some(size) => spec.storage = size,
            None => self.left("storage", "", "the size is known to the claim only"),
        }
        storage
    }
}

/// The directory that a record of where the data came from names.
pub(crate) fn directory_of(record: &str) -> Option<&str> {
    record.strip_prefix("directory:")
}

/// True for a claim whose volume was made by hand, or for a directory, and not by a class.
pub(crate) fn is_static(claim: &ClaimView) -> bool {
    claim.spec.storage_class_name.as_deref().unwrap_or_default().is_empty()
}

fn seconds(value: Option<i32>) -> Option<u16> {
    value
        .and_then(|value| u16::try_from(value).ok())
        .filter(|value| *value > 0)
}

/// The requests that were computed when the Deployment was last written.
fn default_requests(deployment: &DeploymentView) -> (Option<Cpu>, Option<Bytes>) {
    let text = deployment.annotation(DEFAULT_REQUESTS).unwrap_or_default();
    let value = |key: &str| {
        text.split(',')
            .find_map(|part| part.strip_prefix(key)?.strip_prefix('='))
    };
    (
        value("cpu").and_then(|text| text.parse().ok()),
        value("memory").and_then(|text| text.parse().ok()),
    )
}

/// True for labels that are not the caller's: ours, the guide's, and those of Kubernetes itself.
fn is_platform_label(key: &str) -> bool {
    let prefix = key.split_once('/').map(|(prefix, _)| prefix);
    matches!(key, "app" | "managed-by" | "instance-id" | "database")
        || ["traefik.", "saasodoo.", "com.docker."]
            .iter()
            .any(|ours| key.starts_with(ours))
        || prefix.is_some_and(|prefix| prefix.ends_with("kubernetes.io") || prefix.ends_with("k8s.io"))
}
