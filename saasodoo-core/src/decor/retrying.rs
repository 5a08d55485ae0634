//! Bounded repeats of what failed for the moment.

use std::fmt;
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use futures::future::FutureExt;
use futures::stream::{self, BoxStream, StreamExt};

use crate::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Error, Health, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine, LogOptions, Operation,
    OperationKind, Plan, Power, Result, Retry, UpdateOptions,
};

/// How often and how fast a failed call is repeated.
///
/// The pauses double from [`min_delay`](Self::min_delay) to [`max_delay`](Self::max_delay), and each is made longer by
/// a random part of itself, so that callers which failed together do not come back together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first one included. Default: 4.
    pub attempts: NonZeroU32,
    /// The first pause. Default: 200 ms.
    pub min_delay: Duration,
    /// The longest pause, without the random part. Default: 5 s.
    pub max_delay: Duration,
    /// The longest pause a server may ask for. When it asks for more, the call fails at once with the server's advice,
    /// and the caller decides. Default: 30 s.
    pub max_server_delay: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: NonZeroU32::MIN.saturating_add(3),
            min_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(5),
            max_server_delay: Duration::from_secs(30),
        }
    }
}

impl RetryPolicy {
    /// Sets the number of attempts in all; 0 counts as 1.
    #[must_use]
    pub fn with_attempts(mut self, attempts: u32) -> Self {
        self.attempts = NonZeroU32::new(attempts).unwrap_or(NonZeroU32::MIN);
        self
    }

    /// Sets the first and the longest pause.
    #[must_use]
    pub fn with_delays(mut self, min: Duration, max: Duration) -> Self {
        self.min_delay = min;
        self.max_delay = max;
        self
    }

    /// Sets the longest pause a server may ask for.
    #[must_use]
    pub fn with_max_server_delay(mut self, delay: Duration) -> Self {
        self.max_server_delay = delay;
        self
    }

    fn pauses(&self) -> ExponentialBackoff {
        let times = usize::try_from(self.attempts.get() - 1).unwrap_or(usize::MAX);
        ExponentialBuilder::new()
            .with_min_delay(self.min_delay)
            .with_max_delay(self.max_delay)
            .with_max_times(times)
            .with_jitter()
            .build()
    }
}

/// Repeats calls that failed for the moment, as the error's [`Retry`] advises.
///
/// | | `Never` | `After` | `OutcomeUnknown` |
/// |---|---|---|---|
/// | `get`, `plan` | no | yes | yes: a read changes nothing |
/// | `list`, `logs` | no | before the first item | before the first item |
/// | `create`, `update`, `set_power`, `delete` | no | yes | yes, but for the two below |
/// | `update` with [`if_revision`](UpdateOptions::if_revision), `set_power(Restart)` | no | yes | no |
/// | `watch`, `health` | they have no errors | | |
///
/// A mutation whose outcome is unknown is repeated only because every mutation of [`InstanceOrchestrator`] looks before
/// it acts. The answer is then that of the repeat: `Unchanged` where the lost answer was `Created` or `Updated`, and
/// [`already_gone`](Deleted::already_gone) where it was a deletion. The two exceptions cannot tell their own first
/// attempt from somebody else's: an update would meet the revision that it made itself, and a restart would replace the
/// tenant's process twice.
///
/// A list that failed in the middle is not repeated, for its beginning has been delivered.
///
/// ```
/// use saasodoo_core::InstanceOrchestrator;
/// use saasodoo_core::decor::{RetryPolicy, Retrying};
///
/// fn patient(backend: impl InstanceOrchestrator) -> impl InstanceOrchestrator {
///     Retrying::new(backend, RetryPolicy::default().with_attempts(6))
/// }
/// ```
#[derive(Debug)]
pub struct Retrying<O> {
    inner: Arc<O>,
    policy: RetryPolicy,
}

/// By hand, for what is shared does not have to be `Clone` itself.
impl<O> Clone for Retrying<O> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            policy: self.policy,
        }
    }
}

impl<O: InstanceOrchestrator> Retrying<O> {
    /// Repeats the calls of this orchestrator.
    #[must_use]
    pub fn new(inner: O, policy: RetryPolicy) -> Self {
        Self {
            inner: Arc::new(inner),
            policy,
        }
    }

    async fn call<T, F, Fut>(&self, operation: OperationKind, unknown: Unknown, attempt: F) -> Result<T>
    where
        F: Fn() -> Fut + Send + Sync,
        Fut: Future<Output = Result<T>> + Send,
        T: Send,
    {
        let mut turns = Turns::new(&self.policy, operation, unknown);
        loop {
            match attempt().await {
                Ok(answer) => return Ok(answer),
                Err(error) => turns.after(error).await?,
            }
        }
    }

    fn first<T, F>(&self, operation: OperationKind, open: F) -> BoxStream<'static, Result<T>>
    where
        F: Fn(&O) -> BoxStream<'static, Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let inner = self.inner.clone();
        let mut turns = Turns::new(&self.policy, operation, Unknown::Repeat);
        async move {
            loop {
                let mut items = open(&inner);
                match items.next().await {
                    Some(Err(error)) => {
                        if let Err(error) = turns.after(error).await {
                            return stream::once(async { Err(error) }).boxed();
                        }
                    }
                    Some(first) => return stream::once(async { first }).chain(items).boxed(),
                    None => return stream::empty().boxed(),
                }
            }
        }
        .flatten_stream()
        .boxed()
    }
}

/// What to do when the outcome of an attempt is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Repeat,
    GiveUp,
}

/// The attempts of one call.
struct Turns {
    pauses: ExponentialBackoff,
    max_server_delay: Duration,
    operation: OperationKind,
    unknown: Unknown,
    attempt: u32,
}

impl Turns {
    fn new(policy: &RetryPolicy, operation: OperationKind, unknown: Unknown) -> Self {
        Self {
            pauses: policy.pauses(),
            max_server_delay: policy.max_server_delay,
            operation,
            unknown,
            attempt: 1,
        }
    }

    /// Waits for the next turn, or gives the error back when there is none.
    async fn after(&mut self, error: Error) -> Result<()> {
        let asked = match error.retry() {
            Retry::Never => return Err(error),
            Retry::OutcomeUnknown if self.unknown == Unknown::GiveUp => return Err(error),
            Retry::OutcomeUnknown => None,
            Retry::After(asked) => asked,
        };
        if asked.is_some_and(|asked| asked > self.max_server_delay) {
            return Err(error);
        }
        let Some(pause) = self.pauses.next() else {
            return Err(error);
        };
        // Never earlier than the server asked for, and still spread out.
        let pause = asked.map_or(pause, |asked| asked.saturating_add(pause));
        tracing::info!(
            operation = self.operation.as_str(),
            attempt = self.attempt,
            pause_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
            %error,
            "repeating a call that failed for the moment"
        );
        self.attempt = self.attempt.saturating_add(1);
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

impl<O: fmt::Display> fmt::Display for Retrying<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<O: InstanceOrchestrator> InstanceOrchestrator for Retrying<O> {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        self.call(OperationKind::Create, Unknown::Repeat, || {
            self.inner.create(spec, options.clone())
        })
        .await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        let unknown = match options.if_revision {
            Some(_) => Unknown::GiveUp,
            None => Unknown::Repeat,
        };
        self.call(OperationKind::Update, unknown, || {
            self.inner.update(id, change, options.clone())
        })
        .await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        let unknown = match power {
            Power::Restart => Unknown::GiveUp,
            Power::Start | Power::Stop | Power::Suspend | Power::Resume => Unknown::Repeat,
        };
        self.call(OperationKind::SetPower, unknown, || self.inner.set_power(id, power))
            .await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.call(OperationKind::Delete, Unknown::Repeat, || {
            self.inner.delete(id, options.clone())
        })
        .await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.call(OperationKind::Get, Unknown::Repeat, || self.inner.get(id))
            .await
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.first(OperationKind::List, move |inner| inner.list(filter.clone()))
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.inner.watch(filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        self.first(OperationKind::Logs, move |inner| inner.logs(id, options.clone()))
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.call(OperationKind::Plan, Unknown::Repeat, || self.inner.plan(operation))
            .await
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use tokio::time::Instant;

    use super::*;
    use crate::ErrorKind;
    use crate::decor::stub::{Script, Stub, id, spec, unavailable};

    fn retrying(stub: &Stub) -> Retrying<Stub> {
        Retrying::new(stub.clone(), RetryPolicy::default())
    }

    fn unknown() -> Error {
        Error::new(ErrorKind::Timeout, "no answer")
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_is_repeated_until_it_answers() {
        let stub = Stub::new();
        stub.fail([unavailable(), unknown(), unavailable()]);
        retrying(&stub).get(id()).await.expect("the fourth attempt");
        assert_eq!(stub.calls(OperationKind::Get), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_are_bounded_and_the_last_error_is_given_back() {
        let stub = Stub::new();
        stub.fail((0..10).map(|n| Error::new(ErrorKind::Unavailable, format!("failure {n}"))));
        let error = retrying(&stub).get(id()).await.expect_err("all fail");
        assert_eq!(
            (error.message(), stub.calls(OperationKind::Get)),
            ("failure 3", 4),
            "{error}"
        );
        let once = Retrying::new(stub.clone(), RetryPolicy::default().with_attempts(0));
        once.get(id()).await.expect_err("the only attempt fails");
        assert_eq!(stub.calls(OperationKind::Get), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn what_will_not_change_is_not_repeated() {
        let final_kinds = ErrorKind::ALL
            .into_iter()
            .filter(|kind| Error::new(*kind, "").retry() == Retry::Never);
        for kind in final_kinds {
            let stub = Stub::new();
            stub.fail([Error::new(kind, "no")]);
            let error = retrying(&stub)
                .create(&spec(), CreateOptions::new())
                .await
                .expect_err("refused");
            assert_eq!((error.kind(), stub.total()), (kind, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_with_jitter_and_stay_within_bounds() {
        let stub = Stub::new();
        stub.fail((0..10).map(|_| unavailable()));
        let policy = RetryPolicy::default()
            .with_attempts(7)
            .with_delays(Duration::from_secs(1), Duration::from_secs(4));
        Retrying::new(stub.clone(), policy).get(id()).await.expect_err("fails");
        let at = stub.times();
        let pauses: Vec<f64> = at.windows(2).map(|w| (w[1] - w[0]).as_secs_f64()).collect();
        assert_eq!(pauses.len(), 6);
        for (pause, base) in pauses.iter().zip([1.0, 2.0, 4.0, 4.0, 4.0, 4.0]) {
            assert!((base..=2.0 * base + 0.01).contains(pause), "{pauses:?}");
        }
        let mut ends = pauses[2..].to_vec();
        ends.dedup();
        assert!(ends.len() > 1, "no jitter: {pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_names_a_pause_gets_it() {
        let stub = Stub::new();
        let throttled = |seconds| {
            Error::new(ErrorKind::Throttled, "slow down").with_retry(Retry::After(Some(Duration::from_secs(seconds))))
        };
        stub.fail([throttled(20)]);
        let orchestrator = retrying(&stub);
        let started = Instant::now();
        orchestrator.get(id()).await.expect("the second attempt");
        let waited = started.elapsed().as_secs_f64();
        assert!((20.0..21.0).contains(&waited), "{waited}");

        stub.fail([throttled(3600)]);
        let started = Instant::now();
        let error = orchestrator.get(id()).await.expect_err("an hour is too long");
        assert_eq!(error.retry(), Retry::After(Some(Duration::from_secs(3600))));
        assert!(started.elapsed() < Duration::from_millis(1));
        assert_eq!(stub.calls(OperationKind::Get), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_mutation_of_unknown_outcome_is_repeated_unless_it_cannot_recognise_itself() {
        let stub = Stub::new();
        let orchestrator = retrying(&stub);
        let change = InstanceChange::new();

        stub.fail([unknown()]);
        orchestrator.create(&spec(), CreateOptions::new()).await.expect("again");
        stub.fail([unknown()]);
        orchestrator
            .update(id(), &change, UpdateOptions::new())
            .await
            .expect("again");
        stub.fail([unknown()]);
        orchestrator.delete(id(), DeleteOptions::retain()).await.expect("again");
        for power in [Power::Start, Power::Stop, Power::Suspend, Power::Resume] {
            stub.fail([unknown()]);
            orchestrator.set_power(id(), power).await.expect("again");
        }
        assert_eq!(stub.total(), 14);

        stub.fail([unknown()]);
        let error = orchestrator
            .update(id(), &change, UpdateOptions::new().if_revision("7"))
            .await
            .expect_err("its own revision would look like another's");
        assert_eq!(error.retry(), Retry::OutcomeUnknown);
        stub.fail([unknown()]);
        orchestrator
            .set_power(id(), Power::Restart)
            .await
            .expect_err("a second restart is not asked for");
        assert_eq!(stub.total(), 16);

        // What certainly changed nothing is repeated all the same.
        stub.fail([unavailable()]);
        orchestrator.set_power(id(), Power::Restart).await.expect("again");
        assert_eq!(stub.total(), 18);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_is_repeated_only_before_its_first_item() {
        let stub = Stub::new();
        stub.stream([Script::Fail(unavailable())]);
        stub.stream([Script::Item, Script::Item]);
        let all = retrying(&stub).list(InstanceFilter::all());
        assert_eq!(stub.total(), 0, "a list is lazy");
        assert_eq!(all.try_collect::<Vec<_>>().await.expect("the second attempt").len(), 2);
        assert_eq!(stub.calls(OperationKind::List), 2);

        stub.stream([Script::Item, Script::Fail(unavailable())]);
        let seen: Vec<_> = retrying(&stub).list(InstanceFilter::all()).collect().await;
        assert_eq!((seen.len(), seen[0].is_ok(), seen[1].is_err()), (2, true, true));
        assert_eq!(stub.calls(OperationKind::List), 3);

        stub.stream([]);
        let none: Vec<_> = retrying(&stub).list(InstanceFilter::all()).collect().await;
        assert!(none.is_empty());
        assert_eq!(stub.calls(OperationKind::List), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn logs_give_up_after_the_same_number_of_attempts() {
        let stub = Stub::new();
        for _ in 0..6 {
            stub.stream([Script::Fail(unavailable())]);
        }
        let lines: Vec<_> = retrying(&stub).logs(id(), LogOptions::all()).collect().await;
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].as_ref().expect_err("all fail").kind(), ErrorKind::Unavailable);
        assert_eq!(stub.calls(OperationKind::Logs), 4);
    }
}
