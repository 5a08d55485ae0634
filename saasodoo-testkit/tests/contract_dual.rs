//! The contract suite on a dual run of two platforms, under each policy.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use saasodoo_core::dual::{DualRun, MemorySink, Place, Placement, PlacementStore, Policy};
use saasodoo_core::migration::RootedData;
use saasodoo_core::{BackendKind, DynOrchestrator, InstanceId, Result};
use saasodoo_testkit::contract::{Outcome, Runner};
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, MemorySubject, Violation};

const ROOT: &str = "/mnt/cephfs/odoo_instances";

fn pair() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let latency = Duration::from_millis(5);
    let primary = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Swarm)
        .latency(latency)
        .build();
    let secondary = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .latency(latency)
        .sharing_data_with(&primary)
        .build();
    (primary, secondary)
}

fn dual(policy: Policy, primary: &MemoryOrchestrator, secondary: DynOrchestrator, sink: &Arc<MemorySink>) -> DualRun {
    DualRun::builder(Arc::new(primary.clone()), secondary)
        .policy(policy)
        .sink(Arc::clone(sink) as _)
        .data_locator(Arc::new(RootedData::under(ROOT)))
        .settle(Duration::from_secs(10), 3)
        .create_budget(Duration::from_millis(200))
        .build()
}

/// Everybody lives on the secondary.
#[derive(Debug)]
struct AllMoved;

#[async_trait]
impl PlacementStore for AllMoved {
    async fn get(&self, _id: InstanceId) -> Result<Option<Placement>> {
        Ok(Some(Placement::At(Place::Secondary)))
    }

    async fn set(&self, _id: InstanceId, _place: Place) -> Result<()> {
        Ok(())
    }

    async fn begin_move(&self, _id: InstanceId, _from: Place) -> Result<()> {
        Ok(())
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        Ok(true)
    }
}

/// The suite on tenants that were moved to the secondary.
#[tokio::test(start_paused = true)]
async fn a_dual_run_keeps_the_contract_for_those_who_were_moved() {
    let (primary, secondary) = pair();
    let sink = Arc::new(MemorySink::new());
    let dual = DualRun::builder(Arc::new(primary), Arc::new(secondary.clone()))
        .policy(Policy::Observe)
        .placement(Arc::new(AllMoved))
        .sink(sink)
        .settle(Duration::from_secs(10), 3)
        .build();
    let subject = MemorySubject::over("dual-run-moved", Arc::new(dual), secondary.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    report.write().expect("the result file");
    println!("{report}");
    report.assert_passed(140);
    assert_eq!(secondary.violations(), []);
}

async fn keeps_the_contract(policy: Policy, name: &str, faults: FaultPlan) {
    let (primary, secondary) = pair();
    secondary.plan_faults(faults);
    let sink = Arc::new(MemorySink::new());
    let dual = dual(policy, &primary, Arc::new(secondary), &sink);
    let subject = MemorySubject::over(name, Arc::new(dual), primary.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    report.write().expect("the result file");
    println!("{report}");
    report.assert_passed(140);
    let not_run = report.count(Outcome::Skipped) + report.count(Outcome::Unsupported);
    assert!(report.filtered || not_run <= 8, "{report}");
    // A purge through a mirroring dual run deletes the data under the stopped copy too, which goes away a moment later.
    let two_writers: Vec<Violation> = primary
        .violations()
        .into_iter()
        .filter(|violation| policy != Policy::Mirror || matches!(violation, Violation::TwoWriters { .. }))
        .collect();
    assert_eq!(two_writers, []);
}

#[tokio::test(start_paused = true)]
async fn a_dual_run_of_the_primary_only_keeps_the_contract() {
    keeps_the_contract(Policy::PrimaryOnly, "dual-run-primary-only", FaultPlan::new()).await;
}

#[tokio::test(start_paused = true)]
async fn an_observing_dual_run_keeps_the_contract() {
    // The name that CI asks for.
    keeps_the_contract(Policy::Observe, "dual-run", FaultPlan::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_mirroring_dual_run_keeps_the_contract() {
    keeps_the_contract(Policy::Mirror, "dual-run-mirror", FaultPlan::new()).await;
}

/// A secondary that hangs, fails or panics in every call changes no answer.
#[tokio::test(start_paused = true)]
async fn a_broken_secondary_breaks_no_promise() {
    for (name, fault) in [
        ("dual-run-hangs", Fault::Hang),
        ("dual-run-fails", Fault::Fail(saasodoo_core::ErrorKind::Unavailable)),
        ("dual-run-panics", Fault::Panic),
    ] {
        let faults = FaultPlan::new().with(saasodoo_testkit::memory::PlannedFault {
            operation: None,
            instance: None,
            first: 1,
            last: None,
            fault,
        });
        keeps_the_contract(Policy::Observe, name, faults.clone()).await;
        keeps_the_contract(Policy::Mirror, &format!("{name}-mirror"), faults).await;
    }
}
