//! The orchestrator: what it holds, and which module does what.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use kube::Client;
use saasodoo_core::{
    BackendKind, Capabilities, Capability, CreateOptions, DeleteOptions, Deleted, Ensured, Error, Health, Instance,
    InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine, LogOptions,
    Operation, Plan, Power, Result, UpdateOptions,
};

use crate::builder::KubernetesOrchestratorBuilder;
use crate::config::KubernetesConfig;
use crate::observe::Observer;
use crate::wire::Wire;

/// Runs instances in one namespace of one Kubernetes cluster.
///
/// Cheap to clone; clones share the connection and the cache of the watch.
#[derive(Clone)]
pub struct KubernetesOrchestrator {
    pub(crate) inner: Arc<Inner>,
}

/// What all calls share.
pub(crate) struct Inner {
    pub(crate) wire: Wire,
    pub(crate) config: KubernetesConfig,
    pub(crate) observer: Observer,
}

impl KubernetesOrchestrator {
    /// Starts to connect.
    pub fn builder(config: KubernetesConfig) -> KubernetesOrchestratorBuilder {
        KubernetesOrchestratorBuilder::new(config)
    }

    pub(crate) fn new(client: Client, config: KubernetesConfig) -> Self {
        let inner = Inner {
            wire: Wire::new(client, &config),
            observer: Observer::new(&config),
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &KubernetesConfig {
        &self.inner.config
    }
}

impl fmt::Debug for KubernetesOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KubernetesOrchestrator")
            .field("namespace", &self.inner.wire.namespace())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for KubernetesOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kubernetes namespace {}", self.inner.wire.namespace())
    }
}

#[async_trait]
impl InstanceOrchestrator for KubernetesOrchestrator {
    fn backend(&self) -> BackendKind {
        BackendKind::Kubernetes
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::all()
            .without(Capability::StorageUsage)
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        Err(pending())
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        Err(pending())
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        Err(pending())
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        Err(pending())
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        Err(pending())
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        Box::pin(futures::stream::iter([Err(pending())]))
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        Box::pin(futures::stream::pending())
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        Box::pin(futures::stream::iter([Err(pending())]))
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        Err(pending())
    }

    async fn health(&self) -> Health {
        Health::new(BackendKind::Kubernetes, jiff::Timestamp::now())
    }
}

fn pending() -> Error {
    crate::error::unexpected("not written yet")
}
