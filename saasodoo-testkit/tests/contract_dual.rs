//! The contract suite on a dual run of two platforms, under each policy.

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::dual::{DualRun, MemorySink, Policy};
use saasodoo_core::migration::RootedData;
use saasodoo_core::{BackendKind, DynOrchestrator};
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
async fn a_dual_run_keeps_the_contract() {
    keeps_the_contract(Policy::PrimaryOnly, "dual-run", FaultPlan::new()).await;
}

#[tokio::test(start_paused = true)]
async fn an_observing_dual_run_keeps_the_contract() {
    keeps_the_contract(Policy::Observe, "dual-run-observe", FaultPlan::new()).await;
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
        keeps_the_contract(Policy::Observe, name, faults).await;
    }
}
