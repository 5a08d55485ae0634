//! How to test a service that uses saasodoo without a platform. The code under test is a billing worker; its tests are
//! at the end.
//!
//! ```sh
//! cargo test -p saasodoo-examples --example unit_test_with_fake
//! ```

use saasodoo_core::{DynOrchestrator, ErrorKind, InstanceId, InstanceOrchestratorExt, Result};

/// Suspends instances whose bill was not paid.
struct BillingWorker {
    orchestrator: DynOrchestrator,
}

/// What became of an unpaid bill.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Suspended,
    /// There was nothing to suspend.
    Gone,
    /// Put it back into the queue.
    Later,
}

impl BillingWorker {
    async fn unpaid(&self, id: InstanceId) -> Result<Outcome> {
        match self.orchestrator.suspend(id).await {
            Ok(_) => Ok(Outcome::Suspended),
            Err(error) if error.is_not_found() => Ok(Outcome::Gone),
            // Whether it was suspended is not known; doing it again is safe.
            Err(error) if matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable) => Ok(Outcome::Later),
            Err(error) => Err(error),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    use std::sync::Arc;

    let orchestrator: DynOrchestrator = Arc::new(saasodoo_testkit::MemoryOrchestrator::new());
    let worker = BillingWorker { orchestrator };
    let outcome = worker.unpaid(InstanceId::random()).await?;
    println!("an unpaid bill for an instance that does not exist: {outcome:?}");
    println!("the tests: cargo test -p saasodoo-examples --example unit_test_with_fake");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use saasodoo_core::{InstanceOrchestrator, InstanceSpec, InstanceStatus, OperationKind};
    use saasodoo_testkit::fixtures;
    use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator};

    use super::*;

    /// The test keeps one handle and gives another to what it tests: both are the same platform.
    async fn worker_with_a_tenant() -> (BillingWorker, MemoryOrchestrator, InstanceSpec) {
        let memory = MemoryOrchestrator::new();
        let spec = fixtures::spec("acme");
        memory
            .create_and_wait(&spec, Duration::from_secs(60))
            .await
            .expect("a running tenant");
        let worker = BillingWorker {
            orchestrator: Arc::new(memory.clone()),
        };
        (worker, memory, spec)
    }

    // The clock is paused: minutes pass in no time, and every run is the same.
    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_did_not_pay_is_stopped_and_stays_so() {
        let (worker, memory, spec) = worker_with_a_tenant().await;
        assert_eq!(worker.unpaid(spec.id).await.expect("an outcome"), Outcome::Suspended);
        memory
            .wait_until(spec.id, InstanceStatus::Paused, Duration::from_secs(60))
            .await
            .expect("it stops");
        let refused = memory.start(spec.id).await.expect_err("it is held");
        assert_eq!(refused.kind(), ErrorKind::NotAllowed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bill_for_a_tenant_who_left_is_settled() {
        let (worker, _memory, _spec) = worker_with_a_tenant().await;
        assert_eq!(
            worker.unpaid(InstanceId::random()).await.expect("an outcome"),
            Outcome::Gone
        );
    }

    // The platform does what was asked, and the answer is lost: the hardest case to produce on a real one.
    #[tokio::test(start_paused = true)]
    async fn a_lost_answer_is_made_up_for() {
        let (worker, memory, spec) = worker_with_a_tenant().await;
        memory.plan_faults(FaultPlan::new().on(OperationKind::SetPower, 1, Fault::LoseResponse));
        assert_eq!(worker.unpaid(spec.id).await.expect("an outcome"), Outcome::Later);
        assert_eq!(worker.unpaid(spec.id).await.expect("an outcome"), Outcome::Suspended);
        let instance = memory
            .wait_until(spec.id, InstanceStatus::Paused, Duration::from_secs(60))
            .await
            .expect("it stops");
        assert_eq!(instance.replicas.desired, 0);
        assert_eq!(memory.count_calls(OperationKind::SetPower), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_reaches_the_operator() {
        let (worker, memory, spec) = worker_with_a_tenant().await;
        memory.plan_faults(FaultPlan::new().always(OperationKind::SetPower, Fault::Fail(ErrorKind::Forbidden)));
        let error = worker.unpaid(spec.id).await.expect_err("nothing was done");
        assert_eq!(error.kind(), ErrorKind::Forbidden);
        let seen = memory.get(spec.id).await.expect("it is there");
        assert_eq!(seen.status, InstanceStatus::Running);
    }
}
