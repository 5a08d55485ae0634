//! The orchestrator and its trait.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use saasodoo_core::{
    BackendKind, Capabilities, Capability, Config, CreateOptions, DeleteOptions, Deleted, Ensured, Error, ErrorKind,
    Health, Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec,
    LogLine, LogOptions, Operation, OperationKind, Plan, Power, Result, UpdateOptions,
};
use tracing::Instrument as _;

use crate::builder::{Clock, SwarmBuilder};
use crate::config::{QuotaPolicy, SwarmConfig};
use crate::storage::DataRoot;
use crate::watch::Hub;
use crate::wire::Wire;

/// Instances on Docker Swarm. Cheap to clone; clones share their connection settings and one watch.
///
/// ```no_run
/// use saasodoo_core::{InstanceFilter, InstanceOrchestratorExt, Result};
/// use saasodoo_swarm::{SwarmConfig, SwarmOrchestrator};
///
/// # async fn example() -> Result<()> {
/// let orchestrator = SwarmOrchestrator::connect(SwarmConfig::from_env()?)?;
/// for instance in orchestrator.list_all(InstanceFilter::all()).await? {
///     println!("{} {}", instance.name, instance.status);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct SwarmOrchestrator {
    pub(crate) inner: Arc<Inner>,
}

/// What all clones share.
pub(crate) struct Inner {
    pub(crate) wire: Wire,
    pub(crate) config: SwarmConfig,
    pub(crate) storage: DataRoot,
    pub(crate) hub: Hub,
    pub(crate) clock: Clock,
}

impl SwarmOrchestrator {
    /// Starts from today's layout.
    #[must_use]
    pub fn builder(common: Config) -> SwarmBuilder {
        SwarmBuilder::new(SwarmConfig::new(common))
    }

    /// Uses this configuration. Makes no request.
    ///
    /// # Errors
    /// `Configuration` for settings or certificates that cannot be used; `Unavailable` when there is no socket.
    pub fn connect(config: SwarmConfig) -> Result<Self> {
        Self::assemble(config, None, Clock::default())
    }

    pub(crate) fn assemble(config: SwarmConfig, client: Option<bollard::Docker>, clock: Clock) -> Result<Self> {
        let context = |error: Error| {
            error
                .with_operation(OperationKind::Connect)
                .with_backend(BackendKind::Swarm)
        };
        config.validate().map_err(context)?;
        let deadlines = config.common.deadlines;
        let wire = match client {
            Some(client) => Wire::over(client, deadlines),
            None => Wire::connect(&config.host, deadlines).map_err(context)?,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                wire,
                storage: DataRoot::new(config.data_root.clone(), config.quota, deadlines),
                config,
                hub: Hub::default(),
                clock,
            }),
        })
    }

    /// How many requests this orchestrator and its clones have made.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.inner.wire.requests()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &SwarmConfig {
        &self.inner.config
    }

    /// The id of the swarm: every manager answers the same one, for as long as the swarm lasts. It tells which platform a
    /// record is about, whatever address the daemon has at the time, such as in the identities of a migration.
    ///
    /// ```no_run
    /// use saasodoo_core::Result;
    /// use saasodoo_swarm::SwarmOrchestrator;
    ///
    /// # async fn example(orchestrator: &SwarmOrchestrator) -> Result<()> {
    /// let identity = format!("swarm {}", orchestrator.cluster_id().await?);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `MissingPrerequisite` when the daemon is not a manager of a swarm; those of any request.
    pub async fn cluster_id(&self) -> Result<String> {
        self.inner.cluster_id().await.map_err(|error| {
            error
                .with_operation(OperationKind::Connect)
                .with_backend(BackendKind::Swarm)
        })
    }

    /// Runs a mutation to its end even when the caller goes away.
    async fn detached<T: Send + 'static>(
        &self,
        operation: OperationKind,
        id: InstanceId,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let task = tokio::spawn(work.instrument(tracing::Span::current()));
        let result = task.await.unwrap_or_else(|error| {
            Err(
                Error::new(ErrorKind::Unexpected, format!("the operation panicked: {error}"))
                    .with_retry(saasodoo_core::Retry::OutcomeUnknown),
            )
        });
        result.map_err(|error| context(error, operation, id))
    }
}

/// Adds what was attempted to an error.
pub(crate) fn context(error: Error, operation: OperationKind, id: InstanceId) -> Error {
    error
        .with_operation(operation)
        .with_instance(id)
        .with_backend(BackendKind::Swarm)
}

impl fmt::Debug for SwarmOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmOrchestrator")
            .field("host", &self.inner.config.host)
            .field("network", &self.inner.config.network)
            .field("data_root", &self.inner.config.data_root)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for SwarmOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Docker Swarm, network {}", self.inner.config.network)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl InstanceOrchestrator for SwarmOrchestrator {
    fn backend(&self) -> BackendKind {
        BackendKind::Swarm
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = Capabilities::all()
            .without(Capability::OutOfMemoryCertain)
            .without(Capability::Tolerations)
            .without(Capability::PriorityClass)
            .without(Capability::CachedGet);
        match self.inner.config.quota {
            QuotaPolicy::Required => capabilities,
            QuotaPolicy::BestEffort => capabilities
                .without(Capability::StorageQuota)
                .without(Capability::StorageUsage),
        }
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        let (inner, spec) = (Arc::clone(&self.inner), spec.clone());
        let id = spec.id;
        self.detached(
            OperationKind::Create,
            id,
            async move { inner.create(&spec, &options).await },
        )
        .await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let (inner, change) = (Arc::clone(&self.inner), change.clone());
        self.detached(OperationKind::Update, id, async move {
            inner.update(id, &change, &options).await
        })
        .await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        let inner = Arc::clone(&self.inner);
        self.detached(
            OperationKind::SetPower,
            id,
            async move { inner.set_power(id, power).await },
        )
        .await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let inner = Arc::clone(&self.inner);
        self.detached(
            OperationKind::Delete,
            id,
            async move { inner.delete(id, &options).await },
        )
        .await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.inner
            .get(id)
            .await
            .map_err(|error| context(error, OperationKind::Get, id))
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        crate::read::list(Arc::clone(&self.inner), filter)
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        crate::watch::watch(Arc::clone(&self.inner), filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        crate::logs::logs(Arc::clone(&self.inner), id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.inner
            .plan(operation)
            .await
            .map_err(|error| context(error, OperationKind::Plan, operation.instance()))
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}
