//! What can be said in terms of the trait: shortcuts, waiting, and many instances at once.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use crate::{
    CreateOptions, Error, ErrorKind, Instance, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec,
    InstanceStatus, OperationKind, Power, Result,
};

/// Shortcuts over every [`InstanceOrchestrator`]. Implemented for all of them; not to be implemented by hand.
///
/// ```
/// use std::time::Duration;
/// use saasodoo_core::{InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, Result};
///
/// async fn bring_up(orchestrator: &dyn InstanceOrchestrator, spec: &InstanceSpec) -> Result<()> {
///     let instance = orchestrator.create_and_wait(spec, Duration::from_secs(420)).await?;
///     assert_eq!(instance.status, InstanceStatus::Running);
///     orchestrator.stop(instance.id).await?;
///     Ok(())
/// }
/// ```
#[async_trait]
pub trait InstanceOrchestratorExt: InstanceOrchestrator {
    /// Starts the instance.
    async fn start(&self, id: InstanceId) -> Result<Instance> {
        self.set_power(id, Power::Start).await
    }

    /// Stops the instance.
    async fn stop(&self, id: InstanceId) -> Result<Instance> {
        self.set_power(id, Power::Stop).await
    }

    /// Restarts the instance.
    async fn restart(&self, id: InstanceId) -> Result<Instance> {
        self.set_power(id, Power::Restart).await
    }

    /// Suspends the instance: stopped, and refusing to start.
    async fn suspend(&self, id: InstanceId) -> Result<Instance> {
        self.set_power(id, Power::Suspend).await
    }

    /// Resumes a suspended instance, which then can be started.
    async fn resume(&self, id: InstanceId) -> Result<Instance> {
        self.set_power(id, Power::Resume).await
    }

    /// Whether the instance exists. A failed read is an error, not `false`.
    async fn exists(&self, id: InstanceId) -> Result<bool> {
        match self.get(id).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The status of an instance that the caller knows to have been created:
    /// [`ContainerMissing`](InstanceStatus::ContainerMissing) when the platform does not have it.
    async fn status(&self, id: InstanceId) -> Result<InstanceStatus> {
        match self.get(id).await {
            Ok(instance) => Ok(instance.status),
            Err(error) if error.is_not_found() => Ok(InstanceStatus::ContainerMissing),
            Err(error) => Err(error),
        }
    }

    /// All instances that match, in memory.
    async fn list_all(&self, filter: InstanceFilter) -> Result<Vec<Instance>> {
        self.list(filter).try_collect().await
    }

    /// Waits until the instance has the status.
    ///
    /// # Errors
    /// `Timeout` with the last status and cause when the budget is used up; `NotAllowed` at once when the instance
    /// settles in an error whose cause does not go away by waiting; errors of reading that are not transient.
    async fn wait_until(&self, id: InstanceId, status: InstanceStatus, budget: Duration) -> Result<Instance> {
        let deadline = Instant::now() + budget;
        let mut pause = Duration::from_millis(100);
        let mut hopeless = 0;
        loop {
            let seen = self.get(id).await;
            let last = match &seen {
                Ok(instance) if instance.status == status => return seen,
                Ok(instance) => {
                    let terminal = instance.status == InstanceStatus::Error
                        && status != InstanceStatus::Stopped
                        && instance.cause.as_ref().is_some_and(crate::Cause::is_terminal);
                    hopeless = if terminal { hopeless + 1 } else { 0 };
                    let cause = instance
                        .cause
                        .as_ref()
                        .map(|cause| format!(": {cause}"))
                        .unwrap_or_default();
                    format!("it is {}{cause}", instance.status)
                }
                Err(error) if matches!(error.retry(), crate::Retry::Never) => return seen,
                Err(error) => format!("it could not be read: {error}"),
            };
            let context = |error: Error| {
                error
                    .with_operation(OperationKind::Wait)
                    .with_instance(id)
                    .with_backend(self.backend())
            };
            // A server may show an old failure for a moment after a new start: believe it when it stays.
            if hopeless >= 10 {
                return Err(context(
                    Error::new(ErrorKind::NotAllowed, format!("it will not become {status}: {last}"))
                        .with_advice("read its log and its cause; waiting does not help"),
                ));
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(context(
                    Error::new(
                        ErrorKind::Timeout,
                        format!("it did not become {status} within {budget:?}: {last}"),
                    )
                    .with_retry(crate::Retry::After(None)),
                ));
            }
            tokio::time::sleep_until(deadline.min(now + pause)).await;
            pause = (pause * 3 / 2).min(Duration::from_secs(1));
        }
    }

    /// Creates the instance and waits until it runs.
    async fn create_and_wait(&self, spec: &InstanceSpec, budget: Duration) -> Result<Instance> {
        self.create(spec, CreateOptions::new()).await?;
        self.wait_until(spec.id, InstanceStatus::Running, budget).await
    }

    /// Does something to many instances, at most `concurrency` at a time, and answers for each in the order given. An
    /// error of one does not stop the others.
    ///
    /// ```
    /// use saasodoo_core::{InstanceId, InstanceOrchestrator, InstanceOrchestratorExt};
    ///
    /// async fn stop_all(orchestrator: &dyn InstanceOrchestrator, ids: Vec<InstanceId>) -> usize {
    ///     let results = orchestrator.for_each(ids, 16, |o, id| async move { o.stop(id).await }).await;
    ///     results.into_iter().filter(|(_, result)| result.is_err()).count()
    /// }
    /// ```
    async fn for_each<'a, T, F, Fut>(
        &'a self,
        ids: Vec<InstanceId>,
        concurrency: usize,
        action: F,
    ) -> Vec<(InstanceId, Result<T>)>
    where
        T: Send + 'a,
        F: Fn(&'a Self, InstanceId) -> Fut + Send + Sync + 'a,
        Fut: Future<Output = Result<T>> + Send + 'a,
    {
        let action = &action;
        let each = ids.into_iter().map(|id| {
            let future = action(self, id);
            async move { (id, future.await) }
        });
        stream::iter(each.collect::<Vec<_>>())
            .buffered(concurrency.max(1))
            .collect()
            .await
    }
}

impl<O: InstanceOrchestrator + ?Sized> InstanceOrchestratorExt for O {}
