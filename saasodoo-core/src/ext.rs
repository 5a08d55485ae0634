//! What can be said in terms of the trait: shortcuts, waiting, and many instances at once.

use std::future::Future;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, timeout_at};

use crate::{
    Cause, CreateOptions, Error, ErrorKind, Instance, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec,
    InstanceStatus, OperationKind, Power, Result,
};

/// How long a cause that does not go away by waiting is watched before the wait is given up. A first pull can fail, and
/// an autoscaler needs its minutes for a new node.
const fn patience(cause: &Cause) -> Duration {
    match cause {
        Cause::Unschedulable { .. } | Cause::QuotaExceeded { .. } => Duration::from_secs(300),
        _ => Duration::from_secs(30),
    }
}

/// Farther than anybody waits, and no overflow.
const ENDLESS: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

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

    /// Waits until the instance has the status, at most for the budget, a read that hangs included.
    ///
    /// # Errors
    /// `Timeout` with the last status and cause when the budget is used up; `NotAllowed` before that when the instance
    /// has been in an error whose cause does not go away by waiting for 30 s, or for five minutes where capacity is what
    /// is missing; errors of reading that are not transient.
    async fn wait_until(&self, id: InstanceId, status: InstanceStatus, budget: Duration) -> Result<Instance> {
        let begin = Instant::now();
        let deadline = begin.checked_add(budget.min(ENDLESS)).unwrap_or(begin);
        let mut pause = Duration::from_millis(100);
        let mut hopeless: Option<Instant> = None;
        let mut last = "it could not be read in time".to_owned();
        loop {
            let mut given_up = false;
            match timeout_at(deadline, self.get(id)).await {
                Ok(Ok(instance)) if instance.status == status => return Ok(instance),
                Ok(Ok(instance)) => {
                    let terminal = instance
                        .cause
                        .as_ref()
                        .filter(|cause| cause.is_terminal())
                        .filter(|_| instance.status == InstanceStatus::Error && status != InstanceStatus::Stopped);
                    // A server may show an old failure for a moment after a new start: believe it when it stays.
                    hopeless = terminal.map(|_| hopeless.unwrap_or_else(Instant::now));
                    given_up = terminal
                        .zip(hopeless)
                        .is_some_and(|(cause, since)| since.elapsed() >= patience(cause));
                    let cause = instance
                        .cause
                        .as_ref()
                        .map(|cause| format!(": {cause}"))
                        .unwrap_or_default();
                    last = format!("it is {}{cause}", instance.status);
                }
                Ok(Err(error)) if matches!(error.retry(), crate::Retry::Never) => return Err(error),
                Ok(Err(error)) => last = format!("it could not be read: {error}"),
                // The budget is used up: what was seen last is worth more than that this read was late.
                Err(_) => {}
            }
            let context = |error: Error| {
                error
                    .with_operation(OperationKind::Wait)
                    .with_instance(id)
                    .with_backend(self.backend())
            };
            if given_up {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decor::stub::{Stub, id, instance};
    use crate::{Facts, Unit, UnitPhase};

    /// What a stub answers while its image cannot be pulled, or no node takes it.
    fn failing(problem: Cause) -> Instance {
        let mut unit = Unit::new("u", 1, UnitPhase::Preparing);
        unit.problem = Some(problem);
        let mut facts = Facts::new(1, jiff::Timestamp::UNIX_EPOCH);
        facts.units.push(unit);
        let seen = instance();
        Instance::observed(seen.backend, seen.name, seen.spec, facts, seen.provenance)
    }

    fn pull() -> Cause {
        Cause::ImagePull {
            image: "odoo:17".to_owned(),
            message: "toomanyrequests".to_owned(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_does_not_outlast_the_budget() {
        let stub = Stub::new();
        stub.hang_once();
        let started = Instant::now();
        let budget = Duration::from_secs(5);
        let error = stub
            .wait_until(id(), InstanceStatus::Running, budget)
            .await
            .expect_err("it hangs");
        assert_eq!(
            (error.kind(), started.elapsed()),
            (ErrorKind::Timeout, budget),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_endless_budget_is_none_that_overflows() {
        let stub = Stub::new();
        let seen = stub.wait_until(id(), InstanceStatus::Stopped, Duration::MAX).await;
        assert_eq!(seen.expect("it is stopped").id, id());
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_that_stays_for_long_enough_ends_the_wait() {
        let unschedulable = Cause::Unschedulable {
            message: "0/3 nodes".to_owned(),
        };
        for (cause, seconds) in [(pull(), 30..35), (unschedulable, 300..305)] {
            let stub = Stub::new();
            stub.shows(failing(cause.clone()));
            let started = Instant::now();
            let error = stub
                .wait_until(id(), InstanceStatus::Running, Duration::from_secs(600))
                .await
                .expect_err("hopeless");
            assert_eq!(error.kind(), ErrorKind::NotAllowed, "{error}");
            let took = started.elapsed().as_secs();
            assert!(seconds.contains(&took), "{cause}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cause_that_goes_away_does_not() {
        let stub = Stub::new();
        stub.shows(failing(pull()));
        let mends = stub.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(25)).await;
            mends.shows(instance());
        });
        let seen = stub
            .wait_until(id(), InstanceStatus::Stopped, Duration::from_secs(60))
            .await
            .expect("the pull works in the end");
        assert_eq!(seen.status, InstanceStatus::Stopped);
        // And with a status that an error does not lead to.
        stub.shows(failing(pull()));
        let mends = stub.clone();
        tokio::spawn(async move {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_secs(20)).await;
                let mut well = failing(pull());
                well.status = InstanceStatus::Starting;
                mends.shows(well);
                tokio::time::sleep(Duration::from_secs(2)).await;
                mends.shows(failing(pull()));
            }
        });
        let error = stub
            .wait_until(id(), InstanceStatus::Running, Duration::from_secs(80))
            .await
            .expect_err("it never runs");
        assert_eq!(
            error.kind(),
            ErrorKind::Timeout,
            "it was on its way again and again: {error}"
        );
    }
}
