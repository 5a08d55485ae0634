//! A span for each call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use futures::stream::{BoxStream, Stream, StreamExt};
use tokio::time::Instant;
use tracing::field::{Empty, display};
use tracing::{Instrument, Span};

use crate::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Error, ErrorKind, Health, HealthState,
    Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine,
    LogOptions, Operation, OperationKind, Plan, Power, Result, UpdateOptions,
};

/// Records a [`tracing`] span named `saasodoo` for each call.
///
/// | field | value |
/// |---|---|
/// | `operation` | [`OperationKind::as_str`] |
/// | `backend` | [`BackendKind::as_str`] |
/// | `instance` | the id, for calls about one instance |
/// | `outcome` | `ok`, the [`ErrorKind`], or `cancelled` when the caller went away |
/// | `duration_ms` | how long the call took, or the stream was open |
/// | `items` | what a stream gave |
///
/// At the end of each call an event is recorded in its span: at `debug` for reads, `info` for mutations, `warn` with
/// the error's text for failures; that an instance does not exist is an answer and no failure. A watch that loses its
/// connection is a `warn`, and an `info` when it has caught up. Specs, changes, environment variables, log lines and
/// the sources of errors are never recorded, so no secret is.
///
/// ```
/// use saasodoo_core::InstanceOrchestrator;
/// use saasodoo_core::decor::Traced;
///
/// fn observed(backend: impl InstanceOrchestrator) -> impl InstanceOrchestrator {
///     Traced::new(backend)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Traced<O> {
    inner: O,
}

impl<O: InstanceOrchestrator> Traced<O> {
    /// Traces the calls of this orchestrator.
    #[must_use]
    pub fn new(inner: O) -> Self {
        Self { inner }
    }

    fn begin(&self, operation: OperationKind, id: Option<InstanceId>) -> Recorded {
        let span = tracing::info_span!(
            "saasodoo",
            operation = operation.as_str(),
            backend = self.inner.backend().as_str(),
            instance = Empty,
            outcome = Empty,
            duration_ms = Empty,
            items = Empty,
        );
        if let Some(id) = id {
            span.record("instance", display(id));
        }
        Recorded {
            span,
            started: Instant::now(),
            operation,
            items: None,
            ended: false,
        }
    }

    async fn call<T>(
        &self,
        operation: OperationKind,
        id: InstanceId,
        future: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let mut recorded = self.begin(operation, Some(id));
        let answer = future.instrument(recorded.span.clone()).await;
        recorded.end(answer.as_ref().err());
        answer
    }
}

/// A call that is under way. When it is dropped before its end, its caller went away.
struct Recorded {
    span: Span,
    started: Instant,
    operation: OperationKind,
    items: Option<u64>,
    ended: bool,
}

impl Recorded {
    fn end(&mut self, error: Option<&Error>) {
        self.finish(error.map_or("ok", |error| error.kind().as_str()));
        let _in = self.span.enter();
        let mutation = matches!(
            self.operation,
            OperationKind::Create | OperationKind::Update | OperationKind::SetPower | OperationKind::Delete
        );
        match error {
            Some(error) if error.kind() == ErrorKind::NotFound && !mutation => tracing::debug!("absent"),
            Some(error) => tracing::warn!(%error, "failed"),
            None if mutation => tracing::info!("done"),
            None => tracing::debug!("done"),
        }
    }

    fn finish(&mut self, outcome: &'static str) {
        self.ended = true;
        let took = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.span.record("outcome", outcome);
        self.span.record("duration_ms", took);
        if let Some(items) = self.items {
            self.span.record("items", items);
        }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if !self.ended {
            self.finish("cancelled");
            let _in = self.span.enter();
            tracing::debug!("cancelled");
        }
    }
}

/// What a span says about the items of a stream.
trait Told {
    /// The error, when the item is one.
    fn error(&self) -> Option<&Error>;
    /// Records what an operator should know of the item.
    fn tell(&self) {}
}

impl<T> Told for Result<T> {
    fn error(&self) -> Option<&Error> {
        self.as_ref().err()
    }
}

impl Told for InstanceEvent {
    fn error(&self) -> Option<&Error> {
        None
    }

    fn tell(&self) {
        match self {
            Self::Stale(stale) => {
                tracing::warn!(since = %stale.since, reason = stale.reason, "the watch is out of touch");
            }
            Self::Synced => tracing::info!("the watch is in step"),
            Self::Applied(_) | Self::Deleted(_) => {}
        }
    }
}

struct TracedStream<T> {
    items: BoxStream<'static, T>,
    recorded: Recorded,
}

impl<T: Told> Stream for TracedStream<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let span = self.recorded.span.clone();
        let _in = span.enter();
        let polled = self.items.as_mut().poll_next(cx);
        if let Poll::Ready(item) = &polled
            && !self.recorded.ended
        {
            match item {
                Some(item) => match item.error() {
                    Some(error) => self.recorded.end(Some(error)),
                    None => {
                        *self.recorded.items.get_or_insert(0) += 1;
                        item.tell();
                    }
                },
                None => self.recorded.end(None),
            }
        }
        polled
    }
}

impl<O: fmt::Display> fmt::Display for Traced<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<O: InstanceOrchestrator> InstanceOrchestrator for Traced<O> {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        self.call(OperationKind::Create, spec.id, self.inner.create(spec, options))
            .await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        self.call(OperationKind::Update, id, self.inner.update(id, change, options))
            .await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        self.call(OperationKind::SetPower, id, self.inner.set_power(id, power))
            .await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.call(OperationKind::Delete, id, self.inner.delete(id, options))
            .await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.call(OperationKind::Get, id, self.inner.get(id)).await
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        let recorded = self.begin(OperationKind::List, None);
        let items = self.inner.list(filter);
        TracedStream { items, recorded }.boxed()
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        let recorded = self.begin(OperationKind::Watch, None);
        let items = self.inner.watch(filter);
        TracedStream { items, recorded }.boxed()
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        let recorded = self.begin(OperationKind::Logs, Some(id));
        let items = self.inner.logs(id, options);
        TracedStream { items, recorded }.boxed()
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.call(OperationKind::Plan, operation.instance(), self.inner.plan(operation))
            .await
    }

    async fn health(&self) -> Health {
        let mut recorded = self.begin(OperationKind::Health, None);
        let health = self.inner.health().instrument(recorded.span.clone()).await;
        let _in = recorded.span.clone().entered();
        recorded.finish(match health.state() {
            HealthState::Ok => "ok",
            HealthState::Degraded => "degraded",
            HealthState::Failed => "failed",
        });
        for check in health.checks.iter().filter(|check| check.state != HealthState::Ok) {
            tracing::warn!(check = check.name, detail = check.detail, "the platform is not well");
        }
        health
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use tracing_subscriber::fmt::format::FmtSpan;

    use super::*;
    use crate::decor::stub::{Script, Stub, id, spec, unavailable};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
        }

        fn line(&self, with: &str) -> String {
            let text = self.text();
            let found = text.lines().find(|line| line.contains(with));
            found.unwrap_or_else(|| panic!("no {with:?} in:\n{text}")).to_owned()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn capture() -> (Captured, tracing::subscriber::DefaultGuard) {
        // What a thread without a subscriber meets first is switched off, for a moment for the other threads too.
        static EVERYWHERE: std::sync::Once = std::sync::Once::new();
        EVERYWHERE.call_once(|| {
            tracing::subscriber::set_global_default(tracing_subscriber::registry()).expect("the first");
        });
        let captured = Captured::default();
        let writer = captured.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_span_events(FmtSpan::CLOSE)
            .with_writer(move || writer.clone())
            .finish();
        (captured, tracing::subscriber::set_default(subscriber))
    }

    #[tokio::test(start_paused = true)]
    async fn a_span_names_the_operation_the_instance_and_the_outcome() {
        let (captured, _guard) = capture();
        let stub = Stub::new();
        let orchestrator = Traced::new(stub.clone());
        stub.delay(Duration::from_millis(250));
        orchestrator
            .create(&spec(), CreateOptions::new())
            .await
            .expect("created");
        let done = captured.line("done");
        for part in [
            "INFO",
            "operation=\"create\"",
            "backend=\"memory\"",
            &format!("instance={}", id()),
            "outcome=\"ok\"",
            "duration_ms=250",
        ] {
            assert!(done.contains(part), "{part} is not in {done}");
        }

        stub.fail([unavailable()]);
        orchestrator.get(id()).await.expect_err("refused");
        let failed = captured.line("failed");
        assert!(
            failed.contains("WARN") && failed.contains("outcome=\"unavailable\""),
            "{failed}"
        );
        stub.fail([Error::not_found(id())]);
        orchestrator.get(id()).await.expect_err("absent");
        assert!(captured.line("absent").contains("DEBUG"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_caller_went_away_is_recorded_as_cancelled() {
        let (captured, _guard) = capture();
        let stub = Stub::new();
        stub.hang_once();
        let orchestrator = Traced::new(stub);
        let call = orchestrator.set_power(id(), Power::Stop);
        tokio::time::timeout(Duration::from_secs(3), call)
            .await
            .expect_err("hangs");
        let line = captured.line("cancelled");
        assert!(
            line.contains("operation=\"set_power\"") && line.contains("duration_ms=3000"),
            "{line}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn streams_count_their_items_and_end_once() {
        let (captured, _guard) = capture();
        let stub = Stub::new();
        let orchestrator = Traced::new(stub.clone());
        stub.stream([Script::Item, Script::Item]);
        assert_eq!(orchestrator.list(InstanceFilter::all()).count().await, 2);
        let line = captured.line("done");
        assert!(
            line.contains("operation=\"list\"") && line.contains("items=2"),
            "{line}"
        );

        stub.stream([Script::Item, Script::Fail(unavailable())]);
        assert_eq!(orchestrator.logs(id(), LogOptions::all()).count().await, 2);
        let line = captured.line("failed");
        assert!(
            line.contains("operation=\"logs\"") && line.contains("items=1"),
            "{line}"
        );

        let mut events = orchestrator.watch(InstanceFilter::all());
        while let Some(event) = events.next().await {
            if matches!(event, InstanceEvent::Stale(_)) {
                break;
            }
        }
        drop(events);
        assert!(captured.line("in step").contains("operation=\"watch\""));
        assert!(captured.line("out of touch").contains("WARN"));
        assert!(captured.line("cancelled").contains("items=3"));
    }

    #[tokio::test(start_paused = true)]
    async fn no_secret_is_recorded() {
        let (captured, _guard) = capture();
        let stub = Stub::new();
        let orchestrator = Traced::new(stub.clone());
        let spec = spec()
            .with_env("TOKEN".parse().expect("a name"), "s3ntinel")
            .with_admin("a@b.example", "s3ntinel".into());
        stub.fail([unavailable().with_source(std::io::Error::other("s3ntinel"))]);
        orchestrator
            .create(&spec, CreateOptions::new())
            .await
            .expect_err("refused");
        orchestrator.create(&spec, CreateOptions::new()).await.expect("created");
        let change = InstanceChange::new().set_env("TOKEN".parse().expect("a name"), "s3ntinel");
        orchestrator
            .update(id(), &change, UpdateOptions::new())
            .await
            .expect("updated");
        let text = captured.text();
        assert!(text.contains("operation=\"update\""), "{text}");
        assert!(!text.contains("s3ntinel"), "{text}");
    }
}
