//! The parts of deployments, pods and claims that an observation uses. Everything else in an answer of the server is
//! skipped while it is parsed: a deployment's managed fields alone are as large as all that is kept here.
//!
//! Parsing is lenient where a server of another version may differ: a missing or null field is its default, and words
//! such as phases and reasons stay text, so that an unknown one cannot fail a whole list.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};

/// What `kubectl apply` leaves behind: a second copy of the object, environment included. Never used and not kept.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// A page of a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound(deserialize = "T: Deserialize<'de>"))]
pub(crate) struct Page<T> {
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) metadata: PageMeta,
    #[serde(default = "Vec::new", deserialize_with = "lenient")]
    pub(crate) items: Vec<T>,
}

/// Where a list stands.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PageMeta {
    #[serde(default, rename = "continue")]
    pub(crate) continue_token: Option<String>,
    #[serde(default)]
    pub(crate) resource_version: Option<String>,
}

/// A Deployment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct DeploymentView {
    #[serde(default, deserialize_with = "light_metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) spec: DeploymentSpecView,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) status: DeploymentStatusView,
}

/// A Pod.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct PodView {
    #[serde(default, deserialize_with = "light_metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) spec: PodSpecView,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) status: PodStatusView,
}

/// A PersistentVolumeClaim.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct ClaimView {
    #[serde(default, deserialize_with = "light_metadata")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) spec: ClaimSpecView,
    #[serde(default, deserialize_with = "lenient")]
    pub(crate) status: ClaimStatusView,
}

/// What a deployment asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeploymentSpecView {
    pub(crate) replicas: Option<i32>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) strategy: StrategyView,
    #[serde(deserialize_with = "lenient")]
    pub(crate) selector: SelectorView,
    #[serde(deserialize_with = "lenient")]
    pub(crate) template: TemplateView,
}

/// How a deployment replaces its pods.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct StrategyView {
    #[serde(rename = "type")]
    pub(crate) type_: Option<String>,
}

/// Which pods belong to a deployment.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SelectorView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) match_labels: BTreeMap<String, String>,
}

/// The pods that a deployment makes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct TemplateView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) metadata: TemplateMetaView,
    #[serde(deserialize_with = "lenient")]
    pub(crate) spec: TemplateSpecView,
}

/// Labels and annotations of a template.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct TemplateMetaView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// The pod spec of a template.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TemplateSpecView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) containers: Vec<ContainerView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) volumes: Vec<VolumeView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) node_selector: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) tolerations: Vec<TolerationView>,
    pub(crate) priority_class_name: Option<String>,
    pub(crate) termination_grace_period_seconds: Option<i64>,
}

/// A container of a template.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) image: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) env: Vec<EnvView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) env_from: Vec<EnvFromView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) resources: ResourcesView,
    pub(crate) startup_probe: Option<ProbeView>,
    pub(crate) readiness_probe: Option<ProbeView>,
    pub(crate) liveness_probe: Option<ProbeView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) ports: Vec<PortView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) volume_mounts: Vec<MountView>,
}

/// An environment variable. Its value may be a secret, so it is not shown.
#[derive(Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) value_from: Option<ValueFromView>,
}

impl fmt::Debug for EnvView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EnvView")
            .field("name", &self.name)
            .field("value", &self.value.as_ref().map(|_| "..."))
            .field("value_from", &self.value_from)
            .finish()
    }
}

/// Where a variable's value comes from.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ValueFromView {
    pub(crate) secret_key_ref: Option<KeyRefView>,
    pub(crate) config_map_key_ref: Option<KeyRefView>,
}

/// A key of a secret or config map.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct KeyRefView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) key: String,
}

/// A secret or config map whose keys are all variables.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct EnvFromView {
    pub(crate) secret_ref: Option<NameView>,
    pub(crate) config_map_ref: Option<NameView>,
}

/// A reference by name.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct NameView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
}

/// What a container or a claim asks for and may have, as quantities.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ResourcesView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) limits: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) requests: BTreeMap<String, String>,
}

/// A probe.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ProbeView {
    pub(crate) http_get: Option<HttpGetView>,
    pub(crate) initial_delay_seconds: Option<i32>,
    pub(crate) period_seconds: Option<i32>,
    pub(crate) timeout_seconds: Option<i32>,
    pub(crate) failure_threshold: Option<i32>,
}

/// What a probe asks.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct HttpGetView {
    pub(crate) path: Option<String>,
}

/// A port of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PortView {
    pub(crate) name: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) container_port: i32,
}

/// A mounted volume.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct MountView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) mount_path: String,
    pub(crate) sub_path: Option<String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) read_only: bool,
}

/// A volume of a template.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    pub(crate) persistent_volume_claim: Option<ClaimRefView>,
    pub(crate) secret: Option<SecretVolumeView>,
}

/// The claim behind a volume.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClaimRefView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) claim_name: String,
}

/// The secret behind a volume.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SecretVolumeView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) secret_name: String,
}

/// A taint that is tolerated.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct TolerationView {
    pub(crate) key: Option<String>,
    pub(crate) operator: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) effect: Option<String>,
}

/// How far a deployment has come.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct DeploymentStatusView {
    pub(crate) observed_generation: Option<i64>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) replicas: i32,
    #[serde(deserialize_with = "lenient")]
    pub(crate) updated_replicas: i32,
    #[serde(deserialize_with = "lenient")]
    pub(crate) ready_replicas: i32,
    #[serde(deserialize_with = "lenient")]
    pub(crate) conditions: Vec<ConditionView>,
}

impl DeploymentStatusView {
    /// The condition of this type.
    pub(crate) fn condition(&self, type_: &str) -> Option<&ConditionView> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }
}

/// A condition of any object.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ConditionView {
    #[serde(rename = "type", deserialize_with = "lenient")]
    pub(crate) type_: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) status: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) message: String,
    #[serde(deserialize_with = "moment")]
    pub(crate) last_transition_time: Option<Timestamp>,
}

impl ConditionView {
    /// Whether the condition holds.
    pub(crate) fn is_true(&self) -> bool {
        self.status == "True"
    }
}

/// Where a pod runs, and what in it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpecView {
    pub(crate) node_name: Option<String>,
    /// Containers by name only.
    #[serde(deserialize_with = "lenient")]
    pub(crate) containers: Vec<NameView>,
}

/// How far a pod has come.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodStatusView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) phase: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) message: String,
    #[serde(rename = "podIP")]
    pub(crate) pod_ip: Option<String>,
    #[serde(deserialize_with = "moment")]
    pub(crate) start_time: Option<Timestamp>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) conditions: Vec<ConditionView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) container_statuses: Vec<ContainerStatusView>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) init_container_statuses: Vec<ContainerStatusView>,
}

impl PodStatusView {
    /// The condition of this type.
    pub(crate) fn condition(&self, type_: &str) -> Option<&ConditionView> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// The status of the container of this name.
    pub(crate) fn container(&self, name: &str) -> Option<&ContainerStatusView> {
        self.container_statuses.iter().find(|status| status.name == name)
    }
}

/// How far a container has come.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ContainerStatusView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) name: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) ready: bool,
    pub(crate) started: Option<bool>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) restart_count: i32,
    #[serde(deserialize_with = "lenient")]
    pub(crate) state: ContainerStateView,
    #[serde(deserialize_with = "lenient")]
    pub(crate) last_state: ContainerStateView,
}

/// The state of a container: at most one is set.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ContainerStateView {
    pub(crate) waiting: Option<WaitingView>,
    pub(crate) running: Option<RunningView>,
    pub(crate) terminated: Option<TerminatedView>,
}

/// Why a container waits.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct WaitingView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) message: String,
}

/// Since when a container runs.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RunningView {
    #[serde(deserialize_with = "moment")]
    pub(crate) started_at: Option<Timestamp>,
}

/// How a container ended.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct TerminatedView {
    pub(crate) exit_code: Option<i32>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) reason: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) message: String,
    #[serde(deserialize_with = "moment")]
    pub(crate) started_at: Option<Timestamp>,
    #[serde(deserialize_with = "moment")]
    pub(crate) finished_at: Option<Timestamp>,
}

/// What a claim asks for.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ClaimSpecView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) resources: ResourcesView,
    pub(crate) volume_name: Option<String>,
    pub(crate) storage_class_name: Option<String>,
}

/// How far a claim has come.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ClaimStatusView {
    #[serde(deserialize_with = "lenient")]
    pub(crate) phase: String,
    #[serde(deserialize_with = "lenient")]
    pub(crate) capacity: BTreeMap<String, String>,
    #[serde(deserialize_with = "lenient")]
    pub(crate) conditions: Vec<ConditionView>,
}

/// What all three have in common.
pub(crate) trait View {
    /// The object's metadata.
    fn metadata(&self) -> &ObjectMeta;

    /// The object's name; empty when the server did not say.
    fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// The object's UID; empty when the server did not say.
    fn uid(&self) -> &str {
        self.metadata().uid.as_deref().unwrap_or_default()
    }

    /// The server's version of the object; empty when the server did not say.
    fn version(&self) -> &str {
        self.metadata().resource_version.as_deref().unwrap_or_default()
    }

    /// The value of a label.
    fn label(&self, key: &str) -> Option<&str> {
        self.metadata().labels.as_ref()?.get(key).map(String::as_str)
    }

    /// The value of an annotation.
    fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata().annotations.as_ref()?.get(key).map(String::as_str)
    }

    /// When the object was created.
    fn created_at(&self) -> Option<Timestamp> {
        self.metadata().creation_timestamp.as_ref().map(|time| time.0)
    }

    /// Whether the object is marked for deletion.
    fn is_deleting(&self) -> bool {
        self.metadata().deletion_timestamp.is_some()
    }
}

macro_rules! view {
    ($type:ty, $kind:literal, $group:literal, $plural:literal) => {
        impl View for $type {
            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }
        }

        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                $group.into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

view!(DeploymentView, "Deployment", "apps", "deployments");
view!(PodView, "Pod", "", "pods");
view!(ClaimView, "PersistentVolumeClaim", "", "persistentvolumeclaims");

/// A missing or null value is the default.
fn lenient<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A time that cannot be read is no time.
fn moment<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let text: Option<Cow<'de, str>> = Option::deserialize(deserializer)?;
    Ok(text.and_then(|text| text.parse().ok()))
}

/// The metadata that is used, put into the struct that the client library wants to see.
fn light_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Light {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        #[serde(deserialize_with = "moment")]
        creation_timestamp: Option<Timestamp>,
        #[serde(deserialize_with = "moment")]
        deletion_timestamp: Option<Timestamp>,
        deletion_grace_period_seconds: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
    }

    let light: Light = lenient(deserializer)?;
    let mut annotations = light.annotations;
    if let Some(annotations) = &mut annotations {
        annotations.remove(LAST_APPLIED);
    }
    Ok(ObjectMeta {
        name: light.name,
        namespace: light.namespace,
        uid: light.uid,
        resource_version: light.resource_version,
        generation: light.generation,
        creation_timestamp: light.creation_timestamp.map(Time),
        deletion_timestamp: light.deletion_timestamp.map(Time),
        deletion_grace_period_seconds: light.deletion_grace_period_seconds,
        labels: light.labels,
        annotations,
        ..ObjectMeta::default()
    })
}
