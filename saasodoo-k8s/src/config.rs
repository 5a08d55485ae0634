//! Settings of the Kubernetes backend.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use saasodoo_core::{Config, Error, ErrorKind, Host, ObjectName, Result};
use serde_json::Value;

/// Settings of the Kubernetes backend: the shared ones, and how its objects look.
///
/// ```
/// use saasodoo_core::Config;
/// use saasodoo_k8s::{KubernetesConfig, Routing};
///
/// let mut config = KubernetesConfig::new(Config::builder().base_domain("tenants.example".parse()?).build());
/// config.routing = Routing::Ingress { class: Some("nginx".parse()?), tls: None, annotations: Default::default() };
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KubernetesConfig {
    /// Namespace, storage class, base domain, deadlines: what all backends share.
    pub common: Config,
    /// How hosts are routed. Default: a Traefik IngressRoute on `web` and `websecure`, without TLS.
    pub routing: Routing,
    /// The access mode of new claims. Default: `ReadWriteMany`, which CephFS has.
    pub access_mode: String,
    /// How [`AdoptDirectory`](saasodoo_core::DataPolicy::AdoptDirectory) reaches a directory. Default: not at all.
    pub adoption: Option<AdoptionSource>,
    /// Who may reach an instance. Default: everybody in the cluster.
    pub network_policy: Option<NetworkPolicy>,
    /// When nodes pull the image. Default: `IfNotPresent`.
    pub image_pull_policy: ImagePullPolicy,
    /// Secrets with credentials of registries.
    pub image_pull_secrets: Vec<ObjectName>,
    /// What is requested of a node when the spec does not say.
    pub request_ratio: RequestRatio,
    /// Under which user and with which capabilities Odoo runs.
    pub pod_security: PodSecurity,
    /// Where the image keeps its data. Default: `/bitnami/odoo`.
    pub data_path: String,
    /// The name under which fields are owned. Default: `saasodoo`.
    pub field_manager: String,
    /// Amends each object before it is sent.
    pub object_hook: Option<ObjectHook>,
}

/// How hosts are routed to an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Routing {
    /// A Traefik `IngressRoute` (`traefik.io/v1alpha1`).
    Traefik {
        /// The entry points of Traefik that it listens on.
        entry_points: Vec<String>,
        /// TLS; `None`: plain HTTP.
        tls: Option<RoutingTls>,
        /// Middlewares in the same namespace, applied in order.
        middlewares: Vec<ObjectName>,
    },
    /// A standard `networking.k8s.io/v1` Ingress.
    Ingress {
        /// The ingress class; `None`: the cluster's default.
        class: Option<ObjectName>,
        /// TLS; `None`: plain HTTP.
        tls: Option<RoutingTls>,
        /// Annotations for the controller.
        annotations: BTreeMap<String, String>,
    },
    /// No object: somebody else routes to the Service. Hosts are still kept unique.
    None,
}

impl Default for Routing {
    fn default() -> Self {
        Self::Traefik {
            entry_points: vec!["web".to_owned(), "websecure".to_owned()],
            tls: None,
            middlewares: Vec::new(),
        }
    }
}

impl Routing {
    /// Whether the routes speak TLS.
    #[must_use]
    pub fn has_tls(&self) -> bool {
        match self {
            Self::Traefik { tls, .. } | Self::Ingress { tls, .. } => tls.is_some(),
            Self::None => false,
        }
    }
}

/// Where the certificate of a route comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RoutingTls {
    /// The router's default certificate, such as a wildcard for the base domain.
    Default,
    /// A resolver that Traefik is configured with. Not for a standard Ingress.
    CertResolver(String),
    /// A TLS Secret in the same namespace.
    Secret(ObjectName),
}

/// How a directory that exists becomes the volume of an instance
/// ([`AdoptDirectory`](saasodoo_core::DataPolicy::AdoptDirectory)): a PersistentVolume with policy `Retain`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AdoptionSource {
    /// A directory that is mounted on every node, such as a CephFS kernel mount. Where it is mounted beside this process
    /// too, a directory that is not there is refused at once; else its pod waits for the mount.
    HostPath {
        /// The absolute path below which data directories lie.
        root: String,
    },
    /// A directory of a CephFS, mounted by ceph-csi as a
    /// [static volume](https://github.com/ceph/ceph-csi/blob/devel/docs/static-pvc.md).
    CephFsCsi {
        /// The driver's name, such as `rook-ceph.cephfs.csi.ceph.com`.
        driver: String,
        /// The cluster as ceph-csi's config map names it.
        cluster_id: String,
        /// The file system.
        fs_name: String,
        /// The Secret with `userID` and `userKey`.
        node_stage_secret: SecretRef,
        /// The path in the file system below which data directories lie, such as `/odoo_instances`.
        root: String,
    },
    /// A directory of an NFS server.
    Nfs {
        /// The server.
        server: String,
        /// The exported path below which data directories lie.
        root: String,
    },
}

impl AdoptionSource {
    /// The absolute path below which data directories lie.
    #[must_use]
    pub fn root(&self) -> &str {
        match self {
            Self::HostPath { root } | Self::CephFsCsi { root, .. } | Self::Nfs { root, .. } => root,
        }
    }
}

/// A Secret by namespace and name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretRef {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// Who may reach an instance: a NetworkPolicy for ingress to its pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NetworkPolicy {
    /// Labels of the namespaces whose pods may connect, such as Traefik's. Empty: every namespace.
    pub from_namespaces: BTreeMap<String, String>,
    /// Labels of the pods that may connect. Empty: all pods of those namespaces.
    pub from_pods: BTreeMap<String, String>,
}

impl NetworkPolicy {
    /// Only from namespaces with these labels.
    #[must_use]
    pub fn from_namespaces<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        Self {
            from_namespaces: labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect(),
            from_pods: BTreeMap::new(),
        }
    }
}

/// When a node pulls the image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImagePullPolicy {
    /// When it does not have it.
    #[default]
    IfNotPresent,
    /// Before each start, for tags that move.
    Always,
    /// Never: images are brought to the nodes otherwise.
    Never,
}

impl ImagePullPolicy {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

/// What is requested of a node, as a part of the limit, for instances whose spec does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestRatio {
    /// Percent of the processor limit. Default: 25.
    pub cpu_percent: u8,
    /// Percent of the memory limit. Default: 50.
    pub memory_percent: u8,
}

impl RequestRatio {
    /// These parts; more than 100 percent is refused when the orchestrator is built.
    #[must_use]
    pub const fn new(cpu_percent: u8, memory_percent: u8) -> Self {
        Self {
            cpu_percent,
            memory_percent,
        }
    }
}

impl Default for RequestRatio {
    fn default() -> Self {
        Self::new(25, 50)
    }
}

/// Under which user and with which capabilities Odoo runs. Always: no service account token, no privilege escalation,
/// the runtime's seccomp profile, all capabilities dropped but the ones listed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PodSecurity {
    /// Refuse to run as root. Default: false, because the images of `bitnamilegacy/odoo` start as root and hand over to
    /// another user by themselves.
    pub run_as_non_root: bool,
    /// Run as this user; `None`: the image's.
    pub run_as_user: Option<i64>,
    /// Run as this group; `None`: the image's.
    pub run_as_group: Option<i64>,
    /// The group that volumes are given to; `None`: they stay as they are.
    pub fs_group: Option<i64>,
    /// Capabilities that are kept. Default: those by which an image that starts as root takes possession of its data
    /// directory and hands over to another user.
    pub capabilities: Vec<String>,
}

impl Default for PodSecurity {
    fn default() -> Self {
        let kept = ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID", "SYS_CHROOT"];
        Self {
            run_as_non_root: false,
            run_as_user: None,
            run_as_group: None,
            fs_group: None,
            capabilities: kept.map(str::to_owned).to_vec(),
        }
    }
}

impl PodSecurity {
    /// For images that start as this user: not root, no capabilities. Passes the `restricted` pod security standard.
    #[must_use]
    pub fn restricted(user: i64) -> Self {
        Self {
            run_as_non_root: true,
            run_as_user: Some(user),
            run_as_group: Some(user),
            fs_group: Some(user),
            capabilities: Vec::new(),
        }
    }
}

/// Amends each object that this backend creates, as its JSON, before it is sent.
///
/// Names, labels that start with `saasodoo.io/` or are the guide's, owner references and selectors must stay as they
/// are, or the instance is not found again.
#[derive(Clone)]
pub struct ObjectHook(Arc<dyn Fn(&mut Value) + Send + Sync>);

impl ObjectHook {
    /// A hook that calls this function.
    #[must_use]
    pub fn new(hook: impl Fn(&mut Value) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hook))
    }

    pub(crate) fn call(&self, object: &mut Value) {
        (self.0)(object);
    }
}

impl fmt::Debug for ObjectHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectHook")
    }
}

impl KubernetesConfig {
    /// These shared settings, and the defaults for the rest.
    #[must_use]
    pub fn new(common: Config) -> Self {
        Self {
            common,
            routing: Routing::default(),
            access_mode: "ReadWriteMany".to_owned(),
            adoption: None,
            network_policy: None,
            image_pull_policy: ImagePullPolicy::default(),
            image_pull_secrets: Vec::new(),
            request_ratio: RequestRatio::default(),
            pod_security: PodSecurity::default(),
            data_path: "/bitnami/odoo".to_owned(),
            field_manager: "saasodoo".to_owned(),
            object_hook: None,
        }
    }

    /// The shared settings from the environment ([`Config::from_env`]), and the defaults for the rest.
    ///
    /// # Errors
    /// [`Configuration`](ErrorKind::Configuration) naming the variable.
    pub fn from_env() -> Result<Self> {
        Config::from_env().map(Self::new)
    }

    /// Sets how hosts are routed.
    #[must_use]
    pub fn with_routing(mut self, routing: Routing) -> Self {
        self.routing = routing;
        self
    }

    /// Sets how directories are adopted.
    #[must_use]
    pub fn with_adoption(mut self, source: AdoptionSource) -> Self {
        self.adoption = Some(source);
        self
    }

    /// Sets who may reach the instances.
    #[must_use]
    pub fn with_network_policy(mut self, policy: NetworkPolicy) -> Self {
        self.network_policy = Some(policy);
        self
    }

    /// Sets a function that amends each object before it is sent.
    #[must_use]
    pub fn with_object_hook(mut self, hook: ObjectHook) -> Self {
        self.object_hook = Some(hook);
        self
    }

    pub(crate) fn base_domain(&self) -> &Host {
        &self.common.base_domain
    }

    /// Checks what the types cannot. Called when the orchestrator is built, so that nothing unchecked reaches a path.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |field: &str, why: String| Err(Error::new(ErrorKind::Configuration, why).with_field(field));
        let dns = |text: &str| {
            !text.is_empty()
                && text.len() <= 253
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
                && text.starts_with(|c: char| c.is_ascii_alphanumeric())
                && text.ends_with(|c: char| c.is_ascii_alphanumeric())
        };
        let absolute = |path: &str| {
            path.starts_with('/')
                && path.len() <= 1024
                && !path.split('/').any(|part| part == "..")
                && !path.contains(|c: char| c.is_control())
        };
        if !dns(&self.common.namespace) || self.common.namespace.contains('.') {
            return bad("namespace", format!("{:?} is not a DNS label", self.common.namespace));
        }
        if !dns(&self.common.storage_class) {
            return bad(
                "storage_class",
                format!("{:?} is not a name", self.common.storage_class),
            );
        }
        let modes = ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
        if !modes.contains(&self.access_mode.as_str()) {
            return bad(
                "access_mode",
                format!("{:?} is none of {}", self.access_mode, modes.join(", ")),
            );
        }
        if !absolute(&self.data_path) || self.data_path == "/" {
            return bad("data_path", format!("{:?} is not an absolute path", self.data_path));
        }
        let manager = &self.field_manager;
        if manager.is_empty() || manager.len() > 128 || !manager.bytes().all(|b| b.is_ascii_graphic()) {
            return bad(
                "field_manager",
                format!("{manager:?} is not 1 to 128 printable characters"),
            );
        }
        if self.request_ratio.cpu_percent > 100 || self.request_ratio.memory_percent > 100 {
            return bad("request_ratio", "is more than the limit".to_owned());
        }
        if let Some(source) = &self.adoption
            && !absolute(source.root())
        {
            return bad("adoption", format!("{:?} is not an absolute path", source.root()));
        }
        let upper = |name: &String| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        if let Some(name) = self.pod_security.capabilities.iter().find(|name| !upper(name)) {
            return bad("pod_security.capabilities", format!("{name:?} is not a capability"));
        }
        match &self.routing {
            Routing::Traefik { entry_points, .. } if entry_points.is_empty() => {
                bad("routing.entry_points", "is empty: nothing would be routed".to_owned())
            }
            Routing::Ingress {
                tls: Some(RoutingTls::CertResolver(_)),
                ..
            } => bad("routing.tls", "only Traefik has resolvers; use annotations".to_owned()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_bad_values_name_their_field() {
        KubernetesConfig::new(Config::default())
            .validate()
            .expect("the defaults");
        type Change = fn(&mut KubernetesConfig);
        let cases: &[(&str, Change)] = &[
            ("namespace", |c| c.common.namespace = "a/../b".to_owned()),
            ("namespace", |c| c.common.namespace = "t?dryRun=All".to_owned()),
            ("storage_class", |c| c.common.storage_class = "../x".to_owned()),
            ("access_mode", |c| c.access_mode = "rw".to_owned()),
            ("data_path", |c| c.data_path = "data".to_owned()),
            ("data_path", |c| c.data_path = "/a/../etc".to_owned()),
            ("field_manager", |c| c.field_manager = String::new()),
            ("request_ratio", |c| c.request_ratio = RequestRatio::new(101, 50)),
            ("adoption", |c| {
                c.adoption = Some(AdoptionSource::HostPath { root: "mnt".to_owned() });
            }),
            ("pod_security.capabilities", |c| {
                c.pod_security.capabilities = vec!["all caps".to_owned()]
            }),
            ("routing.entry_points", |c| {
                c.routing = Routing::Traefik {
                    entry_points: vec![],
                    tls: None,
                    middlewares: vec![],
                };
            }),
            ("routing.tls", |c| {
                let tls = Some(RoutingTls::CertResolver("le".to_owned()));
                c.routing = Routing::Ingress {
                    class: None,
                    tls,
                    annotations: BTreeMap::new(),
                };
            }),
        ];
        for (field, change) in cases {
            let mut config = KubernetesConfig::new(Config::default());
            change(&mut config);
            let error = config.validate().expect_err(field);
            assert_eq!((error.kind(), error.field()), (ErrorKind::Configuration, Some(*field)));
        }
    }
}
