//! A limit for the number of calls.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::FutureExt;
use futures::stream::{BoxStream, StreamExt};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Health, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine, LogOptions, Operation,
    Plan, Power, Result, UpdateOptions,
};

/// How many calls may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimit {
    /// Calls per second in the long run.
    pub per_second: NonZeroU32,
    /// Calls that may be made at once after a quiet time.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// So many calls per second, and as many at once; 0 counts as 1.
    #[must_use]
    pub fn per_second(calls: u32) -> Self {
        let calls = NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN);
        Self {
            per_second: calls,
            burst: calls,
        }
    }

    /// Sets how many calls may be made at once; 0 counts as 1.
    #[must_use]
    pub fn with_burst(mut self, calls: u32) -> Self {
        self.burst = NonZeroU32::new(calls).unwrap_or(NonZeroU32::MIN);
        self
    }
}

/// Makes callers wait, in the order they came, until the shared bucket has a token for their call. Clones share the
/// bucket.
///
/// A token is taken for each call of `create`, `update`, `set_power`, `delete`, `get`, `plan` and `logs`, and for each
/// `list` and `watch` when it is first polled. `health` takes none: it must answer while everything else waits. Tokens
/// count calls and not requests: see the table of requests for each operation in the documentation of the backend.
///
/// A caller that goes away while it waits has taken nothing.
///
/// ```
/// use saasodoo_core::InstanceOrchestrator;
/// use saasodoo_core::decor::{RateLimit, RateLimited};
///
/// fn gentle(backend: impl InstanceOrchestrator) -> impl InstanceOrchestrator {
///     RateLimited::new(backend, RateLimit::per_second(20).with_burst(5))
/// }
/// ```
#[derive(Debug)]
pub struct RateLimited<O> {
    inner: Arc<O>,
    bucket: Arc<Bucket>,
}

/// A token bucket kept as one instant (the generic cell rate algorithm): the time at which it will be full again.
#[derive(Debug)]
struct Bucket {
    interval: Duration,
    depth: Duration,
    full_at: Mutex<Instant>,
}

impl Bucket {
    fn new(limit: RateLimit) -> Self {
        let interval = Duration::from_secs(1) / limit.per_second.get();
        Self {
            interval,
            depth: interval.saturating_mul(limit.burst.get() - 1),
            full_at: Mutex::new(Instant::now()),
        }
    }

    /// The lock is kept while waiting, so that callers are served in order (it is fair) and one that is dropped leaves
    /// the queue without having spent anything.
    async fn take(&self) {
        let mut full_at = self.full_at.lock().await;
        let mut now = Instant::now();
        if let Some(wait) = full_at.saturating_duration_since(now).checked_sub(self.depth) {
            tokio::time::sleep(wait).await;
            now = Instant::now();
        }
        *full_at = (*full_at).max(now) + self.interval;
    }
}

impl<O: InstanceOrchestrator> RateLimited<O> {
    /// Limits the calls of this orchestrator.
    #[must_use]
    pub fn new(inner: O, limit: RateLimit) -> Self {
        Self {
            inner: Arc::new(inner),
            bucket: Arc::new(Bucket::new(limit)),
        }
    }

    fn stream<T: 'static>(
        &self,
        open: impl FnOnce(&O) -> BoxStream<'static, T> + Send + 'static,
    ) -> BoxStream<'static, T> {
        let Self { inner, bucket } = self.clone();
        async move {
            bucket.take().await;
            open(&inner)
        }
        .flatten_stream()
        .boxed()
    }
}

/// By hand, for what is shared does not have to be `Clone` itself.
impl<O> Clone for RateLimited<O> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            bucket: self.bucket.clone(),
        }
    }
}

impl<O: fmt::Display> fmt::Display for RateLimited<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<O: InstanceOrchestrator> InstanceOrchestrator for RateLimited<O> {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        self.bucket.take().await;
        self.inner.create(spec, options).await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        self.bucket.take().await;
        self.inner.update(id, change, options).await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        self.bucket.take().await;
        self.inner.set_power(id, power).await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.bucket.take().await;
        self.inner.delete(id, options).await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.bucket.take().await;
        self.inner.get(id).await
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        self.stream(move |inner| inner.list(filter))
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.stream(move |inner| inner.watch(filter))
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        self.stream(move |inner| inner.logs(id, options))
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.bucket.take().await;
        self.inner.plan(operation).await
    }

    async fn health(&self) -> Health {
        self.inner.health().await
    }
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;

    use super::*;
    use crate::OperationKind;
    use crate::decor::stub::{Script, Stub, id};

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_the_rest_comes_at_the_rate() {
        let stub = Stub::new();
        let orchestrator = RateLimited::new(stub.clone(), RateLimit::per_second(10).with_burst(5));
        let started = Instant::now();
        let shared = orchestrator.clone();
        let callers = (0..25).map(|n| {
            if n % 2 == 0 {
                shared.get(id())
            } else {
                orchestrator.get(id())
            }
        });
        for answer in join_all(callers).await {
            answer.expect("an answer");
        }
        // 5 at once, 20 more at 10 per second.
        let took = started.elapsed().as_secs_f64();
        assert!((1.99..2.05).contains(&took), "{took}");
        let at_once = stub.times().iter().filter(|at| **at == started).count();
        assert_eq!((at_once, stub.calls(OperationKind::Get)), (5, 25));

        // The bucket fills up again, and not beyond its depth.
        tokio::time::sleep(Duration::from_secs(100)).await;
        let started = Instant::now();
        for answer in join_all((0..6).map(|_| orchestrator.get(id()))).await {
            answer.expect("an answer");
        }
        let took = started.elapsed().as_secs_f64();
        assert!((0.099..0.11).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_spends_nothing() {
        let stub = Stub::new();
        let orchestrator = RateLimited::new(stub.clone(), RateLimit::per_second(1));
        orchestrator.get(id()).await.expect("the first token");
        let started = Instant::now();
        let impatient = (0..50).map(|_| tokio::time::timeout(Duration::from_millis(100), orchestrator.get(id())));
        assert!(join_all(impatient).await.iter().all(Result::is_err));
        orchestrator.get(id()).await.expect("the second token");
        let took = started.elapsed().as_secs_f64();
        assert!((0.99..1.05).contains(&took), "{took}");
        assert_eq!(stub.total(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_take_one_token_when_polled_and_health_takes_none() {
        let stub = Stub::new();
        let orchestrator = RateLimited::new(stub.clone(), RateLimit::per_second(1));
        stub.stream([Script::Item, Script::Item, Script::Item]);
        let items = orchestrator.list(InstanceFilter::all());
        orchestrator.get(id()).await.expect("the token is still there");
        let started = Instant::now();
        assert!(orchestrator.health().await.is_ready());
        assert_eq!(started.elapsed(), Duration::ZERO);
        assert_eq!(items.collect::<Vec<_>>().await.len(), 3);
        let took = started.elapsed().as_secs_f64();
        assert!((0.99..1.05).contains(&took), "one token for three items: {took}");
    }
}
