//! Migrations between two platforms in memory that share their data.

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::migration::{Clock, Control, Force, KnownSecrets, MemoryJournal, MigrationConfig, Migrator, Step};
use saasodoo_core::{BackendKind, InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

fn pair() -> (MemoryOrchestrator, MemoryOrchestrator) {
    let swarm = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
    let kubernetes = MemoryOrchestrator::builder()
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&swarm)
        .build();
    (swarm, kubernetes)
}

fn migrator(source: &MemoryOrchestrator, target: &MemoryOrchestrator, specs: &[InstanceSpec]) -> Migrator {
    Migrator::builder(Arc::new(source.clone()), Arc::new(target.clone()))
        .journal(Arc::new(MemoryJournal::new()))
        .data_root(ROOT)
        .secrets(Arc::new(KnownSecrets::of(specs.to_vec())))
        .clock(Clock::tokio(jiff::Timestamp::now()))
        .config(MigrationConfig::default())
        .build()
}

#[tokio::test(start_paused = true)]
async fn an_instance_moves_and_comes_back_with_its_data() {
    let (swarm, kubernetes) = pair();
    let spec = fixtures::spec("acme");
    let before = swarm
        .create_and_wait(&spec, Duration::from_secs(60))
        .await
        .expect("created");
    let location = before.storage.location.clone().expect("a location");
    swarm.write_file(&location, "invoice.pdf", "42").expect("written");

    let migrator = migrator(&swarm, &kubernetes, std::slice::from_ref(&spec));
    let record = migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved");
    for run in &record.history {
        println!("{:14} {:?} {}", run.step.to_string(), run.signal, run.note);
    }
    println!("{:#?}\n{:?}", record.plan, record.failure);
    assert_eq!(record.step, Step::Committed);
    let after = kubernetes.get(spec.id).await.expect("there");
    assert_eq!(after.status, InstanceStatus::Running);
    assert_eq!(swarm.get(spec.id).await.expect("kept").status, InstanceStatus::Paused);
    assert_eq!(
        kubernetes
            .read_file(&location, "invoice.pdf")
            .expect("readable")
            .as_deref(),
        Some(&b"42"[..])
    );

    let record = migrator.rollback(spec.id).await.expect("back");
    assert_eq!(record.step, Step::RolledBack);
    assert_eq!(swarm.status(spec.id).await.expect("read"), InstanceStatus::Running);
    assert!(!kubernetes.exists(spec.id).await.expect("read"));
    assert_eq!(swarm.violations(), []);
}
