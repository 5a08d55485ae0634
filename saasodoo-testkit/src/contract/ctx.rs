//! What a clause works with: fresh specs, waiting within budgets, and the clean-up of everything it asked for.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::{
    BackendKind, Bytes, Capability, CreateOptions, CustomerId, DataPath, DataPolicy, DeleteOptions, DynOrchestrator,
    EnsureOutcome, Ensured, Error, ErrorKind, Instance, InstanceChange, InstanceFilter, InstanceId,
    InstanceOrchestratorExt, InstanceSpec, InstanceStatus, LogOptions, Operation, Plan, PurgeToken, Result, Retry,
    StorageLocation, UpdateOptions,
};

use tokio::time::{Instant, sleep};

use super::clause::ensure;
use super::{Budgets, Stop, Subject, Verdict};

/// The surroundings of one clause.
pub struct Ctx {
    subject: Arc<dyn Subject>,
    orchestrator: DynOrchestrator,
    customer: CustomerId,
    ids: Mutex<Vec<InstanceId>>,
    directories: Mutex<Vec<DataPath>>,
}

impl fmt::Debug for Ctx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ctx")
            .field("subject", &self.subject.name())
            .field("ids", &self.ids())
            .finish_non_exhaustive()
    }
}

impl Ctx {
    pub(super) fn new(subject: Arc<dyn Subject>, orchestrator: DynOrchestrator) -> Self {
        Self {
            subject,
            orchestrator,
            customer: CustomerId::random(),
            ids: Mutex::default(),
            directories: Mutex::default(),
        }
    }

    /// What the suite runs against.
    #[must_use]
    pub fn subject(&self) -> &dyn Subject {
        &*self.subject
    }

    /// The orchestrator under test.
    #[must_use]
    pub fn orchestrator(&self) -> &DynOrchestrator {
        &self.orchestrator
    }

    /// The customer of all instances of this clause.
    #[must_use]
    pub fn customer(&self) -> CustomerId {
        self.customer
    }

    /// How long things may take.
    #[must_use]
    pub fn budgets(&self) -> Budgets {
        self.subject.budgets()
    }

    /// The most that a clause may take: enough for every wait in it to fail by itself first.
    pub(super) fn deadline(&self) -> Duration {
        let budgets = self.budgets();
        (budgets.start + budgets.stop + budgets.failure + budgets.settle) * 3
    }

    /// A fresh valid spec of this clause's customer, which is cleaned up after the clause.
    #[must_use]
    pub fn spec(&self) -> InstanceSpec {
        let spec = self.subject.spec().with_customer(self.customer);
        self.register(spec.id);
        spec
    }

    /// Has the instance cleaned up after the clause.
    pub fn register(&self, id: InstanceId) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.contains(&id) {
            ids.push(id);
        }
    }

    fn ids(&self) -> Vec<InstanceId> {
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A filter for the instances of this clause.
    #[must_use]
    pub fn own(&self) -> InstanceFilter {
        let mut filter = InstanceFilter::all();
        filter.ids = self.ids();
        filter
    }

    /// A directory to adopt, removed after the clause.
    pub(super) async fn directory(&self) -> Result<DataPath, Stop> {
        let path = self
            .subject
            .make_directory()
            .await?
            .ok_or_else(|| Stop::skipped("the subject cannot make directories to adopt"))?;
        let mut directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.push(path.clone());
        Ok(path)
    }

    /// Creates it, which must succeed as new.
    pub(super) async fn create(&self, spec: &InstanceSpec) -> Result<Instance, Stop> {
        self.create_as(spec, CreateOptions::new(), EnsureOutcome::Created).await
    }

    /// Creates it, which must end so.
    pub(super) async fn create_as(
        &self,
        spec: &InstanceSpec,
        options: CreateOptions,
        outcome: EnsureOutcome,
    ) -> Result<Instance, Stop> {
        self.register(spec.id);
        let Ensured {
            outcome: seen,
            instance,
            ..
        } = self
            .orchestrator
            .create(spec, options)
            .await
            .map_err(|error| Stop::from(error).within("create"))?;
        ensure!(
            seen == outcome,
            "create: expected the outcome {outcome:?}, got {seen:?}"
        );
        Ok(instance)
    }

    /// A new instance that runs.
    pub(super) async fn running(&self) -> Result<(InstanceSpec, Instance), Stop> {
        let spec = self.spec();
        self.create(&spec).await?;
        let instance = self.until_running(spec.id).await?;
        Ok((spec, instance))
    }

    /// A new instance that was created stopped.
    pub(super) async fn stopped(&self) -> Result<(InstanceSpec, Instance), Stop> {
        let spec = self.spec();
        self.create_as(&spec, CreateOptions::new().stopped(), EnsureOutcome::Created)
            .await?;
        let instance = self.until_status(spec.id, InstanceStatus::Stopped).await?;
        Ok((spec, instance))
    }

    /// Waits until it runs.
    pub(super) async fn until_running(&self, id: InstanceId) -> Result<Instance, Stop> {
        self.until_status(id, InstanceStatus::Running).await
    }

    /// Waits until it has the status.
    pub(super) async fn until_status(&self, id: InstanceId, status: InstanceStatus) -> Result<Instance, Stop> {
        let budgets = self.budgets();
        let budget = match status {
            InstanceStatus::Stopped | InstanceStatus::Paused => budgets.stop,
            InstanceStatus::Error => budgets.failure,
            _ => budgets.start,
        };
        self.until(id, &format!("the status {status}"), budget, |instance| {
            instance.status == status
        })
        .await
    }

    /// Waits until an observation is as described. A transient error of a read is read again.
    pub(super) async fn until(
        &self,
        id: InstanceId,
        what: &str,
        budget: Duration,
        fits: impl Fn(&Instance) -> bool + Send + Sync,
    ) -> Result<Instance, Stop> {
        let deadline = Instant::now() + budget;
        let mut pause = Duration::from_millis(200);
        loop {
            let seen = match self.orchestrator.get(id).await {
                Ok(instance) if fits(&instance) => return Ok(instance),
                Ok(instance) => describe(&instance),
                Err(error) if error.retry() == Retry::Never => {
                    return Err(Stop::failed(format!("waiting for {what}: {error}")));
                }
                Err(error) => error.to_string(),
            };
            ensure!(
                Instant::now() < deadline,
                "expected {what} within {budget:?}, saw {seen}"
            );
            sleep(pause).await;
            pause = (pause * 5 / 4).min(Duration::from_secs(1));
        }
    }

    /// Waits until the platform has written to the objects what it writes by itself after a change, so that two
    /// revisions can be compared.
    pub(super) async fn quiet(&self, id: InstanceId) -> Result<Instance, Stop> {
        let mut last = self.get(id).await?;
        let mut equal = 0;
        for _ in 0..30 {
            sleep(Duration::from_millis(500)).await;
            let seen = self.get(id).await?;
            equal = if seen.provenance.revision == last.provenance.revision {
                equal + 1
            } else {
                0
            };
            last = seen;
            if equal >= 3 {
                return Ok(last);
            }
        }
        Err(Stop::failed(
            "expected the revision to stay the same when nothing happens",
        ))
    }

    /// A new instance that was created stopped, of which nothing changes any more.
    pub(super) async fn resting(&self) -> Result<(InstanceSpec, Instance), Stop> {
        let (spec, _) = self.stopped().await?;
        let instance = self.quiet(spec.id).await?;
        Ok((spec, instance))
    }

    /// Whether an answer may name this backend: two backends side by side name the one that answered.
    pub(super) fn names_backend(&self, backend: Option<BackendKind>) -> bool {
        match self.orchestrator.backend() {
            BackendKind::DualRun => backend.is_some(),
            own => backend == Some(own),
        }
    }

    /// Lets everything happen that is still going to happen.
    pub(super) async fn settle(&self) {
        sleep(self.budgets().settle).await;
    }

    /// `get`, which must succeed.
    pub(super) async fn get(&self, id: InstanceId) -> Result<Instance, Stop> {
        self.orchestrator
            .get(id)
            .await
            .map_err(|error| Stop::from(error).within("get"))
    }

    /// Where the data of an instance is.
    pub(super) async fn location(&self, id: InstanceId) -> Result<StorageLocation, Stop> {
        let instance = self.get(id).await?;
        instance
            .storage
            .location
            .ok_or_else(|| Stop::failed("expected get to tell where the data is, saw no location"))
    }

    /// Writes a file into an instance's data and says where the data is.
    pub(super) async fn mark(&self, id: InstanceId, content: &str) -> Result<StorageLocation, Stop> {
        let instance = self.get(id).await?;
        self.subject
            .write_file(&instance, "marker", content)
            .await
            .map_err(|error| Stop::from(error).within("writing into the data"))?;
        let location = self.location(id).await?;
        self.marked(&location, content).await?;
        Ok(location)
    }

    /// Demands that the file of [`mark`](Self::mark) is there.
    pub(super) async fn marked(&self, location: &StorageLocation, content: &str) -> Verdict {
        let seen = self.marker(location).await?;
        ensure!(
            seen.as_deref() == Some(content),
            "expected the file in {location} to hold {content:?}, saw {seen:?}"
        );
        Ok(())
    }

    /// The content of the file of [`mark`](Self::mark).
    pub(super) async fn marker(&self, location: &StorageLocation) -> Result<Option<String>, Stop> {
        self.subject
            .read_file(location, "marker")
            .await
            .map_err(|error| Stop::from(error).within("reading the data"))
    }

    /// Demands that the server says it is not there.
    pub(super) async fn absent(&self, id: InstanceId) -> Verdict {
        match self.orchestrator.get(id).await {
            Ok(instance) => Err(Stop::failed(format!("expected nothing, saw {}", describe(&instance)))),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(Stop::failed(format!("expected not_found, got {error}"))),
        }
    }

    /// Demands that there is neither an instance nor data of this id.
    pub(super) async fn nothing_of(&self, id: InstanceId) -> Verdict {
        self.absent(id).await?;
        if let Some(plan) = self.purge_plan(id).await? {
            let left = plan.purge_token.as_ref().map_or(0, |token| token.objects().len());
            ensure!(
                plan.deletes.is_empty() && left == 0,
                "expected nothing left, saw {plan}"
            );
        }
        let listed = self.orchestrator.list_all(InstanceFilter::id(id)).await?;
        ensure!(
            listed.is_empty(),
            "expected list not to have it, saw {}",
            describe(&listed[0])
        );
        Ok(())
    }

    /// The plan to delete everything of an instance; `None` when there is nothing.
    pub(super) async fn purge_plan(&self, id: InstanceId) -> Result<Option<Plan>, Stop> {
        match self.orchestrator.plan(&Operation::Purge(id)).await {
            Ok(plan) => Ok(Some(plan)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(Stop::from(error).within("plan of a purge")),
        }
    }

    /// The token to delete everything of an instance.
    pub(super) async fn purge_token(&self, id: InstanceId) -> Result<PurgeToken, Stop> {
        self.purge_plan(id)
            .await?
            .and_then(|plan| plan.purge_token)
            .ok_or_else(|| Stop::failed("expected the plan of a purge to carry a token, saw none"))
    }

    /// Deletes everything the clause asked for, data included, and demands that nothing is left.
    pub(super) async fn clean_up(&self) -> Verdict {
        let cleaned = self.ids().into_iter().map(|id| async move {
            let mut last = Ok(());
            for _ in 0..4 {
                last = self.purge(id).await;
                if last.is_ok() {
                    break;
                }
                sleep(Duration::from_secs(2)).await;
            }
            last.map_err(|stop| stop.within(format!("{id} is left over")))
        });
        let results: Vec<Verdict> = futures::stream::iter(cleaned.collect::<Vec<_>>())
            .buffered(10)
            .collect()
            .await;
        let directories = std::mem::take(&mut *self.directories.lock().unwrap_or_else(PoisonError::into_inner));
        for path in directories {
            self.subject.remove_directory(&path).await?;
        }
        results.into_iter().collect()
    }

    async fn purge(&self, id: InstanceId) -> Verdict {
        if id.is_legacy() {
            return Ok(());
        }
        let token = self.purge_plan(id).await?.and_then(|plan| plan.purge_token);
        let options = token.map_or_else(DeleteOptions::retain, DeleteOptions::purge);
        self.orchestrator
            .delete(id, options)
            .await
            .map_err(|error| Stop::from(error).within("delete"))?;
        self.nothing_of(id).await
    }
}

/// An observation in a few words.
pub(super) fn describe(instance: &Instance) -> String {
    let cause = instance
        .cause
        .as_ref()
        .map(|cause| format!(" because {cause}"))
        .unwrap_or_default();
    format!(
        "{} {}{cause} with {} of {} ready",
        instance.id, instance.status, instance.replicas.ready, instance.replicas.desired
    )
}

/// Demands an error of one of these kinds.
pub(super) fn refused<T: fmt::Debug>(what: &str, result: Result<T>, kinds: &[ErrorKind]) -> Result<Error, Stop> {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) => Err(Stop::failed(format!("{what}: expected {}, got {error}", names(kinds)))),
        Ok(answer) => {
            // An observation in full would bury the reason.
            let answer: String = format!("{answer:?}").chars().take(120).collect();
            Err(Stop::failed(format!(
                "{what}: expected {}, got {answer}…",
                names(kinds)
            )))
        }
    }
}

fn names(kinds: &[ErrorKind]) -> String {
    kinds.iter().map(|kind| kind.as_str()).collect::<Vec<_>>().join(" or ")
}

/// Demands equality, and says what was seen instead.
pub(super) fn same<T: PartialEq + fmt::Debug>(what: &str, seen: &T, expected: &T) -> Verdict {
    ensure!(seen == expected, "{what}: expected {expected:?}, saw {seen:?}");
    Ok(())
}

/// Demands that an observed spec is the one that was given.
pub(super) fn same_spec(given: &InstanceSpec, seen: &Instance) -> Verdict {
    let differences = given.diff(&seen.spec);
    ensure!(
        differences.is_empty(),
        "expected the spec that was given, saw: {}",
        differences
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    );
    ensure!(
        seen.unparsed.is_empty(),
        "expected everything to be understood, saw {:?}",
        seen.unparsed
    );
    Ok(())
}

/// The unit whose process runs.
pub(super) fn process(instance: &Instance) -> Option<(String, u32)> {
    instance.facts.current().map(|unit| (unit.id.clone(), unit.restarts))
}

/// Asks for something whose capability is off: the answer must be `Unsupported`, and nothing may change.
pub(super) async fn cannot(ctx: &Ctx, capability: Capability) -> Verdict {
    let orchestrator = ctx.orchestrator();
    let unsupported = [ErrorKind::Unsupported];
    let what = format!("asking for {capability:?}, which is off");
    match capability {
        Capability::StorageGrowth => {
            let (spec, before) = ctx.resting().await?;
            let larger = Bytes::new(spec.storage.get() * 2);
            let change = InstanceChange::new().storage(larger);
            let answer = orchestrator.update(spec.id, &change, UpdateOptions::new()).await;
            refused(&what, answer, &unsupported)?;
            let after = ctx.get(spec.id).await?;
            same("the revision", &after.provenance.revision, &before.provenance.revision)?;
        }
        Capability::AdoptDirectory => {
            let spec = ctx.spec();
            let path: DataPath = "contract/none".parse()?;
            let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path));
            refused(&what, orchestrator.create(&spec, options).await, &unsupported)?;
            ctx.nothing_of(spec.id).await?;
        }
        Capability::PreviousLogs => {
            let (spec, _) = ctx.running().await?;
            let options = LogOptions::tail(1).previous();
            let answer = orchestrator.logs(spec.id, options).next().await;
            let answer = answer.ok_or_else(|| Stop::failed(format!("{what}: expected unsupported, got no line")))?;
            refused(&what, answer, &unsupported)?;
        }
        Capability::Tolerations | Capability::PriorityClass => {
            let mut spec = ctx.spec();
            if capability == Capability::Tolerations {
                spec.scheduling.tolerations.insert("dedicated".parse()?);
            } else {
                spec.scheduling.priority_class = Some("high".parse()?);
            }
            refused(
                &what,
                orchestrator.create(&spec, CreateOptions::new()).await,
                &unsupported,
            )?;
            ctx.nothing_of(spec.id).await?;
        }
        other => {
            return Err(Stop::skipped(format!(
                "needs {other:?}, which is off; there is nothing to ask for"
            )));
        }
    }
    Err(Stop::Unsupported(format!(
        "{capability:?} is off, and asking for it is answered with unsupported"
    )))
}
