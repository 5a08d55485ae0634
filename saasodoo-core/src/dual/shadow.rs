//! What happens beside the caller's way: comparisons and repeated writes.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::compare::{FieldVerdict, Verdict};
use super::placement::{Place, Placement};
use super::sink::{Divergence, DivergenceKind, hand_over};
use super::stats::count;
use super::{Settings, Sides};
use crate::{
    CreateOptions, DataPolicy, DeleteOptions, DynOrchestrator, EnsureOutcome, Error, ErrorKind, Hold, Instance,
    InstanceChange, InstanceId, InstanceSpec, OperationKind, Power, Result, Retry, UpdateOptions,
};

/// A write to be repeated on the other side.
#[derive(Debug)]
pub(super) enum Write {
    Create(Box<InstanceSpec>, Box<Instance>),
    Update(InstanceId, Box<InstanceChange>),
    Delete(InstanceId),
}

impl Write {
    fn id(&self) -> InstanceId {
        match self {
            Self::Create(spec, _) => spec.id,
            Self::Update(id, _) | Self::Delete(id) => *id,
        }
    }

    fn operation(&self) -> OperationKind {
        match self {
            Self::Create(..) => OperationKind::Create,
            Self::Update(..) => OperationKind::Update,
            Self::Delete(_) => OperationKind::Delete,
        }
    }
}

/// A comparison to be made.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) id: InstanceId,
    pub(super) home: Place,
    pub(super) operation: OperationKind,
    pub(super) seen: Option<Box<Instance>>,
}

/// How many queues writes are spread over: writes of one instance stay in order, and one that hangs does not hold up
/// all others.
const LANES: usize = 4;

/// The queues; their workers end when this is dropped.
#[derive(Debug)]
pub(super) struct Shadow {
    sides: Arc<Sides>,
    queues: OnceLock<Queues>,
}

#[derive(Debug)]
struct Queues {
    comparisons: mpsc::Sender<Comparison>,
    writes: Vec<mpsc::Sender<(Place, Write)>>,
}

impl Shadow {
    pub(super) fn new(sides: Arc<Sides>) -> Self {
        Self {
            sides,
            queues: OnceLock::new(),
        }
    }

    /// The workers are started by the first call, which is on a runtime.
    fn queues(&self) -> &Queues {
        self.queues.get_or_init(|| {
            let capacity = self.sides.settings.queue.max(1);
            let (comparisons, receiver) = mpsc::channel(capacity);
            tokio::spawn(compare_all(Arc::clone(&self.sides), receiver));
            let writes = (0..LANES)
                .map(|_| {
                    let (sender, receiver) = mpsc::channel(capacity);
                    tokio::spawn(write_all(Arc::clone(&self.sides), receiver));
                    sender
                })
                .collect();
            Queues { comparisons, writes }
        })
    }

    /// Asks for a comparison; never waits.
    pub(super) fn compare(&self, comparison: Comparison) {
        if self.queues().comparisons.try_send(comparison).is_err() {
            count(&self.sides.counters.dropped, 1);
        }
    }

    /// Asks for a write on the side that is not `home`; never waits.
    pub(super) fn mirror(&self, home: Place, write: Write) {
        let lane = usize::try_from(u32::from_str_radix(&write.id().short().to_string(), 16).unwrap_or(0)).unwrap_or(0);
        let queues = self.queues();
        let Some(queue) = queues.writes.get(lane % LANES) else {
            return;
        };
        if let Err(rejected) = queue.try_send((home, write)) {
            let (home, write) = rejected.into_inner();
            let sides = Arc::clone(&self.sides);
            tokio::spawn(async move {
                not_mirrored(
                    &sides,
                    home,
                    write.id(),
                    write.operation(),
                    "too many writes wait for the secondary",
                )
                .await;
            });
        }
    }
}

async fn not_mirrored(
    sides: &Sides,
    home: Place,
    instance: InstanceId,
    operation: OperationKind,
    reason: impl Into<String>,
) {
    count(&sides.counters.not_mirrored, 1);
    let now = Timestamp::now();
    let divergence = Divergence {
        instance,
        home,
        operation,
        kind: DivergenceKind::NotMirrored { reason: reason.into() },
        first_seen: now,
        reported: now,
        samples: 1,
    };
    report(sides, divergence).await;
}

pub(super) async fn report(sides: &Sides, divergence: Divergence) {
    let settings = &sides.settings;
    hand_over(&*settings.sink, settings.deadline, divergence).await;
}

/// A call of a side that must not take the caller down with it: in a task of its own, which is given up at the
/// deadline, and whose panic becomes an error.
pub(super) async fn guarded<T, F>(orchestrator: &DynOrchestrator, budget: Duration, call: F) -> Result<T>
where
    F: Future<Output = Result<T>> + Send + 'static,
    T: Send + 'static,
{
    let backend = orchestrator.backend();
    let mut task = tokio::spawn(call);
    match tokio::time::timeout(budget, &mut task).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            Err(Error::new(ErrorKind::Unexpected, format!("the call did not end well: {panic}")).with_backend(backend))
        }
        Err(_) => {
            task.abort();
            Err(Error::new(ErrorKind::Timeout, format!("no answer within {budget:?}")).with_backend(backend))
        }
    }
}

/// An instance that is being compared; no more when this is dropped, however the comparison ends.
struct UnderWay {
    id: InstanceId,
    all: Arc<Mutex<BTreeSet<InstanceId>>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

async fn compare_all(sides: Arc<Sides>, mut comparisons: mpsc::Receiver<Comparison>) {
    let slots = Arc::new(Semaphore::new(sides.settings.concurrency.max(1)));
    let under_way: Arc<Mutex<BTreeSet<InstanceId>>> = Arc::default();
    while let Some(comparison) = comparisons.recv().await {
        let id = comparison.id;
        if !under_way.lock().unwrap_or_else(PoisonError::into_inner).insert(id) {
            count(&sides.counters.coalesced, 1);
            continue;
        }
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let sides = Arc::clone(&sides);
        let entry = UnderWay {
            id,
            all: Arc::clone(&under_way),
        };
        tokio::spawn(async move {
            if compare(&sides, comparison).await.is_err() {
                count(&sides.counters.failed, 1);
            }
            drop((entry, slot));
        });
    }
}

/// Reads one side for a comparison: `None` when the server says that the instance is not there.
async fn read(sides: &Sides, place: Place, id: InstanceId) -> Result<Option<Box<Instance>>> {
    let orchestrator = sides.at(place).clone();
    let began = Instant::now();
    let call = {
        let orchestrator = orchestrator.clone();
        async move { orchestrator.get(id).await }
    };
    let answer = guarded(&orchestrator, sides.settings.deadline, call).await;
    sides
        .latencies
        .record(place, OperationKind::Get, began.elapsed(), is_failure(&answer));
    match answer {
        Ok(instance) => Ok(Some(Box::new(instance))),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_failure<T>(answer: &Result<T>) -> bool {
    answer.as_ref().is_err_and(|error| !error.is_not_found())
}

/// Compares, and believes a difference only when it stays the same through the settle window.
async fn compare(sides: &Sides, comparison: Comparison) -> Result<()> {
    let Settings { settle, samples, .. } = &sides.settings;
    let Comparison {
        id,
        home,
        operation,
        seen,
    } = comparison;
    let first_seen = Timestamp::now();
    let other = read(sides, home.other(), id).await?;
    let mut verdicts = sides.verdicts(seen.as_deref(), other.as_deref()).await?;
    let mut open = diverging(&verdicts);
    let at_first: BTreeSet<String> = open.keys().cloned().collect();
    let rounds = (*samples).max(2) - 1;
    let mut round = 0;
    while !open.is_empty() && round < rounds {
        tokio::time::sleep(*settle / rounds).await;
        round += 1;
        let (here, there) = (read(sides, home, id).await?, read(sides, home.other(), id).await?);
        verdicts = sides.verdicts(here.as_deref(), there.as_deref()).await?;
        let now = diverging(&verdicts);
        // The same values in every sample: a value that moves is a side at work.
        open.retain(|field, values| now.get(field) == Some(values));
    }
    mark_unsettled(&mut verdicts, &open);
    sides.counters.verdicts(&verdicts, &at_first);
    for (field, (primary, secondary)) in open {
        let divergence = Divergence {
            instance: id,
            home,
            operation,
            kind: DivergenceKind::Field {
                field,
                primary,
                secondary,
            },
            first_seen,
            reported: Timestamp::now(),
            samples: round + 1,
        };
        report(sides, divergence).await;
    }
    Ok(())
}

/// What differs now but did not in this way all along is for the next comparison.
pub(super) fn mark_unsettled(verdicts: &mut [FieldVerdict], lasting: &BTreeMap<String, Values>) {
    for field in verdicts {
        if field.is_divergence() && !lasting.contains_key(&field.field) {
            field.verdict = Verdict::Unsettled;
        }
    }
}

pub(super) type Values = (Option<String>, Option<String>);

pub(super) fn diverging(verdicts: &[FieldVerdict]) -> BTreeMap<String, Values> {
    verdicts
        .iter()
        .filter(|field| field.is_divergence())
        .map(|field| (field.field.clone(), (field.primary.clone(), field.secondary.clone())))
        .collect()
}

async fn write_all(sides: Arc<Sides>, mut writes: mpsc::Receiver<(Place, Write)>) {
    while let Some((home, write)) = writes.recv().await {
        let (id, operation) = (write.id(), write.operation());
        let orchestrator = sides.at(home.other()).clone();
        let began = Instant::now();
        let locator = sides.settings.locator.clone();
        let call = {
            let (orchestrator, sides) = (orchestrator.clone(), Arc::clone(&sides));
            async move {
                lives_still(&sides, home, id).await?;
                repeat(&orchestrator, locator.as_deref(), write).await
            }
        };
        let answer = guarded(&orchestrator, sides.settings.deadline, call).await;
        sides
            .latencies
            .record(home.other(), operation, began.elapsed(), answer.is_err());
        match answer {
            Ok(()) => count(&sides.counters.mirrored, 1),
            Err(error) => not_mirrored(&sides, home, id, operation, error.to_string()).await,
        }
    }
}

/// Between the call and its turn here a migration may have begun, whose target this is.
async fn lives_still(sides: &Sides, home: Place, id: InstanceId) -> Result<()> {
    match sides.settings.placement.get(id).await?.unwrap_or_default() {
        Placement::At(place) if place == home => Ok(()),
        Placement::At(place) => Err(Error::new(
            ErrorKind::NotAllowed,
            format!("it lives on the {place} now"),
        )),
        Placement::Moving { from } => Err(Error::new(
            ErrorKind::NotAllowed,
            format!("it is being moved off the {from}"),
        )),
    }
}

/// What is on the other side, when it is what a copy is: stopped, with nothing alive. Something that runs there is no
/// copy, whatever the placement says, and is not touched.
async fn copy(orchestrator: &DynOrchestrator, id: InstanceId) -> Result<Option<Instance>> {
    match orchestrator.get(id).await {
        Ok(instance) => closed(instance).map(Some),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Nothing of it writes, and nothing shall.
pub(super) fn is_closed(instance: &Instance) -> bool {
    instance.facts.desired == 0 && !instance.facts.any_live()
}

fn closed(instance: Instance) -> Result<Instance> {
    if is_closed(&instance) {
        return Ok(instance);
    }
    Err(Error::new(
        ErrorKind::NotAllowed,
        format!("the instance there is {}: that is no stopped copy", instance.status),
    )
    .with_instance(instance.id)
    .with_advice("find out on which side the tenant lives, and record it in the placement"))
}

/// Repeats a write. The copy is created stopped and then held, and never started. Before each write it is looked at.
async fn repeat(
    orchestrator: &DynOrchestrator,
    locator: Option<&dyn crate::migration::DataLocator>,
    write: Write,
) -> Result<()> {
    match write {
        Write::Create(spec, instance) => {
            let locator = locator.ok_or_else(|| {
                Error::new(
                    ErrorKind::Configuration,
                    "no data locator: the copy would stand on other data",
                )
                .with_advice("give the dual run a data locator")
            })?;
            let data = DataPolicy::AdoptDirectory(locator.locate(&instance)?);
            let options = CreateOptions::new().with_data(data).stopped();
            copy(orchestrator, spec.id).await?;
            let created = twice(|| orchestrator.create(&spec, options.clone())).await?;
            let made = created.outcome == EnsureOutcome::Created;
            let there = if made {
                created.instance
            } else {
                closed(created.instance)?
            };
            if there.facts.hold != Some(Hold::Suspended) {
                twice(|| orchestrator.set_power(spec.id, Power::Suspend)).await?;
            }
            Ok(())
        }
        Write::Update(id, change) => {
            copy(orchestrator, id).await?.ok_or_else(|| Error::not_found(id))?;
            twice(|| orchestrator.update(id, &change, UpdateOptions::new()))
                .await
                .map(drop)
        }
        Write::Delete(id) => {
            if copy(orchestrator, id).await?.is_none() {
                return Ok(());
            }
            twice(|| orchestrator.delete(id, DeleteOptions::retain()))
                .await
                .map(drop)
        }
    }
}

/// Once more when the outcome is not known or the reason may pass.
async fn twice<T, Fut: Future<Output = Result<T>>>(call: impl Fn() -> Fut) -> Result<T> {
    match call().await {
        Err(error) if error.retry() != Retry::Never => call().await,
        answer => answer,
    }
}
