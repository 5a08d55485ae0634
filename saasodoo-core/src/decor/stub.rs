//! An orchestrator for the tests of the decorators: it answers what it was told to and remembers when it was called.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    BackendKind, Capabilities, Capability, CreateOptions, DeleteOptions, Deleted, EnsureOutcome, Ensured, Error,
    ErrorKind, Facts, Health, HealthState, Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId,
    InstanceOrchestrator, InstanceSpec, LogLine, LogOptions, Operation, OperationKind, Plan, Power, Provenance, Result,
    Staleness, UpdateOptions,
};

pub(crate) fn id() -> InstanceId {
    "0a1b2c3d-0000-4000-8000-000000000000".parse().expect("a UUID")
}

pub(crate) fn spec() -> InstanceSpec {
    InstanceSpec::new(
        id(),
        "acme".parse().expect("a name"),
        "odoo:17".parse().expect("an image"),
    )
}

pub(crate) fn instance() -> Instance {
    let at = Timestamp::UNIX_EPOCH;
    let spec = spec();
    Instance::observed(
        BackendKind::Memory,
        spec.object_name(),
        spec,
        Facts::new(0, at),
        Provenance::live("1", at),
    )
}

pub(crate) fn line() -> LogLine {
    LogLine::new(None, "unit", "a line")
}

pub(crate) fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "the server closed the connection")
}

/// What a stream does.
pub(crate) enum Script {
    Item,
    Fail(Error),
    Pause(Duration),
    Hang,
}

#[derive(Default)]
struct State {
    answers: VecDeque<Option<Error>>,
    streams: VecDeque<Vec<Script>>,
    calls: Vec<(OperationKind, Instant)>,
    delay: Duration,
    shown: Option<Instance>,
}

/// Clones are the same stub.
#[derive(Clone, Default)]
pub(crate) struct Stub(Arc<Mutex<State>>);

impl Stub {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("not poisoned")
    }

    /// The next calls fail so.
    pub(crate) fn fail(&self, errors: impl IntoIterator<Item = Error>) {
        self.state().answers.extend(errors.into_iter().map(Some));
    }

    /// From now on a read answers this.
    pub(crate) fn shows(&self, instance: Instance) {
        self.state().shown = Some(instance);
    }

    /// The next call never ends.
    pub(crate) fn hang_once(&self) {
        self.state().answers.push_back(None);
    }

    /// Every call takes so long.
    pub(crate) fn delay(&self, delay: Duration) {
        self.state().delay = delay;
    }

    /// The next list or log does this.
    pub(crate) fn stream(&self, script: impl IntoIterator<Item = Script>) {
        self.state().streams.push_back(script.into_iter().collect());
    }

    pub(crate) fn calls(&self, operation: OperationKind) -> usize {
        self.state().calls.iter().filter(|(kind, _)| *kind == operation).count()
    }

    pub(crate) fn total(&self) -> usize {
        self.state().calls.len()
    }

    pub(crate) fn times(&self) -> Vec<Instant> {
        self.state().calls.iter().map(|(_, at)| *at).collect()
    }

    async fn answer<T>(&self, operation: OperationKind, answer: T) -> Result<T> {
        let (delay, planned) = {
            let mut state = self.state();
            state.calls.push((operation, Instant::now()));
            (state.delay, state.answers.pop_front())
        };
        tokio::time::sleep(delay).await;
        match planned {
            None => Ok(answer),
            Some(Some(error)) => Err(error.with_operation(operation)),
            Some(None) => std::future::pending().await,
        }
    }

    fn scripted<T>(&self, operation: OperationKind, item: T) -> BoxStream<'static, Result<T>>
    where
        T: Clone + Send + Sync + 'static,
    {
        let stub = self.clone();
        stream::once(async move {
            let mut state = stub.state();
            state.calls.push((operation, Instant::now()));
            stream::iter(state.streams.pop_front().unwrap_or_default())
        })
        .flatten()
        .filter_map(move |step| {
            let item = item.clone();
            async move {
                match step {
                    Script::Item => Some(Ok(item)),
                    Script::Fail(error) => Some(Err(error)),
                    Script::Pause(pause) => {
                        tokio::time::sleep(pause).await;
                        None
                    }
                    Script::Hang => std::future::pending().await,
                }
            }
        })
        .boxed()
    }
}

impl fmt::Debug for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stub")
    }
}

impl fmt::Display for Stub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a stub")
    }
}

#[async_trait]
impl InstanceOrchestrator for Stub {
    fn backend(&self) -> BackendKind {
        BackendKind::Memory
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::of([Capability::StorageGrowth])
    }

    async fn create(&self, _: &InstanceSpec, _: CreateOptions) -> Result<Ensured> {
        let answer = Ensured::new(EnsureOutcome::Created, instance());
        self.answer(OperationKind::Create, answer).await
    }

    async fn update(&self, _: InstanceId, _: &InstanceChange, _: UpdateOptions) -> Result<Ensured> {
        let answer = Ensured::new(EnsureOutcome::Updated, instance());
        self.answer(OperationKind::Update, answer).await
    }

    async fn set_power(&self, _: InstanceId, _: Power) -> Result<Instance> {
        self.answer(OperationKind::SetPower, instance()).await
    }

    async fn delete(&self, _: InstanceId, _: DeleteOptions) -> Result<Deleted> {
        self.answer(OperationKind::Delete, Deleted::already_gone()).await
    }

    async fn get(&self, _: InstanceId) -> Result<Instance> {
        let shown = self.state().shown.clone().unwrap_or_else(instance);
        self.answer(OperationKind::Get, shown).await
    }

    fn list(&self, _: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.scripted(OperationKind::List, instance())
    }

    fn watch(&self, _: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        let stale = Staleness::new(Timestamp::UNIX_EPOCH, "the connection was lost");
        stream::iter([
            InstanceEvent::Applied(Box::new(instance())),
            InstanceEvent::Synced,
            InstanceEvent::Stale(stale),
        ])
        .chain(stream::pending())
        .boxed()
    }

    fn logs(&self, _: InstanceId, _: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        self.scripted(OperationKind::Logs, line())
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.answer(OperationKind::Plan, Plan::nothing(operation.instance()))
            .await
    }

    async fn health(&self) -> Health {
        let mut health = Health::new(BackendKind::Memory, Timestamp::UNIX_EPOCH);
        let found = self.answer(OperationKind::Health, HealthState::Ok).await;
        health.push("reachable", found.unwrap_or(HealthState::Failed), "it answers");
        health
    }
}
