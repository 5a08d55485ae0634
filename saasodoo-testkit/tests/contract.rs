//! The contract suite against the in-memory backend, alone and posing as the two platforms.

use std::sync::Arc;

use saasodoo_core::{BackendKind, Capabilities, Capability, DynOrchestrator};
use saasodoo_testkit::contract::Runner;
use saasodoo_testkit::memory::{MemoryOrchestrator, MemorySubject};

#[tokio::test(start_paused = true)]
async fn memory() {
    let memory = MemoryOrchestrator::new();
    let report = Runner::new(Arc::new(MemorySubject::new(memory.clone()))).run().await;
    println!("{report}");
    report.write().expect("the result file");
    report.assert_passed(60);
    assert_eq!(memory.violations(), []);
}

/// With everything off that can be off, as a plain Swarm would be.
#[tokio::test(start_paused = true)]
async fn memory_with_no_capabilities() {
    let memory = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Swarm)
        .capabilities(Capabilities::default())
        .build();
    let orchestrator: DynOrchestrator = Arc::new(memory.clone());
    let subject = MemorySubject::over("memory-without-capabilities", orchestrator, memory.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    println!("{report}");
    report.assert_passed(60);
    assert_eq!(memory.violations(), []);
}

#[tokio::test(start_paused = true)]
async fn memory_posing_as_kubernetes() {
    let memory = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .capabilities(Capabilities::all().without(Capability::OutOfMemoryCertain))
        .build();
    let orchestrator: DynOrchestrator = Arc::new(memory.clone());
    let subject = MemorySubject::over("memory-as-kubernetes", orchestrator, memory.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    println!("{report}");
    report.assert_passed(60);
    assert_eq!(memory.violations(), []);
}
