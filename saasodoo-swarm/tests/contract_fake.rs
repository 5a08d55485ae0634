//! The contract suite over the simulated daemon, through everything that also talks to a real one: offline, on a paused
//! clock.

#[path = "contract_fake/adoption.rs"]
mod adoption;
#[path = "fake_docker/api.rs"]
mod api;
#[path = "contract_fake/subject.rs"]
mod subject;
#[path = "contract_fake/trouble.rs"]
mod trouble;

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::{DeleteOptions, InstanceFilter, InstanceOrchestrator, InstanceOrchestratorExt, InstanceStatus};
use saasodoo_swarm::{Credentials, DockerHost, ImageResolution, SwarmOrchestrator};
use saasodoo_testkit::contract::{Outcome, Runner};

use subject::{FakeSubject, config, daemon, spec};

#[tokio::test(start_paused = true)]
async fn the_contract_holds() {
    let subject = Arc::new(FakeSubject::new());
    let daemon = subject.daemon.clone();
    let report = Runner::new(subject).run().await;
    println!("{report}");
    println!("{}", report.write().expect("target is writable").display());
    if report.filtered {
        return;
    }
    report.assert_passed(150);
    let not_run = report.count(Outcome::Skipped) + report.count(Outcome::Unsupported);
    assert!(not_run <= 6, "too much was not run:\n{report}");
    assert_eq!(daemon.processes(), Vec::<String>::new(), "something was left running");
    assert_eq!(daemon.violations(), Vec::<String>::new());
}

/// With plain passwords and pinned digests, as far as that makes a difference. (One clause cannot hold: passwords in the
/// environment can be read back.)
#[tokio::test(start_paused = true)]
async fn the_contract_holds_in_the_other_configuration() {
    let subject = FakeSubject::with(|builder| {
        builder
            .credentials(Credentials::Environment)
            .image_resolution(ImageResolution::Digest)
    });
    let daemon = subject.daemon.clone();
    let groups = ["create.", "update.", "plan."];
    let report = Runner::new(Arc::new(subject)).only(&groups).run().await;
    println!("{report}");
    assert!(report.ran() >= 50, "{report}");
    report.assert_passed(1);
    assert_eq!(daemon.violations(), Vec::<String>::new());
}

/// Over a real socket and in real time, as anybody else's client would.
#[tokio::test]
async fn it_is_a_daemon_on_a_socket() {
    let (daemon, root) = (daemon(), tempfile::tempdir().expect("a directory"));
    let socket = daemon.serve_unix().expect("a socket");
    let swarm = SwarmOrchestrator::builder(config())
        .host(DockerHost::Unix(socket.path().to_owned()))
        .quota(saasodoo_swarm::QuotaPolicy::BestEffort)
        .data_root(root.path())
        .build()
        .expect("a socket is there");
    let spec = spec();
    let created = swarm
        .create_and_wait(&spec, Duration::from_secs(30))
        .await
        .expect("it runs");
    assert_eq!(created.status, InstanceStatus::Running);
    swarm.stop(spec.id).await.expect("stopped");
    swarm.delete(spec.id, DeleteOptions::retain()).await.expect("deleted");
    assert_eq!(swarm.list_all(InstanceFilter::all()).await.expect("a list"), []);
}
