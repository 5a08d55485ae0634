//! The orchestrator: what it holds, and which module does what.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use futures::stream::BoxStream;
use kube::Client;
use saasodoo_core::{
    BackendKind, Capabilities, Capability, CreateOptions, DeleteOptions, Deleted, Ensured, Error, Health, Instance,
    InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine, LogOptions,
    Operation, OperationKind, Plan, Power, Result, UpdateOptions,
};

use crate::builder::KubernetesOrchestratorBuilder;
use crate::config::KubernetesConfig;
use crate::observe::Observer;
use crate::watch::Cache;
use crate::wire::Wire;

/// Runs instances in one namespace of one Kubernetes cluster.
///
/// Cheap to clone; clones share the connection and the cache of the watch.
///
/// Two requests for each page of 500 answer [`list`](InstanceOrchestrator::list), three concurrent ones
/// [`get`](InstanceOrchestrator::get); with a watch that is in step, none. [`create`](InstanceOrchestrator::create) is
/// two rounds of concurrent requests.
#[derive(Clone)]
pub struct KubernetesOrchestrator {
    pub(crate) inner: Arc<Inner>,
}

/// What all calls share.
pub(crate) struct Inner {
    pub(crate) wire: Wire,
    pub(crate) config: KubernetesConfig,
    pub(crate) observer: Observer,
    pub(crate) cache: Cache,
    /// When the storage class was last seen.
    pub(crate) class_seen: Mutex<Option<Instant>>,
}

impl KubernetesOrchestrator {
    /// Starts to connect.
    pub fn builder(config: KubernetesConfig) -> KubernetesOrchestratorBuilder {
        KubernetesOrchestratorBuilder::new(config)
    }

    pub(crate) fn new(client: Client, config: KubernetesConfig) -> Self {
        let observer = Observer::new(&config);
        let wire = Wire::new(client, &config);
        let cache = Cache::new(&wire, observer.clone(), config.data_path.clone());
        let inner = Inner {
            wire,
            observer,
            config,
            cache,
            class_seen: Mutex::new(None),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &KubernetesConfig {
        &self.inner.config
    }

    /// Starts the watch now, so that [`get`](InstanceOrchestrator::get) is answered without a request as soon as it is
    /// in step. Without this it starts with the first [`watch`](InstanceOrchestrator::watch).
    pub fn start_cache(&self) -> &Self {
        self.inner.cache.start();
        self
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
        let capabilities = Capabilities::all().without(Capability::StorageUsage);
        match self.inner.config.adoption {
            Some(_) => capabilities,
            None => capabilities.without(Capability::AdoptDirectory),
        }
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        let result = self.inner.create(spec, options).await;
        result.map_err(|error| context(error, OperationKind::Create, Some(spec.id)))
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let result = self.inner.update(id, change, options).await;
        result.map_err(|error| context(error, OperationKind::Update, Some(id)))
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        let result = self.inner.set_power(id, power).await;
        result.map_err(|error| context(error, OperationKind::SetPower, Some(id)))
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let result = self.inner.delete(id, options).await;
        result.map_err(|error| context(error, OperationKind::Delete, Some(id)))
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        let result = self.inner.get(id).await;
        result.map_err(|error| context(error, OperationKind::Get, Some(id)))
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.inner.list(filter)
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.inner.cache.watch(filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        crate::logs::logs(self.inner.wire.clone(), id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        let result = self.inner.plan(operation).await;
        result.map_err(|error| context(error, OperationKind::Plan, Some(operation.instance())))
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}

fn context(error: Error, operation: OperationKind, id: Option<InstanceId>) -> Error {
    let error = error.with_operation(operation).with_backend(BackendKind::Kubernetes);
    match id {
        Some(id) => error.with_instance(id),
        None => error,
    }
}
