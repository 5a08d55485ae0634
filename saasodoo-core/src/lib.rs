//! The orchestrator trait for per-tenant Odoo instances, and everything that does not depend on a platform: domain
//! types, the derivation of a status, errors, configuration and decorators.
//!
//! A service keeps a [`DynOrchestrator`] in its state and does not know which platform is behind it:
//!
//! ```
//! use std::time::Duration;
//! use saasodoo_core::{Config, DynOrchestrator, InstanceId, InstanceOrchestratorExt, Result};
//!
//! async fn provision(orchestrator: &DynOrchestrator, config: &Config) -> Result<String> {
//!     let spec = config.instance(InstanceId::random(), "acme".parse()?);
//!     let instance = orchestrator.create_and_wait(&spec, Duration::from_secs(420)).await?;
//!     Ok(instance.endpoints.external.join(" "))
//! }
//! ```
//!
//! | to … | use |
//! |---|---|
//! | run instances on Kubernetes | `saasodoo-k8s` |
//! | run instances on Docker Swarm | `saasodoo-swarm` |
//! | test a service without a platform | `saasodoo-testkit`, as a dev-dependency |
//! | add deadlines, retries and traces | [`decor`] |
//! | run two platforms side by side and compare them | [`dual`] |
//! | move tenants from one platform to the other | [`migration`] |

#![forbid(unsafe_code)]

mod capabilities;
mod change;
mod config;
pub mod decor;
#[cfg(test)]
mod documents_tests;
pub mod dual;
mod error;
mod ext;
mod facts;
#[cfg(test)]
mod facts_tests;
mod health;
mod host;
mod id;
mod instance;
pub mod migration;
mod options;
mod orchestrator;
mod power;
mod quantity;
mod secret;
mod spec;
#[cfg(test)]
mod spec_tests;
mod status;
mod text;

pub use capabilities::{BackendKind, Capabilities, Capability};
pub use change::{FieldChange, InstanceChange};
pub use config::{Config, ConfigBuilder, Deadlines};
pub use error::{Error, ErrorKind, OperationKind, Result, Retry};
pub use ext::InstanceOrchestratorExt;
pub use facts::{
    Exit, FORGIVEN_AFTER_SECONDS, Facts, Hold, SETTLED_AFTER_SECONDS, Transition, Unit, UnitPhase, derive,
};
pub use health::{Health, HealthCheck, HealthState};
pub use host::{Host, RESERVED_LABELS, Subdomain};
pub use id::{CustomerId, DatabaseName, InstanceId, MAX_LABEL, ObjectName, ShortId};
pub use instance::{
    Endpoints, Instance, Origin, Provenance, Replicas, Source, Storage, StorageLocation, StorageState, Unparsed,
};
pub use options::{
    CreateOptions, DataPolicy, DeleteOptions, Deleted, EnsureOutcome, Ensured, InstanceEvent, InstanceFilter, LogLine,
    LogOptions, ObjectIdentity, Operation, Plan, Power, PurgeToken, Staleness, UpdateOptions,
};
pub use orchestrator::{DynOrchestrator, InstanceOrchestrator};
pub use power::{PowerChange, decide_power};
pub use quantity::{Bytes, Cpu};
pub use secret::Secret;
pub use spec::{
    Addons, AdminAccount, DatabaseEndpoint, InstanceSpec, Probes, RESERVED_ENVIRONMENT, Resources, Route, Scheduling,
};
pub use status::{Cause, InstanceAction, InstanceStatus, pod_phase_status, task_state_status};
pub use text::{DataPath, EnvName, HttpPath, ImageRef, LabelKey, LabelValue, OdooVersion};
