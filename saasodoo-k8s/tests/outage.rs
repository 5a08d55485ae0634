//! What a watch does while the server is away. Stops the cluster's API server for some seconds, so nothing else may be
//! using it.
//!
//! ```sh
//! eval "$(.ci/testbed/testbed env)"
//! cargo test -p saasodoo-k8s --test outage -- --ignored --test-threads=1
//! ```

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kube::api::{DeleteParams, Patch, PatchParams};
use saasodoo_core::{
    CreateOptions, Instance, InstanceEvent, InstanceFilter, InstanceOrchestrator as _, InstanceOrchestratorExt as _,
    InstanceStatus, Source,
};
use serde_json::json;
use tokio::time::timeout;

use common::{in_namespace, spec};

const LONG: Duration = Duration::from_secs(120);

async fn control(action: &str) {
    let script = PathBuf::from(std::env::var_os("SAASODOO_TESTBED_CTL").expect("SAASODOO_TESTBED_CTL"));
    let action = action.to_owned();
    let status = tokio::task::spawn_blocking(move || std::process::Command::new(script).arg(action).status());
    assert!(status.await.expect("no panic").expect("it runs").success());
}

/// A subscriber's picture, kept by the events alone.
#[derive(Default)]
struct Picture {
    instances: BTreeMap<String, Instance>,
    stale: usize,
    synced: usize,
}

impl Picture {
    fn take(&mut self, event: InstanceEvent) {
        match event {
            InstanceEvent::Applied(instance) => {
                self.instances.insert(instance.name.to_string(), *instance);
            }
            InstanceEvent::Deleted(instance) => {
                self.instances
                    .remove(instance.name.as_str())
                    .expect("it was applied before");
            }
            InstanceEvent::Stale(_) => self.stale += 1,
            InstanceEvent::Synced => self.synced += 1,
            _ => {}
        }
    }

    async fn until(
        &mut self,
        events: &mut BoxStream<'static, InstanceEvent>,
        what: &str,
        fits: impl Fn(&Self) -> bool + Send + Sync,
    ) {
        let waited = timeout(LONG, async {
            while !fits(self) {
                let event = events.next().await.expect("a watch never ends");
                self.take(event);
            }
        });
        assert!(
            waited.await.is_ok(),
            "not {what}: {} stale, {} synced",
            self.stale,
            self.synced
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the testbed for itself (stops its API server)"]
async fn an_outage_of_the_server_is_reported_and_loses_no_change() {
    in_namespace("outage", |bed| async move {
        let orchestrator = bed.orchestrator().await;
        let specs: Vec<_> = (0..4).map(|_| spec()).collect();
        for spec in &specs {
            orchestrator
                .create(spec, CreateOptions::new().stopped())
                .await
                .expect("created");
        }
        let mut events = orchestrator.watch(InstanceFilter::all());
        let mut slow = orchestrator.watch(InstanceFilter::all());
        let mut picture = Picture::default();
        picture.until(&mut events, "synced", |p| p.synced == 1).await;
        let mut late = Picture::default();
        late.until(&mut slow, "synced", |p| p.synced == 1).await;
        assert_eq!(picture.instances.len(), 4);

        // A change whose event may still be on its way when the server dies.
        orchestrator.start(specs[0].id).await.expect("a start");
        control("stop-apiserver").await;
        picture.until(&mut events, "stale", |p| p.stale == 1).await;
        let error = orchestrator.get(specs[1].id).await.expect_err("nobody answers");
        assert!(!error.is_not_found(), "{error}");
        control("start-apiserver").await;
        // Changes that the watch has missed if it is not back yet.
        let deployments = bed.api("apps", "v1", "Deployment");
        let name = specs[1].object_name();
        let patch = json!({"metadata": {"annotations": {"saasodoo.io/display-name": "meanwhile"}}});
        deployments
            .patch(name.as_str(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .expect("a patch");
        let gone = specs[2].object_name();
        deployments
            .delete(gone.as_str(), &DeleteParams::default())
            .await
            .expect("a deletion");

        picture.until(&mut events, "synced again", |p| p.synced == 2).await;
        picture
            .until(&mut events, "as it is", |p| {
                !p.instances.contains_key(gone.as_str())
                    && p.instances
                        .get(name.as_str())
                        .is_some_and(|i| i.spec.display_name == "meanwhile")
                    && p.instances
                        .get(specs[0].object_name().as_str())
                        .is_some_and(|i| i.status == InstanceStatus::Running)
            })
            .await;
        // And again: the second outage is reported like the first.
        control("stop-apiserver").await;
        picture.until(&mut events, "stale again", |p| p.stale == 2).await;
        control("start-apiserver").await;
        picture
            .until(&mut events, "synced a third time", |p| p.synced == 3)
            .await;

        late.until(&mut slow, "synced again", |p| p.synced == 2).await;
        assert_eq!(late.stale, 1, "a subscriber that did not look is told once");
        let listed = orchestrator.list_all(InstanceFilter::all()).await.expect("a list");
        for picture in [&picture, &late] {
            let seen: BTreeMap<_, _> = picture
                .instances
                .values()
                .map(|i| (i.name.clone(), (i.provenance.revision.clone(), i.status)))
                .collect();
            let truth: BTreeMap<_, _> = listed
                .iter()
                .map(|i| (i.name.clone(), (i.provenance.revision.clone(), i.status)))
                .collect();
            assert_eq!(seen, truth);
        }
        let got = orchestrator.get(specs[0].id).await.expect("there");
        assert_eq!(got.provenance.source, Source::Cache, "in step, it answers again");
    })
    .await;
}
