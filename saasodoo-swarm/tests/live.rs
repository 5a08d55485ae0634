//! Against the testbed's Docker Swarm and CephFS.

mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::{directory, on_testbed, spec};
use saasodoo_core::{
    CreateOptions, DeleteOptions, EnsureOutcome, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus,
    Operation,
};
use saasodoo_swarm::SwarmOrchestrator;

#[tokio::test]
#[ignore = "needs Docker Swarm (creates services)"]
async fn an_instance_lives_and_dies() {
    on_testbed(lives_and_dies).await;
}

async fn lives_and_dies(swarm: SwarmOrchestrator, _root: PathBuf) {
    let spec = spec();
    let ensured = swarm.create(&spec, CreateOptions::new()).await.expect("created");
    assert_eq!(ensured.outcome, EnsureOutcome::Created);
    let running = swarm
        .wait_until(spec.id, InstanceStatus::Running, Duration::from_secs(60))
        .await
        .expect("running");
    assert!(running.spec.diff(&spec).is_empty(), "{:?}", running.spec.diff(&spec));
    assert!(running.unparsed.is_empty(), "{:?}", running.unparsed);
    let data = directory(running.storage.location.as_ref());
    assert!(data.join("heartbeat.log").exists());
    swarm.stop(spec.id).await.expect("accepted");
    swarm
        .wait_until(spec.id, InstanceStatus::Stopped, Duration::from_secs(30))
        .await
        .expect("stopped");
    let plan = swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let token = plan.purge_token.expect("a token");
    let deleted = swarm.delete(spec.id, DeleteOptions::purge(token)).await.expect("deleted");
    assert_eq!(deleted.purged.len(), 1);
    assert!(!data.exists());
}
