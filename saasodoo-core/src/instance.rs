//! What a backend answers about an instance.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{BackendKind, Bytes, Cause, Facts, Host, InstanceId, InstanceSpec, InstanceStatus, ObjectName, derive};

/// One instance as it was observed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Instance {
    /// The identity: equal to `spec.id`.
    pub id: InstanceId,
    /// The name of its objects on the backend.
    pub name: ObjectName,
    /// The backend it was observed on.
    pub backend: BackendKind,
    /// The spec as the objects show it, also when somebody changed them by hand. Secrets are withheld.
    pub spec: InstanceSpec,
    /// What could not be read back into the spec, and why; the field has its default then.
    pub unparsed: Vec<Unparsed>,
    /// The status, derived from the facts.
    pub status: InstanceStatus,
    /// Why, unless the status says it all.
    pub cause: Option<Cause>,
    /// What the status was derived from.
    pub facts: Facts,
    /// How many units shall run, and how many are ready.
    pub replicas: Replicas,
    /// Where it is reached.
    pub endpoints: Endpoints,
    /// Where its data is.
    pub storage: Storage,
    /// Where this observation comes from.
    pub provenance: Provenance,
}

impl Instance {
    /// Puts an observation together; the status comes from the facts.
    #[must_use]
    pub fn observed(
        backend: BackendKind,
        name: ObjectName,
        spec: InstanceSpec,
        facts: Facts,
        provenance: Provenance,
    ) -> Self {
        let (status, cause) = derive(&facts);
        let ready = facts.units.iter().filter(|unit| unit.wanted && unit.ready).count();
        let replicas = Replicas {
            desired: facts.desired,
            ready: u32::try_from(ready).unwrap_or(u32::MAX),
        };
        Self {
            id: spec.id,
            name,
            backend,
            spec,
            unparsed: Vec::new(),
            status,
            cause,
            facts,
            replicas,
            endpoints: Endpoints::default(),
            storage: Storage::default(),
            provenance,
        }
    }

    /// Sets the endpoints.
    #[must_use]
    pub fn with_endpoints(mut self, endpoints: Endpoints) -> Self {
        self.endpoints = endpoints;
        self
    }

    /// Sets the storage.
    #[must_use]
    pub fn with_storage(mut self, storage: Storage) -> Self {
        self.storage = storage;
        self
    }

    /// Sets what could not be parsed.
    #[must_use]
    pub fn with_unparsed(mut self, unparsed: Vec<Unparsed>) -> Self {
        self.unparsed = unparsed;
        self
    }
}

/// A part of an instance's objects that this library could not turn into its spec.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Unparsed {
    /// The field of the spec, or the place in the object, such as `labels.traefik.http.routers.x.middlewares`.
    pub field: String,
    /// The raw text. Empty when it may hold a secret.
    pub raw: String,
    /// Why it was not taken.
    pub reason: String,
}

impl Unparsed {
    /// Something that was left over.
    #[must_use]
    pub fn new(field: impl Into<String>, raw: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            raw: raw.into(),
            reason: reason.into(),
        }
    }
}

/// How many units shall run and how many are ready.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// 0 or 1.
    pub desired: u32,
    /// Ready units among those that shall run.
    pub ready: u32,
}

/// Where an instance is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Endpoints {
    /// Inside the platform, by name: `http://odoo-acme-0a1b2c3d.saasodoo.svc:8069`.
    pub internal: Option<String>,
    /// The hosts that are routed to it, the default one first.
    pub hosts: Vec<Host>,
    /// From outside: one URL for each host.
    pub external: Vec<String>,
}

impl Endpoints {
    /// Endpoints for these hosts.
    #[must_use]
    pub fn new(internal: Option<String>, hosts: Vec<Host>, tls: bool) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let external = hosts.iter().map(|host| format!("{scheme}://{host}")).collect();
        Self {
            internal,
            hosts,
            external,
        }
    }
}

/// Where an instance's data is and how much of it there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Storage {
    /// Where. `None` when the observation did not include it.
    pub location: Option<StorageLocation>,
    /// Whether it can be used.
    pub state: StorageState,
    /// What was asked for.
    pub requested: Option<Bytes>,
    /// What is enforced at present; lags behind the request while a growth is under way.
    pub capacity: Option<Bytes>,
    /// What is in it.
    pub used: Option<Bytes>,
}

/// The place of an instance's data. Recorded once when it is made and never computed again from a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum StorageLocation {
    /// A Kubernetes claim, and its volume once it is bound.
    Claim {
        /// The claim's namespace.
        namespace: String,
        /// The claim's name.
        name: String,
        /// The bound PersistentVolume.
        volume: Option<String>,
        /// The directory that a static volume points to, when this library adopted one: as it was given to
        /// [`DataPolicy::AdoptDirectory`](crate::DataPolicy::AdoptDirectory), below the root of the configuration.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        directory: Option<String>,
    },
    /// A directory, mounted on every node.
    Directory {
        /// The absolute path.
        path: String,
    },
    /// The in-memory backend.
    Memory {
        /// The volume's name.
        name: String,
    },
}

impl fmt::Display for StorageLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim {
                namespace,
                name,
                volume: Some(volume),
                ..
            } => {
                write!(f, "claim {namespace}/{name} (volume {volume})")
            }
            Self::Claim {
                namespace,
                name,
                volume: None,
                ..
            } => write!(f, "claim {namespace}/{name}"),
            Self::Directory { path } => write!(f, "directory {path}"),
            Self::Memory { name } => write!(f, "memory volume {name}"),
        }
    }
}

/// Whether an instance's storage can be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StorageState {
    /// The observation did not include it.
    #[default]
    NotObserved,
    /// It is there.
    Ready,
    /// It is being made.
    Pending,
    /// It is there and is being grown.
    Growing,
    /// It was recorded and is not there.
    Missing,
}

impl fmt::Display for StorageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotObserved => "not observed",
            Self::Ready => "ready",
            Self::Pending => "pending",
            Self::Growing => "growing",
            Self::Missing => "missing",
        })
    }
}

/// Where an observation comes from and how old it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Provenance {
    /// Read from the server for this answer, or kept by a watch.
    pub source: Source,
    /// When the server said so.
    pub observed_at: Timestamp,
    /// Who made the objects.
    pub origin: Origin,
    /// The server's version of the main object, to be compared for equality only.
    pub revision: String,
    /// When the instance was created.
    pub created_at: Option<Timestamp>,
    /// The [token](crate::CreateOptions::with_token) of the creation that has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
}

impl Provenance {
    /// An observation made now from a live answer about an object of ours.
    #[must_use]
    pub fn live(revision: impl Into<String>, observed_at: Timestamp) -> Self {
        Self {
            source: Source::Live,
            observed_at,
            origin: Origin::Saasodoo,
            revision: revision.into(),
            created_at: None,
            token: None,
        }
    }
}

/// How an observation was obtained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// By asking the server.
    Live,
    /// From a watch that is connected and in step.
    Cache,
}

/// Who made an instance's objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// This library.
    Saasodoo,
    /// The Python code that this library replaces, on either platform.
    Legacy,
}
