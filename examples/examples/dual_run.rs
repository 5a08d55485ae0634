//! Two platforms behind one orchestrator: compared with each other first, then kept in step.
//!
//! ```sh
//! cargo run -p saasodoo-examples --example dual_run
//! ```
//!
//! Both platforms are in memory and the clock is tokio's, paused: the minutes of the settle windows pass at once. The
//! chapter is `docs/src/dual-run.md`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use saasodoo_core::dual::{
    Comparator, Counts, DivergenceKind, DualRun, DualRunBuilder, IgnoreRule, MemorySink, Policy,
};
use saasodoo_core::migration::RootedData;
use saasodoo_core::{
    BackendKind, Bytes, DynOrchestrator, InstanceChange, InstanceOrchestrator as _, InstanceOrchestratorExt as _,
    InstanceSpec, UpdateOptions,
};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

const SETTLE: Duration = Duration::from_secs(30);
const ROOT: &str = "/mnt/cephfs/odoo_instances";

/// The service knows one orchestrator, and not that it is two.
struct Service {
    orchestrator: DynOrchestrator,
}

impl Service {
    async fn dashboard(&self, tenants: &[InstanceSpec]) -> Result<()> {
        for tenant in tenants {
            let seen = self.orchestrator.get(tenant.id).await?;
            println!("  {:<20} {:<8} on {}", seen.name, seen.status, seen.backend);
        }
        Ok(())
    }

    async fn upgrade(&self, tenant: &InstanceSpec, memory: Bytes) -> Result<()> {
        let change = InstanceChange::new().memory(memory);
        self.orchestrator
            .update(tenant.id, &change, UpdateOptions::new())
            .await?;
        Ok(())
    }
}

fn platforms() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let kubernetes = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&swarm)
        .build();
    (swarm, kubernetes)
}

fn dual(swarm: &MemoryOrchestrator, kubernetes: &MemoryOrchestrator, sink: &Arc<MemorySink>) -> DualRunBuilder {
    DualRun::builder(Arc::new(swarm.clone()), Arc::new(kubernetes.clone()))
        .sink(sink.clone())
        .settle(SETTLE, 3)
}

/// Prints what was found, and how many fields.
fn show(sink: &MemorySink, counts: Counts) -> Vec<String> {
    let mut fields = Vec::new();
    for divergence in sink.divergences() {
        if let DivergenceKind::Field {
            field,
            primary,
            secondary,
        } = &divergence.kind
        {
            let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
            println!(
                "  {}: {field}: {} and {}, in {} samples",
                divergence.instance.short(),
                value(primary),
                value(secondary),
                divergence.samples
            );
            fields.push(field.clone());
        } else {
            println!("  {divergence}");
        }
    }
    println!(
        "  {} comparisons: {} fields matched, {} ignored, {} settled, {} unsettled, {} diverged",
        counts.comparisons, counts.matched, counts.ignored, counts.settled, counts.unsettled, counts.diverged
    );
    fields.sort_unstable();
    fields
}

/// The new platform runs copies of the tenants on data of their own, and is looked at.
async fn observe() -> Result<()> {
    let (swarm, kubernetes) = platforms();
    let tenants = ["acme", "bolt", "cole"].map(fixtures::spec);
    for platform in [&swarm, &kubernetes] {
        for tenant in &tenants {
            platform.create_and_wait(tenant, Duration::from_secs(60)).await?;
        }
    }
    let sink = Arc::new(MemorySink::new());
    let comparator = Comparator::observed().ignoring(IgnoreRule::new(
        "odoo_version",
        "follows from the image, which is compared",
    ));
    let dual = dual(&swarm, &kubernetes, &sink)
        .policy(Policy::Observe)
        .comparator(comparator)
        .build();

    // What somebody did by hand over there.
    let image: saasodoo_core::ImageRef = "saasodoo/odoo-stub:18".parse()?;
    kubernetes.edit_by_hand(tenants[0].id, |spec| spec.image = image.clone())?;
    kubernetes.edit_by_hand(tenants[1].id, |spec| spec.resources.memory = Bytes::from_gib(3))?;
    kubernetes.stop(tenants[2].id).await?;
    // A tenant that is still stopping differs in another way each time, and is counted as unsettled.
    tokio::time::sleep(Duration::from_secs(5)).await;

    println!("Observing; the service reads:");
    let service = Service {
        orchestrator: Arc::new(dual.clone()),
    };
    service.dashboard(&tenants).await?;
    tokio::time::sleep(SETTLE - Duration::from_secs(1)).await;
    println!(
        "before the end of the settle window: {} divergences",
        sink.divergences().len()
    );
    ensure!(sink.divergences().is_empty(), "reported too early");
    tokio::time::sleep(Duration::from_secs(2)).await;
    println!("after it:");
    let found = show(&sink, dual.counts());
    let expected = [
        "image",
        "replicas.desired",
        "replicas.ready",
        "resources.memory",
        "status",
    ];
    ensure!(found == expected, "found {found:?}");
    Ok(())
}

/// The new platform has stopped copies on the same data, and every write is repeated there.
async fn mirror() -> Result<()> {
    let (swarm, kubernetes) = platforms();
    let sink = Arc::new(MemorySink::new());
    let dual = dual(&swarm, &kubernetes, &sink)
        .policy(Policy::Mirror)
        .data_locator(Arc::new(RootedData::under(ROOT)))
        .build();
    let service = Service {
        orchestrator: Arc::new(dual.clone()),
    };
    let tenant = fixtures::spec("acme");
    println!("\nMirroring; the service creates and changes:");
    service
        .orchestrator
        .create_and_wait(&tenant, Duration::from_secs(60))
        .await?;
    service.upgrade(&tenant, Bytes::from_gib(4)).await?;
    service.dashboard(std::slice::from_ref(&tenant)).await?;
    // One comparison of a tenant at a time: the one that this read began comes to its end first.
    tokio::time::sleep(SETTLE * 2).await;
    let copy = kubernetes.get(tenant.id).await?;
    println!(
        "  the copy: {} with {} on {}",
        copy.status, copy.spec.resources.memory, copy.backend
    );

    kubernetes.edit_by_hand(tenant.id, |spec| spec.resources.memory = Bytes::from_gib(8))?;
    service.dashboard(std::slice::from_ref(&tenant)).await?;
    tokio::time::sleep(SETTLE * 3).await;
    let found = show(&sink, dual.counts());
    ensure!(found == ["resources.memory"], "found {found:?}");
    ensure!(swarm.violations().is_empty(), "two writers: {:?}", swarm.violations());
    println!("  mirrored {} writes; one writer at any time", dual.counts().mirrored);
    Ok(())
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<()> {
    observe().await?;
    mirror().await
}
