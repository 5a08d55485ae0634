//! The contract suite against the in-memory backend posing as each of the two platforms, as migration tests use it.

use std::sync::Arc;

use saasodoo_core::{BackendKind, Capabilities, Capability, DynOrchestrator};
use saasodoo_testkit::contract::Runner;
use saasodoo_testkit::memory::{MemoryOrchestrator, MemorySubject};

/// With what the Swarm backend can do.
#[tokio::test(start_paused = true)]
async fn posing_as_swarm() {
    let memory = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Swarm)
        .capabilities(
            Capabilities::all()
                .without(Capability::OutOfMemoryCertain)
                .without(Capability::Tolerations)
                .without(Capability::PriorityClass)
                .without(Capability::CachedGet),
        )
        .build();
    let orchestrator: DynOrchestrator = Arc::new(memory.clone());
    let subject = MemorySubject::over("memory-as-swarm", orchestrator, memory.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    report.assert_passed(140);
    assert_eq!(memory.violations(), []);
}

/// With what the Kubernetes backend can do.
#[tokio::test(start_paused = true)]
async fn posing_as_kubernetes() {
    let memory = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .capabilities(Capabilities::all().without(Capability::StorageUsage))
        .build();
    let orchestrator: DynOrchestrator = Arc::new(memory.clone());
    let subject = MemorySubject::over("memory-as-kubernetes", orchestrator, memory.clone());
    let report = Runner::new(Arc::new(subject)).run().await;
    report.assert_passed(140);
    assert_eq!(memory.violations(), []);
}
