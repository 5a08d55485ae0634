//! A limit for each call.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;
use tokio::time::timeout;

use crate::{
    BackendKind, Capabilities, CreateOptions, Deadlines, DeleteOptions, Deleted, Ensured, Error, ErrorKind, Health,
    HealthState, Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceSpec, LogLine, LogOptions, Operation, OperationKind, Plan, Power, Result, Retry, UpdateOptions,
};

/// Limits how long each call may take, whatever the orchestrator inside does. Backends have deadlines for each of their
/// requests already; this one is for the caller, who then knows when it gets an answer.
///
/// | call | limit |
/// |---|---|
/// | `get` | twice [`read`](Deadlines::read): it may take several requests |
/// | `list`, `logs` that do not follow | [`operation`](Deadlines::operation), for each item |
/// | `plan`, `health` | [`operation`](Deadlines::operation) |
/// | `create`, `update`, `set_power` | [`operation`](Deadlines::operation) and the longer one of [`cleanup`](Deadlines::cleanup) and [`termination`](Deadlines::termination) |
/// | `delete` | [`operation`](Deadlines::operation) and three times [`termination`](Deadlines::termination) |
/// | `watch`, `logs` that follow | none: they are silent for as long as nothing happens |
///
/// A mutation that is cut off answers [`Timeout`](ErrorKind::Timeout) with [`Retry::OutcomeUnknown`] and goes on by
/// itself. A read that is cut off may be repeated. A deletion does not know the instance's grace period: with
/// [`stop_grace_seconds`](crate::Scheduling::stop_grace_seconds) beyond [`termination`](Deadlines::termination) raise the
/// latter, or it is cut off while the process still stops.
///
/// ```
/// use saasodoo_core::decor::Deadlined;
/// use saasodoo_core::{Config, InstanceOrchestrator};
///
/// fn limited(backend: impl InstanceOrchestrator, config: &Config) -> impl InstanceOrchestrator {
///     Deadlined::new(backend, config.deadlines)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Deadlined<O> {
    inner: O,
    deadlines: Deadlines,
}

impl<O: InstanceOrchestrator> Deadlined<O> {
    /// Limits the calls of this orchestrator.
    #[must_use]
    pub fn new(inner: O, deadlines: Deadlines) -> Self {
        Self { inner, deadlines }
    }

    fn limit(&self, operation: OperationKind) -> Duration {
        let Deadlines {
            read,
            operation: whole,
            cleanup,
            termination,
            ..
        } = self.deadlines;
        match operation {
            OperationKind::Create | OperationKind::Update | OperationKind::SetPower => {
                whole.saturating_add(cleanup.max(termination))
            }
            // A purge sees the process end, then the claim, then the volume.
            OperationKind::Delete => whole.saturating_add(termination.saturating_mul(3)),
            OperationKind::Get => read.saturating_mul(2),
            _ => whole,
        }
    }

    async fn within<T>(
        &self,
        operation: OperationKind,
        id: InstanceId,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let limit = self.limit(operation);
        match timeout(limit, call).await {
            Ok(answer) => answer,
            Err(_) => Err(late(operation, limit, self.inner.backend()).with_instance(id)),
        }
    }

    fn each<T: Send + 'static>(
        &self,
        operation: OperationKind,
        id: Option<InstanceId>,
        items: BoxStream<'static, Result<T>>,
    ) -> BoxStream<'static, Result<T>> {
        let (limit, backend) = (self.limit(operation), self.inner.backend());
        stream::unfold(Some(items), move |state| async move {
            let mut items = state?;
            match timeout(limit, items.next()).await {
                Ok(item) => item.map(|item| (item, Some(items))),
                Err(_) => {
                    let error = late(operation, limit, backend);
                    let error = match id {
                        Some(id) => error.with_instance(id),
                        None => error,
                    };
                    Some((Err(error), None))
                }
            }
        })
        .boxed()
    }
}

fn late(operation: OperationKind, limit: Duration, backend: BackendKind) -> Error {
    let error = Error::new(ErrorKind::Timeout, format!("no answer within {limit:?}"))
        .with_operation(operation)
        .with_backend(backend);
    match operation {
        OperationKind::Create | OperationKind::Update | OperationKind::SetPower | OperationKind::Delete => {
            error.with_advice("it may still be done; look at the instance, or repeat the call, which looks first")
        }
        _ => error.with_retry(Retry::After(None)),
    }
}

impl<O: fmt::Display> fmt::Display for Deadlined<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<O: InstanceOrchestrator> InstanceOrchestrator for Deadlined<O> {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        self.within(OperationKind::Create, spec.id, self.inner.create(spec, options))
            .await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        self.within(OperationKind::Update, id, self.inner.update(id, change, options))
            .await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        self.within(OperationKind::SetPower, id, self.inner.set_power(id, power))
            .await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.within(OperationKind::Delete, id, self.inner.delete(id, options))
            .await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.within(OperationKind::Get, id, self.inner.get(id)).await
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.each(OperationKind::List, None, self.inner.list(filter))
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.inner.watch(filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        let follow = options.follow;
        let lines = self.inner.logs(id, options);
        if follow {
            lines
        } else {
            self.each(OperationKind::Logs, Some(id), lines)
        }
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.within(OperationKind::Plan, operation.instance(), self.inner.plan(operation))
            .await
    }

    async fn health(&self) -> Health {
        let limit = self.limit(OperationKind::Health);
        match timeout(limit, self.inner.health()).await {
            Ok(health) => health,
            Err(_) => {
                let mut health = Health::new(self.inner.backend(), Timestamp::now());
                health.push(
                    "reachable",
                    HealthState::Failed,
                    format!("no answer within {limit:?}; check the server and the network"),
                );
                health
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use tokio::time::Instant;

    use super::*;
    use crate::decor::stub::{Script, Stub, id, instance, line, spec};

    fn deadlined(stub: &Stub) -> Deadlined<Stub> {
        Deadlined::new(stub.clone(), Deadlines::default())
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_call_has_its_own_limit() {
        let stub = Stub::new();
        let orchestrator = deadlined(&stub);
        let seconds = |started: Instant| started.elapsed().as_secs();

        stub.hang_once();
        let started = Instant::now();
        let error = orchestrator.get(id()).await.expect_err("hangs");
        assert_eq!(
            (error.kind(), error.retry(), seconds(started)),
            (ErrorKind::Timeout, Retry::After(None), 30)
        );
        assert_eq!(
            error.to_string(),
            format!("get instance {} on memory: timeout: no answer within 30s", id())
        );

        stub.hang_once();
        let started = Instant::now();
        let error = orchestrator
            .create(&spec(), CreateOptions::new())
            .await
            .expect_err("hangs");
        assert_eq!((error.retry(), seconds(started)), (Retry::OutcomeUnknown, 240));

        stub.hang_once();
        let started = Instant::now();
        let error = orchestrator
            .delete(id(), DeleteOptions::retain())
            .await
            .expect_err("hangs");
        assert_eq!((error.retry(), seconds(started)), (Retry::OutcomeUnknown, 480));

        stub.stream([Script::Hang]);
        let started = Instant::now();
        let error = orchestrator
            .list(InstanceFilter::all())
            .try_next()
            .await
            .expect_err("hangs");
        assert_eq!((error.retry(), seconds(started)), (Retry::After(None), 120));

        stub.hang_once();
        let health = orchestrator.health().await;
        assert!(!health.is_ready(), "{health}");
        assert_eq!(stub.total(), 5, "nothing was repeated");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_in_time_is_passed_on() {
        let stub = Stub::new();
        stub.delay(Duration::from_secs(29));
        let seen = deadlined(&stub).get(id()).await.expect("in time");
        assert_eq!(seen.id, id());
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_stalls_ends_with_an_error_after_what_it_gave() {
        let stub = Stub::new();
        stub.stream([Script::Item, Script::Hang]);
        let seen: Vec<_> = deadlined(&stub).list(InstanceFilter::all()).collect().await;
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[0].as_ref().expect("an item").id, instance().id);
        let error = seen[1].as_ref().expect_err("a stall");
        assert_eq!((error.kind(), error.retry()), (ErrorKind::Timeout, Retry::After(None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_consumer_is_not_a_slow_server() {
        let stub = Stub::new();
        stub.stream([Script::Item, Script::Item, Script::Item]);
        let mut items = deadlined(&stub).list(InstanceFilter::all());
        let mut seen = 0;
        while items.try_next().await.expect("no deadline passed").is_some() {
            tokio::time::sleep(Duration::from_secs(60)).await;
            seen += 1;
        }
        assert_eq!(seen, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn only_logs_that_follow_may_be_silent() {
        let stub = Stub::new();
        let orchestrator = deadlined(&stub);
        stub.stream([Script::Pause(Duration::from_secs(3600)), Script::Item]);
        let mut following = orchestrator.logs(id(), LogOptions::all().follow());
        assert_eq!(following.try_next().await.expect("no deadline"), Some(line()));

        stub.stream([Script::Hang]);
        let mut whole = orchestrator.logs(id(), LogOptions::all());
        let error = whole.try_next().await.expect_err("a stall");
        assert_eq!(
            (error.kind(), error.instance()),
            (ErrorKind::Timeout, Some(id())),
            "{error}"
        );
        assert_eq!(whole.try_next().await.expect("ended"), None);
    }
}
