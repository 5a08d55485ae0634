//! Two platforms behind one orchestrator: each tenant served from where it lives, the other side compared with it or
//! kept in step.

mod by_id;
mod compare;
mod listing;
mod moves;
mod placement;
mod placement_journal;
mod shadow;
mod sink;
mod stats;
mod sweep;
mod watch;
mod writers;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use jiff::Timestamp;
use tokio::time::Instant;

pub use compare::{Comparator, FieldVerdict, IgnoreRule, Verdict};
pub use placement::{MemoryPlacement, Place, Placement, PlacementStore};
pub use placement_journal::JournalPlacement;
pub use sink::{Divergence, DivergenceKind, DivergenceSink, JsonLinesSink, MemorySink};
pub use stats::{Counts, LatencySummary};
pub use sweep::{FleetComparison, compare_fleets};

use shadow::{Comparison, Shadow, Write, guarded, is_closed, is_failure, report};
use stats::{Counters, Latencies};

use crate::migration::DataLocator;
use crate::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, DynOrchestrator, Ensured, Error, ErrorKind,
    Health, HealthState, Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceSpec, LogLine, LogOptions, Operation, OperationKind, Plan, Power, Result, Retry, UpdateOptions,
};

/// What a [`DualRun`] does with the side on which a tenant does not live.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Policy {
    /// Nothing, but for the checks of a creation.
    #[default]
    PrimaryOnly,
    /// Reads it after each `get`, and compares. Never writes to it.
    Observe,
    /// Repeats creations, changes and deletions on it, on the same data. The copy there is held stopped: it is never
    /// started. Compares, too.
    Mirror,
}

/// Two orchestrators behind the one trait.
///
/// Each instance is served by the side on which it lives, by the [`PlacementStore`]; an instance that nothing was
/// recorded about lives on the primary. While one is being moved it is read where it came from, and every change of it
/// is refused until the move is over, as `NotAllowed` that may be repeated: the migration alone knows which side may
/// write. A change that was under way when the move began is answered with a `Conflict` whose outcome is unknown.
///
/// The other side never changes an answer: it is asked beside the caller's way, through bounded queues, under a deadline
/// of its own, and its panic is caught. Only two things wait for it, and not longer than [`create_budget`](DualRunBuilder::create_budget): a creation, which asks whether the id or the host is
/// taken there, and `health`.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use saasodoo_core::DynOrchestrator;
/// use saasodoo_core::dual::{DualRun, MemoryPlacement, MemorySink, Policy};
///
/// fn both(swarm: DynOrchestrator, kubernetes: DynOrchestrator) -> (DynOrchestrator, Arc<MemorySink>) {
///     let sink = Arc::new(MemorySink::new());
///     let dual = DualRun::builder(swarm, kubernetes)
///         .policy(Policy::Observe)
///         .placement(Arc::new(MemoryPlacement::new()))
///         .sink(sink.clone())
///         .settle(Duration::from_secs(30), 3)
///         .build();
///     (Arc::new(dual), sink)
/// }
/// ```
#[derive(Clone)]
pub struct DualRun {
    sides: Arc<Sides>,
    shadow: Arc<Shadow>,
}

/// Builds a [`DualRun`].
#[derive(Debug)]
pub struct DualRunBuilder {
    primary: DynOrchestrator,
    secondary: DynOrchestrator,
    comparator: Option<Comparator>,
    settings: Settings,
}

#[derive(Debug)]
struct Settings {
    policy: Policy,
    placement: Arc<dyn PlacementStore>,
    sink: Arc<dyn DivergenceSink>,
    comparator: Comparator,
    locator: Option<Arc<dyn DataLocator>>,
    settle: Duration,
    samples: u32,
    queue: usize,
    concurrency: usize,
    deadline: Duration,
    create_budget: Duration,
}

/// The two sides and what is counted about them.
#[derive(Debug)]
struct Sides {
    primary: DynOrchestrator,
    secondary: DynOrchestrator,
    settings: Settings,
    counters: Counters,
    latencies: Latencies,
}

impl Sides {
    fn at(&self, place: Place) -> &DynOrchestrator {
        match place {
            Place::Primary => &self.primary,
            Place::Secondary => &self.secondary,
        }
    }
}

impl DualRunBuilder {
    /// What to do with the other side. Default: [`Policy::PrimaryOnly`].
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// Where tenants live. Default: all on the primary, in memory. Where tenants are migrated it must be one that
    /// outlives the process, such as a [`JournalPlacement`].
    #[must_use]
    pub fn placement(mut self, placement: Arc<dyn PlacementStore>) -> Self {
        self.settings.placement = placement;
        self
    }

    /// Where divergences go. Default: memory.
    #[must_use]
    pub fn sink(mut self, sink: Arc<dyn DivergenceSink>) -> Self {
        self.settings.sink = sink;
        self
    }

    /// What is compared. Default: [`Comparator::observed`], and [`Comparator::mirrored`] when mirroring.
    #[must_use]
    pub fn comparator(mut self, comparator: Comparator) -> Self {
        self.comparator = Some(comparator);
        self
    }

    /// Finds the data that a mirrored copy stands on. Without one nothing is mirrored.
    #[must_use]
    pub fn data_locator(mut self, locator: Arc<dyn DataLocator>) -> Self {
        self.settings.locator = Some(locator);
        self
    }

    /// A difference counts when it is the same in so many consecutive samples (at least 2) spread over this time.
    /// Default: 3 samples in 30 s.
    #[must_use]
    pub fn settle(mut self, window: Duration, samples: u32) -> Self {
        self.settings.settle = window;
        self.settings.samples = samples.max(2);
        self
    }

    /// How many comparisons, and how many writes in each lane, may wait. Default: 1024.
    #[must_use]
    pub fn queue(mut self, length: usize) -> Self {
        self.settings.queue = length;
        self
    }

    /// How many comparisons are made at a time. Default: 16.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Self {
        self.settings.concurrency = concurrency;
        self
    }

    /// How long one call of the other side may take. Default: 30 s.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    /// How long a creation, and `health`, wait for the other side. Default: 2 s.
    #[must_use]
    pub fn create_budget(mut self, budget: Duration) -> Self {
        self.settings.create_budget = budget;
        self
    }

    /// The dual run.
    #[must_use]
    pub fn build(self) -> DualRun {
        let mut settings = self.settings;
        settings.comparator = self.comparator.unwrap_or_else(|| match settings.policy {
            Policy::Mirror => Comparator::mirrored(),
            Policy::PrimaryOnly | Policy::Observe => Comparator::observed(),
        });
        let sides = Arc::new(Sides {
            primary: self.primary,
            secondary: self.secondary,
            settings,
            counters: Counters::default(),
            latencies: Latencies::default(),
        });
        DualRun {
            shadow: Arc::new(Shadow::new(Arc::clone(&sides))),
            sides,
        }
    }
}

impl DualRun {
    /// Tenants live on `primary` unless something else was recorded.
    #[must_use]
    pub fn builder(primary: DynOrchestrator, secondary: DynOrchestrator) -> DualRunBuilder {
        DualRunBuilder {
            primary,
            secondary,
            comparator: None,
            settings: Settings {
                policy: Policy::default(),
                placement: Arc::new(MemoryPlacement::new()),
                sink: Arc::new(MemorySink::new()),
                comparator: Comparator::observed(),
                locator: None,
                settle: Duration::from_secs(30),
                samples: 3,
                queue: 1024,
                concurrency: 16,
                deadline: Duration::from_secs(30),
                create_budget: Duration::from_secs(2),
            },
        }
    }

    /// What was compared up to now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.sides.counters.snapshot()
    }

    /// How long both sides take, operation by operation.
    #[must_use]
    pub fn latencies(&self) -> Vec<LatencySummary> {
        self.sides.latencies.summaries()
    }

    /// Where tenants live.
    #[must_use]
    pub fn placement(&self) -> &Arc<dyn PlacementStore> {
        &self.sides.settings.placement
    }

    /// Compares both sides whole, with one listing of each per sample. Looks for two writers, too.
    ///
    /// # Errors
    /// Those of the listings.
    pub async fn sweep(&self, filter: InstanceFilter) -> Result<FleetComparison> {
        sweep::of_dual_run(&self.sides, filter).await
    }

    async fn placed(&self, id: InstanceId) -> Result<Placement> {
        Ok(self.sides.settings.placement.get(id).await?.unwrap_or_default())
    }

    /// The side that is read.
    async fn home(&self, id: InstanceId) -> Result<Place> {
        Ok(self.placed(id).await?.read_from())
    }

    /// Calls the side on which the tenant lives, and notes how long it takes.
    async fn at_home<T>(
        &self,
        home: Place,
        operation: OperationKind,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let began = Instant::now();
        let answer = call.await;
        self.sides
            .latencies
            .record(home, operation, began.elapsed(), is_failure(&answer));
        answer
    }

    /// Whether the other side has the id or one of the hosts.
    async fn check_other_side(&self, home: Place, spec: &InstanceSpec) -> Result<()> {
        let settings = &self.sides.settings;
        let other = self.sides.at(home.other()).clone();
        let id = spec.id;
        let operation = Operation::Create(Box::new(spec.clone()), CreateOptions::new().stopped());
        let (there, plan) = {
            let (a, b) = (other.clone(), other.clone());
            tokio::join!(
                guarded(&other, settings.create_budget, async move { a.get(id).await }),
                guarded(&other, settings.create_budget, async move { b.plan(&operation).await })
            )
        };
        let there = match there {
            Ok(instance) => Some(instance),
            Err(error) if error.is_not_found() => None,
            Err(error) => return self.unchecked(home, id, error).await,
        };
        if let Some(instance) = there {
            // A mirrored copy, or the source that a migration keeps, may have another spec than is asked for now: the
            // home side judges that.
            let copy = is_closed(&instance) && (settings.policy == Policy::Mirror || self.has_moved(home, id).await?);
            return if copy {
                Ok(())
            } else {
                Err(Error::conflict(
                    ["id"],
                    format!("the instance exists on {}, the {} side", other.backend(), home.other()),
                )
                .with_operation(OperationKind::Create)
                .with_instance(id)
                .with_advice("record where it lives, or delete it there"))
            };
        }
        // While nobody lives on the mirror its hosts are those of copies, some of them about to be deleted: the home
        // side, which has the originals, is the judge.
        let judge = home == Place::Primary && !settings.placement.secondary_is_used().await?;
        if settings.policy == Policy::Mirror && judge {
            return Ok(());
        }
        match plan {
            Err(error) if error.kind() == ErrorKind::Conflict && error.conflicts().iter().any(|f| is_host(f)) => {
                Err(error)
            }
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => {
                self.unchecked(home, id, error).await
            }
            _ => Ok(()),
        }
    }

    /// Whether the instance was moved to its home and is there. Where it is not, what the other side has may be the last
    /// of it.
    async fn has_moved(&self, home: Place, id: InstanceId) -> Result<bool> {
        if self.sides.settings.placement.get(id).await? != Some(Placement::At(home)) {
            return Ok(false);
        }
        match self.sides.at(home).get(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// With tenants on both sides a creation that cannot be checked is refused; while the other side serves nobody it
    /// is only noted.
    async fn unchecked(&self, home: Place, id: InstanceId, error: Error) -> Result<()> {
        let settings = &self.sides.settings;
        if home == Place::Secondary || settings.placement.secondary_is_used().await? {
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the {} side could not be asked for the id and the host", home.other()),
            )
            .with_operation(OperationKind::Create)
            .with_instance(id)
            .with_source(error));
        }
        let now = Timestamp::now();
        let divergence = Divergence {
            instance: id,
            home,
            operation: OperationKind::Create,
            kind: DivergenceKind::NotChecked {
                reason: error.to_string(),
            },
            first_seen: now,
            reported: now,
            samples: 1,
        };
        let sides = Arc::clone(&self.sides);
        tokio::spawn(async move { report(&sides, divergence).await });
        Ok(())
    }

    fn compare(&self, id: InstanceId, home: Place, operation: OperationKind, answer: &Result<Instance>) {
        if self.sides.settings.policy == Policy::PrimaryOnly {
            return;
        }
        let seen = match answer {
            Ok(instance) => Some(Box::new(instance.clone())),
            Err(error) if error.is_not_found() => None,
            Err(_) => return,
        };
        self.shadow.compare(Comparison {
            id,
            home,
            operation,
            seen,
        });
    }

    fn mirror(&self, home: Place, write: impl FnOnce() -> Write) {
        if self.sides.settings.policy == Policy::Mirror {
            self.shadow.mirror(home, write());
        }
    }
}

/// When to ask again about a tenant that is being moved.
const MOVING: Duration = Duration::from_secs(5);

/// Before anything is asked: what is wrong in itself needs no other side.
fn validate(spec: &InstanceSpec, operation: OperationKind) -> Result<()> {
    spec.validate().map_err(|error| {
        error
            .with_operation(operation)
            .with_instance(spec.id)
            .with_backend(BackendKind::DualRun)
    })
}

fn is_host(field: &str) -> bool {
    field.starts_with("route") || (field.contains("host") && !field.starts_with("database"))
}

impl fmt::Display for DualRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} beside {}", self.sides.primary, self.sides.secondary)
    }
}

impl fmt::Debug for DualRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DualRun")
            .field("primary", &self.sides.primary)
            .field("secondary", &self.sides.secondary)
            .field("policy", &self.sides.settings.policy)
            .finish_non_exhaustive()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl InstanceOrchestrator for DualRun {
    fn backend(&self) -> BackendKind {
        BackendKind::DualRun
    }

    /// What both sides can do: a tenant can live on either.
    fn capabilities(&self) -> Capabilities {
        let (primary, secondary) = (&self.sides.primary, &self.sides.secondary);
        primary.capabilities().intersection(&secondary.capabilities())
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        validate(spec, OperationKind::Create)?;
        let home = self.writable(spec.id, OperationKind::Create).await?.home;
        self.check_other_side(home, spec).await?;
        // The check takes its time, in which a move may have begun.
        let writable = self.writable(spec.id, OperationKind::Create).await?;
        if writable.home != home {
            return Err(Error::conflict(
                ["id"],
                format!("the instance was moved to the {} meanwhile", writable.home),
            )
            .with_operation(OperationKind::Create)
            .with_instance(spec.id)
            .with_retry(Retry::After(None)));
        }
        let ensured = self.change(writable, self.sides.at(home).create(spec, options)).await?;
        self.mirror(home, || {
            Write::Create(Box::new(spec.clone()), Box::new(ensured.instance.clone()))
        });
        Ok(ensured)
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let writable = self.writable(id, OperationKind::Update).await?;
        let home = writable.home;
        let ensured = self
            .change(writable, self.sides.at(home).update(id, change, options))
            .await?;
        self.mirror(home, || Write::Update(id, Box::new(change.clone())));
        Ok(ensured)
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        let writable = self.writable(id, OperationKind::SetPower).await?;
        let home = self.sides.at(writable.home);
        self.change(writable, home.set_power(id, power)).await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        let writable = self.writable(id, OperationKind::Delete).await?;
        let home = writable.home;
        let deleted = self.change(writable, self.sides.at(home).delete(id, options)).await?;
        self.mirror(home, || Write::Delete(id));
        Ok(deleted)
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        let home = self.home(id).await?;
        let answer = self
            .at_home(home, OperationKind::Get, self.sides.at(home).get(id))
            .await;
        self.compare(id, home, OperationKind::Get, &answer);
        answer
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        listing::listed(Arc::clone(&self.sides), filter)
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        watch::merged(&self.sides, &filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        let dual = self.clone();
        stream::once(async move {
            match dual.home(id).await {
                Ok(home) => dual.sides.at(home).logs(id, options),
                Err(error) => stream::iter([Err(error)]).boxed(),
            }
        })
        .flatten()
        .boxed()
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        let home = self.writable(operation.instance(), OperationKind::Plan).await?.home;
        if let Operation::Create(spec, _) = operation {
            validate(spec, OperationKind::Plan)?;
            self.check_other_side(home, spec).await?;
        }
        self.at_home(home, OperationKind::Plan, self.sides.at(home).plan(operation))
            .await
    }

    /// The findings of both sides. Those of the secondary fail the whole only while somebody lives there.
    async fn health(&self) -> Health {
        let Sides {
            primary,
            secondary,
            settings,
            ..
        } = &*self.sides;
        let asked = {
            let secondary = secondary.clone();
            async move { Ok(secondary.health().await) }
        };
        let (mine, other) = tokio::join!(primary.health(), guarded(secondary, settings.create_budget, asked));
        let needed = settings.placement.secondary_is_used().await.unwrap_or(true);
        let mut health = Health::new(BackendKind::DualRun, Timestamp::now());
        health.server_version.clone_from(&mine.server_version);
        for check in mine.checks {
            health.push(format!("primary.{}", check.name), check.state, check.detail);
        }
        let worst = |state: HealthState| {
            if needed {
                state
            } else {
                state.min(HealthState::Degraded)
            }
        };
        match other {
            Ok(other) => {
                for check in other.checks {
                    health.push(format!("secondary.{}", check.name), worst(check.state), check.detail);
                }
            }
            Err(error) => health.push("secondary.reachable", worst(HealthState::Failed), error.to_string()),
        }
        health
    }
}
