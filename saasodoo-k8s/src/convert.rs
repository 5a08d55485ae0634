//! From a spec to objects. Pure, and in JSON: what a server gets is exactly what is written here, whichever version of
//! the API the client's types describe (a test reads every object back through those types and finds nothing lost).

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use saasodoo_core::{
    Bytes, Cpu, DataPath, Host, InstanceSpec, LabelKey, LabelValue, ObjectName, Probes, Secret, Transition,
};
use serde_json::{Map, Value, json};

use crate::config::{AdoptionSource, KubernetesConfig};
use crate::names::{
    ADDONS, ADMIN_PASSWORD_KEY, APP, CLAIM, CONTAINER, CREATION, CUSTOM_DOMAINS, CUSTOMER, DATA, DATA_VOLUME, DATABASE,
    DATABASE_NAME, DATABASE_PASSWORD_KEY, DEFAULT_REQUESTS, DISPLAY_NAME, FULL_ID, HOSTS, HTTP_PORT, MANAGED_BY,
    ODOO_VERSION, PROBE_PERIOD, SECRET_PATH, SECRET_VOLUME, SHORT_ID, STARTUP_SECONDS, STORAGE, SUBDOMAIN, TOKEN,
    TRANSITION, VERSION, WEBSOCKET_PORT, hash, host_label,
};

use crate::wire::{CLAIM as CLAIM_KIND, DEPLOYMENT, Kind, NETWORK_POLICY, SECRET, SERVICE, VOLUME};

type Texts = BTreeMap<String, String>;

/// Everything that the objects of one new instance are made of.
#[derive(Debug, Clone)]
pub(crate) struct Blueprint<'a> {
    pub(crate) config: &'a KubernetesConfig,
    pub(crate) spec: &'a InstanceSpec,
    pub(crate) name: ObjectName,
    /// All hosts, the default one first.
    pub(crate) hosts: &'a [Host],
    /// The claim with the data.
    pub(crate) claim: String,
    /// Which call makes the objects.
    pub(crate) creation: &'a str,
    /// What its caller wants the Deployment to be known by.
    pub(crate) token: Option<uuid::Uuid>,
    /// Where the data comes from, as an annotation.
    pub(crate) data: String,
    pub(crate) stopped: bool,
}

/// An object that others belong to.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl Blueprint<'_> {
    /// The labels of every object.
    fn labels(&self) -> Texts {
        let mut labels = pod_labels(self.spec);
        if let Some(version) = self.spec.effective_version() {
            labels.insert(VERSION.to_owned(), version.to_string());
        }
        labels
    }

    /// The metadata of an object; owned by the Deployment, or by nobody.
    fn metadata(&self, name: &str, owner: Option<&Owner>) -> Value {
        let mut metadata = json!({
            "name": name,
            "labels": self.labels(),
            "annotations": {CREATION: self.creation},
        });
        if let Some(owner) = owner {
            // Blocking: the Deployment goes last, so that waiting for it is waiting for all.
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "name": owner.name,
                "uid": owner.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }]);
        }
        metadata
    }

    /// The Deployment, which is the claim on the name and carries what no other object shows.
    pub(crate) fn deployment(&self) -> Value {
        let Self { config, spec, .. } = self;
        let mut metadata = self.metadata(self.name.as_str(), None);
        for host in self.hosts {
            metadata["labels"][host_label(host.as_str())] = json!("true");
        }
        let mut annotations = self.annotations();
        annotations.insert(CREATION.to_owned(), self.creation.to_owned());
        annotations.extend(self.token.map(|token| (TOKEN.to_owned(), token.to_string())));
        metadata["annotations"] = json!(annotations);
        let probes = Rendered::of(&spec.probes);
        let mut container = json!({
            "name": CONTAINER,
            "image": spec.image.as_str(),
            "imagePullPolicy": config.image_pull_policy.as_str(),
            "ports": [
                {"name": "http", "containerPort": HTTP_PORT, "protocol": "TCP"},
                {"name": "websocket", "containerPort": WEBSOCKET_PORT, "protocol": "TCP"},
            ],
            "env": environment(spec),
            "resources": resources(config, spec),
            "startupProbe": probes.startup,
            "readinessProbe": probes.readiness,
            "volumeMounts": [
                {"name": DATA_VOLUME, "mountPath": config.data_path},
                {"name": SECRET_VOLUME, "mountPath": SECRET_PATH, "readOnly": true},
            ],
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": capabilities(config),
            },
        });
        if let Some(liveness) = probes.liveness {
            container["livenessProbe"] = liveness;
        }
        json!({
            "apiVersion": DEPLOYMENT.api_version(),
            "kind": DEPLOYMENT.kind,
            "metadata": metadata,
            "spec": {
                "replicas": i32::from(!self.stopped),
                "revisionHistoryLimit": 2,
                "progressDeadlineSeconds": progress_deadline(&spec.probes),
                // Never two pods on one data directory.
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": selector(spec)},
                "template": {
                    "metadata": {"labels": pod_labels(spec), "annotations": {CREATION: self.creation}},
                    "spec": self.pod(container),
                },
            },
        })
    }

    fn pod(&self, container: Value) -> Value {
        let Self { config, spec, .. } = self;
        let security = &config.pod_security;
        let mut context = json!({"seccompProfile": {"type": "RuntimeDefault"}});
        if security.run_as_non_root {
            context["runAsNonRoot"] = json!(true);
        }
        for (key, value) in [
            ("runAsUser", security.run_as_user),
            ("runAsGroup", security.run_as_group),
            ("fsGroup", security.fs_group),
        ] {
            if let Some(value) = value {
                context[key] = json!(value);
            }
        }
        if security.fs_group.is_some() {
            // Walking a large data directory at every start would take minutes.
            context["fsGroupChangePolicy"] = json!("OnRootMismatch");
        }
        let mut pod = json!({
            "automountServiceAccountToken": false,
            // Thousands of Services would fill the environment, and `ODOO_…` is what the image reads.
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": spec.scheduling.stop_grace_seconds,
            "securityContext": context,
            "containers": [container],
            "volumes": [
                {"name": DATA_VOLUME, "persistentVolumeClaim": {"claimName": self.claim}},
                // Mounted also when it is empty: no pod starts before the Secret is there, and it is made only when
                // nothing speaks against the instance any more.
                {"name": SECRET_VOLUME, "secret": {"secretName": self.name.as_str(), "defaultMode": 0o444}},
            ],
        });
        if !spec.scheduling.node_selector.is_empty() {
            pod["nodeSelector"] = json!(spec.scheduling.node_selector);
        }
        if !spec.scheduling.tolerations.is_empty() {
            let tolerations = spec.scheduling.tolerations.iter();
            pod["tolerations"] = tolerations
                .map(|key| json!({"key": key, "operator": "Exists"}))
                .collect();
        }
        if let Some(class) = &spec.scheduling.priority_class {
            pod["priorityClassName"] = json!(class);
        }
        if !config.image_pull_secrets.is_empty() {
            let secrets = config.image_pull_secrets.iter();
            pod["imagePullSecrets"] = secrets.map(|name| json!({"name": name})).collect();
        }
        pod
    }

    fn annotations(&self) -> Texts {
        let spec = self.spec;
        let mut annotations = Texts::new();
        let mut set = |key: &str, value: String| drop(annotations.insert(key.to_owned(), value));
        set(DATABASE_NAME, spec.database_name.to_string());
        set(STORAGE, spec.storage.to_string());
        set(CLAIM, self.claim.clone());
        set(DATA, self.data.clone());
        set(TRANSITION, Transition::Create.as_str().to_owned());
        if !spec.display_name.is_empty() {
            set(DISPLAY_NAME, spec.display_name.clone());
        }
        if let Some(version) = spec.odoo_version {
            set(ODOO_VERSION, version.to_string());
        }
        for (key, value) in route_annotations(spec, self.hosts)
            .into_iter()
            .chain(probe_annotations(&spec.probes))
            .chain(addon_annotations(spec))
            .chain([default_requests(self.config, spec)])
        {
            if let Some(value) = value {
                set(key, value);
            }
        }
        annotations
    }

    /// The Secret with the passwords; empty when there are none.
    pub(crate) fn secret(&self, owner: &Owner) -> Value {
        json!({
            "apiVersion": SECRET.api_version(),
            "kind": SECRET.kind,
            "metadata": self.metadata(self.name.as_str(), Some(owner)),
            "type": "Opaque",
            "data": secrets(self.spec),
        })
    }

    /// The Service in front of the pod.
    pub(crate) fn service(&self, owner: &Owner) -> Value {
        json!({
            "apiVersion": SERVICE.api_version(),
            "kind": SERVICE.kind,
            "metadata": self.metadata(self.name.as_str(), Some(owner)),
            "spec": {
                "type": "ClusterIP",
                "selector": selector(self.spec),
                "ports": [
                    {"name": "http", "port": HTTP_PORT, "targetPort": HTTP_PORT, "protocol": "TCP"},
                    {"name": "websocket", "port": WEBSOCKET_PORT, "targetPort": WEBSOCKET_PORT, "protocol": "TCP"},
                ],
            },
        })
    }

    /// The object that routes hosts to the Service, if the configuration wants one.
    pub(crate) fn route(&self, owner: &Owner) -> Option<(Kind, Value)> {
        let metadata = self.metadata(self.name.as_str(), Some(owner));
        crate::route::object(self.config, metadata, self.name.as_str(), self.hosts, true)
    }

    /// Who may connect, if the configuration says so.
    pub(crate) fn network_policy(&self, owner: &Owner) -> Option<Value> {
        let policy = self.config.network_policy.as_ref()?;
        let mut from = json!({"namespaceSelector": {"matchLabels": policy.from_namespaces}});
        if !policy.from_pods.is_empty() {
            from["podSelector"] = json!({"matchLabels": policy.from_pods});
        }
        Some(json!({
            "apiVersion": NETWORK_POLICY.api_version(),
            "kind": NETWORK_POLICY.kind,
            "metadata": self.metadata(self.name.as_str(), Some(owner)),
            "spec": {
                "podSelector": {"matchLabels": selector(self.spec)},
                "policyTypes": ["Ingress"],
                "ingress": [{
                    "from": [from],
                    "ports": [
                        {"protocol": "TCP", "port": HTTP_PORT},
                        {"protocol": "TCP", "port": WEBSOCKET_PORT},
                    ],
                }],
            },
        }))
    }

    /// The claim for new data. Nothing owns it: data outlives the instance.
    pub(crate) fn claim(&self) -> Value {
        self.claim_of(&self.config.common.storage_class, None)
    }

    /// The claim for a directory that exists.
    pub(crate) fn adopting_claim(&self, volume: &str) -> Value {
        self.claim_of("", Some(volume))
    }

    fn claim_of(&self, class: &str, volume: Option<&str>) -> Value {
        let mut metadata = self.metadata(&self.claim, None);
        metadata["annotations"][DATA] = json!(self.data);
        metadata["annotations"][DATABASE_NAME] = json!(self.spec.database_name);
        let mut claim = json!({
            "apiVersion": CLAIM_KIND.api_version(),
            "kind": CLAIM_KIND.kind,
            "metadata": metadata,
            "spec": {
                "accessModes": [self.config.access_mode],
                "storageClassName": class,
                "resources": {"requests": {"storage": self.spec.storage.to_string()}},
            },
        });
        if let Some(volume) = volume {
            claim["spec"]["volumeName"] = json!(volume);
        }
        claim
    }

    /// The volume that stands for a directory that exists. Its name comes from the directory, so that no two instances
    /// can have one directory.
    pub(crate) fn adopted_volume(&self, source: &AdoptionSource, path: &DataPath) -> (String, Value) {
        let name = adopted_volume_name(source, path);
        let mut metadata = self.metadata(&name, None);
        metadata["annotations"][DATA] = json!(self.data);
        let full = format!("{}/{path}", source.root().trim_end_matches('/'));
        let mut spec = json!({
            "capacity": {"storage": self.spec.storage.to_string()},
            "accessModes": [self.config.access_mode],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "claimRef": {
                "apiVersion": "v1",
                "kind": CLAIM_KIND.kind,
                "namespace": self.config.common.namespace,
                "name": self.claim,
            },
        });
        match source {
            // `Directory`, so that a directory that is not there is an error and not made.
            AdoptionSource::HostPath { .. } => spec["hostPath"] = json!({"path": full, "type": "Directory"}),
            AdoptionSource::Nfs { server, .. } => spec["nfs"] = json!({"server": server, "path": full}),
            AdoptionSource::CephFsCsi {
                driver,
                cluster_id,
                fs_name,
                node_stage_secret,
                root: _,
            } => {
                spec["csi"] = json!({
                    "driver": driver,
                    "volumeHandle": name,
                    "nodeStageSecretRef": {
                        "name": node_stage_secret.name,
                        "namespace": node_stage_secret.namespace,
                    },
                    "volumeAttributes": {
                        "clusterID": cluster_id,
                        "fsName": fs_name,
                        "staticVolume": "true",
                        "rootPath": full,
                    },
                });
            }
        }
        let object = json!({
            "apiVersion": VOLUME.api_version(),
            "kind": VOLUME.kind,
            "metadata": metadata,
            "spec": spec,
        });
        (name, object)
    }
}

/// The name of the volume for a directory.
pub(crate) fn adopted_volume_name(source: &AdoptionSource, path: &DataPath) -> String {
    let place = match source {
        AdoptionSource::HostPath { root } => format!("host {root}"),
        AdoptionSource::CephFsCsi {
            cluster_id,
            fs_name,
            root,
            ..
        } => format!("cephfs {cluster_id} {fs_name} {root}"),
        AdoptionSource::Nfs { server, root } => format!("nfs {server} {root}"),
    };
    format!("saasodoo-data-{}", hash(&format!("{place}/{path}")))
}

/// How an adopted directory is recorded.
pub(crate) fn directory_record(path: &DataPath) -> String {
    format!("directory:{path}")
}

/// The labels of the pods, and with a version of everything else.
fn pod_labels(spec: &InstanceSpec) -> Texts {
    let mut labels = Texts::new();
    for (key, value) in &spec.labels {
        labels.insert(key.to_string(), value.to_string());
    }
    // A label ends in a letter or digit; the original is in an annotation.
    let database = spec.database_name.as_str().trim_end_matches(['-', '_']);
    for (key, value) in [
        (APP, "odoo".to_owned()),
        (MANAGED_BY, "saasodoo".to_owned()),
        (SHORT_ID, spec.id.short().to_string()),
        (DATABASE, database.to_owned()),
        (FULL_ID, spec.id.to_string()),
        ("app.kubernetes.io/name", "odoo".to_owned()),
        ("app.kubernetes.io/managed-by", "saasodoo".to_owned()),
        ("app.kubernetes.io/component", "server".to_owned()),
    ] {
        labels.insert(key.to_owned(), value);
    }
    if let Some(customer) = spec.customer_id {
        labels.insert(CUSTOMER.to_owned(), customer.to_string());
    }
    labels
}

/// What selects the pods: the whole UUID, for two of 10,000 instances may share its first eight digits.
fn selector(spec: &InstanceSpec) -> Value {
    json!({APP: "odoo", FULL_ID: spec.id.to_string()})
}

/// The variables of the container.
fn environment(spec: &InstanceSpec) -> Vec<Value> {
    let mut env = Vec::new();
    let mut set = |name: &str, value: &str| env.push(json!({"name": name, "value": value}));
    if let Some(database) = &spec.database {
        set("ODOO_DATABASE_HOST", &database.host);
        set("ODOO_DATABASE_PORT_NUMBER", &database.port.to_string());
        set("ODOO_DATABASE_NAME", &database.name);
        if let Some(user) = &database.user {
            set("ODOO_DATABASE_USER", user);
        }
        set(
            "ODOO_DATABASE_PASSWORD_FILE",
            &format!("{SECRET_PATH}/{DATABASE_PASSWORD_KEY}"),
        );
    }
    if let Some(admin) = &spec.admin {
        set("ODOO_EMAIL", &admin.email);
        set("ODOO_PASSWORD_FILE", &format!("{SECRET_PATH}/{ADMIN_PASSWORD_KEY}"));
    }
    set("ODOO_LOAD_DEMO_DATA", if spec.demo_data { "yes" } else { "no" });
    for (name, value) in &spec.environment {
        set(name.as_str(), value);
    }
    env
}

/// The data of the Secret. A withheld secret is not there.
pub(crate) fn secrets(spec: &InstanceSpec) -> BTreeMap<&'static str, ByteString> {
    let database = spec.database.as_ref().map(|database| &database.password);
    let admin = spec.admin.as_ref().map(|admin| &admin.password);
    [(DATABASE_PASSWORD_KEY, database), (ADMIN_PASSWORD_KEY, admin)]
        .into_iter()
        .filter_map(|(key, secret)| Some((key, ByteString(secret.and_then(Secret::expose)?.as_bytes().to_vec()))))
        .collect()
}

/// Limits and requests.
pub(crate) fn resources(config: &KubernetesConfig, spec: &InstanceSpec) -> Value {
    let (cpu, memory) = requests(config, spec);
    let limits = &spec.resources;
    json!({
        "limits": {"cpu": limits.cpu.to_string(), "memory": limits.memory.to_string()},
        "requests": {
            "cpu": limits.cpu_request.unwrap_or(cpu).to_string(),
            "memory": limits.memory_request.unwrap_or(memory).to_string(),
        },
    })
}

/// What is requested when the spec does not say.
fn requests(config: &KubernetesConfig, spec: &InstanceSpec) -> (Cpu, Bytes) {
    let ratio = config.request_ratio;
    let cpu = u64::from(spec.resources.cpu.millis()) * u64::from(ratio.cpu_percent) / 100;
    let cpu = u32::try_from(cpu).unwrap_or(u32::MAX);
    // In whole mebibytes: amounts of memory that are no multiple of a page help nobody.
    let memory = spec.resources.memory.get() / 100 * u64::from(ratio.memory_percent);
    let mebibyte = 1u64 << 20;
    (
        Cpu::from_millis(cpu.max(1)),
        Bytes::new((memory / mebibyte * mebibyte).max(mebibyte)),
    )
}

/// The requests that are computed, for the reader.
pub(crate) fn default_requests(config: &KubernetesConfig, spec: &InstanceSpec) -> (&'static str, Option<String>) {
    let (cpu, memory) = requests(config, spec);
    let mut parts = Vec::new();
    if spec.resources.cpu_request.is_none() {
        parts.push(format!("cpu={cpu}"));
    }
    if spec.resources.memory_request.is_none() {
        parts.push(format!("memory={memory}"));
    }
    (DEFAULT_REQUESTS, (!parts.is_empty()).then(|| parts.join(",")))
}

/// The annotations of a route; `None` where there is nothing to say.
pub(crate) fn route_annotations(spec: &InstanceSpec, hosts: &[Host]) -> Vec<(&'static str, Option<String>)> {
    let all = hosts.iter().map(Host::as_str).collect::<Vec<_>>().join(",");
    let custom: Vec<&str> = spec.route.custom_domains.iter().map(Host::as_str).collect();
    vec![
        (HOSTS, Some(all)),
        (SUBDOMAIN, spec.route.subdomain.as_ref().map(ToString::to_string)),
        (CUSTOM_DOMAINS, (!custom.is_empty()).then(|| custom.join(","))),
    ]
}

/// The seconds after which a rollout counts as failed: more than a first start may take.
pub(crate) fn progress_deadline(probes: &Probes) -> u32 {
    u32::from(probes.startup_seconds).max(480) + 120
}

/// How long an answer to a probe may take, in seconds.
const PROBE_TIMEOUT: u16 = 5;

/// The annotations of the probes.
pub(crate) fn probe_annotations(probes: &Probes) -> Vec<(&'static str, Option<String>)> {
    let exact = startup_budget(probes) == probes.startup_seconds;
    let period = probes.period_seconds;
    vec![
        (STARTUP_SECONDS, (!exact).then(|| probes.startup_seconds.to_string())),
        (
            PROBE_PERIOD,
            (readiness_period(period) != period).then(|| period.to_string()),
        ),
    ]
}

/// The annotations about addons.
pub(crate) fn addon_annotations(spec: &InstanceSpec) -> Vec<(&'static str, Option<String>)> {
    let none = spec.addons.custom.is_empty() && spec.addons.disabled.is_empty();
    let text = serde_json::to_string(&spec.addons).ok();
    vec![(ADDONS, text.filter(|_| !none))]
}

/// The probes of the container.
pub(crate) struct Rendered {
    pub(crate) startup: Value,
    pub(crate) readiness: Value,
    pub(crate) liveness: Option<Value>,
}

impl Rendered {
    pub(crate) fn of(probes: &Probes) -> Self {
        let probe = |period: u16, failures: u16| {
            json!({
                "httpGet": {"path": probes.path, "port": HTTP_PORT, "scheme": "HTTP"},
                "periodSeconds": period,
                "timeoutSeconds": PROBE_TIMEOUT,
                "failureThreshold": failures,
            })
        };
        let period = probes.period_seconds;
        let (startup, readiness) = (startup_period(period), readiness_period(period));
        Self {
            startup: probe(startup, probes.startup_seconds.div_ceil(startup)),
            readiness: probe(readiness, readiness_failures(period)),
            // Slower to judge than readiness: a restart costs the tenant more than a minute without traffic.
            liveness: probes.liveness.then(|| probe(period, 6)),
        }
    }
}

/// How often a start is asked about: a tenant waits for it, and it does not last.
fn startup_period(period: u16) -> u16 {
    period.clamp(1, 3)
}

/// How often readiness is asked about. Before Kubernetes 1.22 a pod that has started waits for the next turn, whenever that
/// is, and so does its tenant. Not more often than a question may take.
fn readiness_period(period: u16) -> u16 {
    period.clamp(1, PROBE_TIMEOUT)
}

/// How many answers in a row must be missing until the instance gets no traffic: three periods' worth.
fn readiness_failures(period: u16) -> u16 {
    period.saturating_mul(3).div_ceil(readiness_period(period))
}

/// The period of which these are the readiness probe's period and failures, if `recorded` is not a leftover.
pub(crate) fn recorded_period(recorded: u16, period: u16, failures: u16) -> Option<u16> {
    let same = readiness_period(recorded) == period && readiness_failures(recorded) == failures;
    same.then_some(recorded)
}

/// The seconds that a start gets: a whole number of questions.
pub(crate) fn startup_budget(probes: &Probes) -> u16 {
    let period = startup_period(probes.period_seconds);
    probes.startup_seconds.div_ceil(period).saturating_mul(period)
}

fn capabilities(config: &KubernetesConfig) -> Value {
    let mut capabilities = json!({"drop": ["ALL"]});
    if !config.pod_security.capabilities.is_empty() {
        capabilities["add"] = json!(config.pod_security.capabilities);
    }
    capabilities
}

/// A JSON object of these texts, with `null` where there is none, which in a patch takes a key away.
pub(crate) fn patch_of(values: impl IntoIterator<Item = (impl Into<String>, Option<String>)>) -> Map<String, Value> {
    values
        .into_iter()
        .map(|(key, value)| (key.into(), value.map_or(Value::Null, Value::String)))
        .collect()
}

/// The labels of a selector that the caller gave.
pub(crate) fn label_selector(labels: &[(LabelKey, LabelValue)]) -> String {
    labels.iter().map(|(key, value)| format!(",{key}={value}")).collect()
}
