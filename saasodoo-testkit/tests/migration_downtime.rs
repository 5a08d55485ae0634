//! How long a tenant is down beyond the time that the platforms take.

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::migration::{Clock, Control, Force, KnownSecrets, Migrator, Step};
use saasodoo_core::{BackendKind, CreateOptions, InstanceOrchestrator};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

/// What the migration adds to the time that the platforms take: calls and looks, one after the other where the fence
/// wants it, and no more of them than it wants.
#[tokio::test(start_paused = true)]
async fn little_is_added_to_the_downtime() {
    let platform = MemoryOrchestrator::builder()
        .data_root(ROOT)
        .latency(Duration::from_millis(100))
        .stop_time(Duration::from_secs(3));
    let old = platform.clone().posing_as(BackendKind::Swarm).build();
    let new = platform
        .posing_as(BackendKind::Kubernetes)
        .start_time(Duration::from_secs(8))
        .sharing_data_with(&old)
        .build();
    let spec = fixtures::fleet(1).remove(0);
    old.create(&spec, CreateOptions::new()).await.expect("made");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let migrator = Migrator::builder(Arc::new(old.clone()), Arc::new(new))
        .data_root(ROOT)
        .secrets(Arc::new(KnownSecrets::of([spec.clone()])))
        .clock(Clock::tokio(jiff::Timestamp::now()))
        .build();
    let record = migrator
        .migrate(spec.id, Force::none(), &Control::new())
        .await
        .expect("moved");
    assert_eq!(record.step, Step::Committed, "{:?}", record.failure);
    let added = record.downtime(migrator.now()) - Duration::from_secs(3 + 8);
    assert!(added < Duration::from_millis(2500), "{added:?}");
    assert_eq!(old.violations(), []);
}
