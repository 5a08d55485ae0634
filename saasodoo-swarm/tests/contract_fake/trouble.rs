//! What goes wrong on a platform and cannot be made to on a real one, or not in a moment.

use std::time::Duration;

use bollard::query_parameters::{InspectServiceOptions, UpdateServiceOptionsBuilder};
use saasodoo_core::{
    Cause, DeleteOptions, EnsureOutcome, ErrorKind, HealthState, Instance, InstanceChange, InstanceId,
    InstanceOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, Operation, StorageLocation,
    UpdateOptions,
};
use saasodoo_swarm::SwarmOrchestrator;
use saasodoo_testkit::fake_docker::FakeDocker;
use tokio::time::{Instant, sleep};

use super::subject::{builder, client, daemon, spec};

const BUDGET: Duration = Duration::from_secs(120);

struct Platform {
    daemon: FakeDocker,
    swarm: SwarmOrchestrator,
    root: tempfile::TempDir,
}

fn platform() -> Platform {
    let (daemon, root) = (daemon(), tempfile::tempdir().expect("a directory"));
    let swarm = builder(&daemon)
        .data_root(root.path())
        .build()
        .expect("nothing to connect to");
    Platform { daemon, swarm, root }
}

impl Platform {
    async fn running(&self) -> (InstanceSpec, Instance) {
        let spec = spec();
        let instance = self.swarm.create_and_wait(&spec, BUDGET).await.expect("it runs");
        (spec, instance)
    }

    async fn until(&self, id: InstanceId, what: &str, fits: impl Fn(&Instance) -> bool) -> Instance {
        let end = Instant::now() + BUDGET;
        loop {
            let seen = self.swarm.get(id).await.expect("it is there");
            if fits(&seen) {
                return seen;
            }
            assert!(
                Instant::now() < end,
                "expected {what}, saw {} {:?}",
                seen.status,
                seen.cause
            );
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn until_error(&self, id: InstanceId, code: &str) -> Instance {
        let fits = |seen: &Instance| {
            seen.status == InstanceStatus::Error && seen.cause.as_ref().map(Cause::code) == Some(code)
        };
        self.until(id, code, fits).await
    }

    async fn until_running(&self, id: InstanceId) -> Instance {
        let fits = |seen: &Instance| seen.status == InstanceStatus::Running && seen.cause.is_none();
        self.until(id, "running", fits).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_told_and_its_process_is_not_forgotten() {
    let on = platform();
    let (spec, instance) = on.running().await;
    on.daemon.node_down();
    on.until_error(spec.id, "node_lost").await;
    assert_eq!(
        on.daemon.processes(),
        [instance.name.to_string()],
        "it goes on all the same"
    );
    // Whether it still writes nobody knows: nothing may be done to its data.
    let plan = on.swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let options = DeleteOptions::purge(plan.purge_token.expect("a token"));
    let refused = on.swarm.delete(spec.id, options).await.expect_err("a process may run");
    assert_eq!(refused.kind(), ErrorKind::Timeout, "{refused}");
    on.daemon.node_up();
    let done = on.swarm.delete(spec.id, DeleteOptions::retain()).await;
    done.expect("the process has ended by now");
    assert_eq!(on.daemon.processes(), Vec::<String>::new());
    assert_eq!(on.daemon.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_comes_back_runs_it_again() {
    let on = platform();
    let (spec, _) = on.running().await;
    on.daemon.node_down();
    on.until_error(spec.id, "node_lost").await;
    on.daemon.node_up();
    on.until_running(spec.id).await;
    assert_eq!(on.daemon.processes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_directory_that_is_gone_is_told() {
    let on = platform();
    let (spec, instance) = on.running().await;
    let Some(StorageLocation::Directory { path }) = instance.storage.location else {
        panic!("no directory");
    };
    let away = on.root.path().join("away");
    std::fs::rename(&path, &away).expect("moved");
    assert!(on.daemon.exit(instance.name.as_str(), 1), "it runs");
    on.until_error(spec.id, "mount_failed").await;
    on.swarm.stop(spec.id).await.expect("stopped");
    on.until(spec.id, "stopped", |seen| seen.status == InstanceStatus::Stopped)
        .await;
    let refused = on.swarm.start(spec.id).await.expect_err("there is no data");
    assert_eq!(refused.kind(), ErrorKind::StorageMissing);
    std::fs::rename(&away, &path).expect("moved back");
    on.swarm.start(spec.id).await.expect("started");
    on.until_running(spec.id).await;
}

#[tokio::test(start_paused = true)]
async fn one_crash_is_survived() {
    let on = platform();
    let (spec, instance) = on.running().await;
    assert!(on.daemon.exit(instance.name.as_str(), 1));
    on.until(spec.id, "not running", |seen| seen.status != InstanceStatus::Running)
        .await;
    on.until_running(spec.id).await;
}

#[tokio::test(start_paused = true)]
async fn no_node_for_it_is_told_and_found_later() {
    let on = platform();
    let mut spec = spec();
    spec.scheduling
        .node_selector
        .insert("disk".parse().expect("a key"), "fast".parse().expect("a value"));
    on.swarm
        .create(&spec, saasodoo_core::CreateOptions::new())
        .await
        .expect("created");
    let unschedulable = |seen: &Instance| matches!(seen.cause, Some(Cause::Unschedulable { .. }));
    let seen = on.until(spec.id, "unschedulable", unschedulable).await;
    assert_ne!(seen.status, InstanceStatus::Running);
    on.swarm
        .delete(spec.id, DeleteOptions::retain())
        .await
        .expect("a task that never ran holds nothing up");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_answers_is_told_before_it_is_given_up() {
    let on = platform();
    let mut spec = spec().with_env("UNREADY".parse().expect("a name"), "1");
    spec.probes.liveness = true;
    spec.probes.startup_seconds = 30;
    on.swarm
        .create(&spec, saasodoo_core::CreateOptions::new())
        .await
        .expect("created");
    let failing = |seen: &Instance| matches!(seen.cause, Some(Cause::ProbeFailing { .. }));
    let seen = on.until(spec.id, "a failing probe", failing).await;
    assert_eq!(seen.replicas.ready, 0);
    // Docker stops it then, and it ends well at that: from then on it looks like a process that ends by itself.
    on.until(spec.id, "an error", |seen| seen.status == InstanceStatus::Error)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_purge_waits_until_the_process_has_ended() {
    let on = platform();
    // Takes the shell's place, and with it the handler of SIGTERM.
    let spec = spec().with_env("EAT_MB".parse().expect("a name"), "8");
    on.swarm
        .create(&spec, saasodoo_core::CreateOptions::new())
        .await
        .expect("created");
    on.until(spec.id, "a process", |_| !on.daemon.processes().is_empty())
        .await;
    let plan = on.swarm.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let began = Instant::now();
    let options = DeleteOptions::purge(plan.purge_token.expect("a token"));
    let deleted = on.swarm.delete(spec.id, options).await.expect("deleted");
    assert_eq!(deleted.purged.len(), 1);
    assert!(began.elapsed() >= Duration::from_secs(5), "the grace period is 5 s");
    assert_eq!(on.daemon.processes(), Vec::<String>::new());
    assert_eq!(on.daemon.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_change_that_does_not_live_is_told_and_taken_back() {
    let on = platform();
    let (spec, _) = on.running().await;
    let crash: saasodoo_core::EnvName = "CRASH".parse().expect("a name");
    let change = InstanceChange::new().set_env(crash.clone(), "3");
    on.swarm
        .update(spec.id, &change, UpdateOptions::new())
        .await
        .expect("updated");
    on.until_error(spec.id, "crash_loop").await;
    let back = InstanceChange::new().unset_env(crash);
    on.swarm
        .update(spec.id, &back, UpdateOptions::new())
        .await
        .expect("updated");
    on.until_running(spec.id).await;
}

#[tokio::test(start_paused = true)]
async fn changes_of_others_in_between_are_kept() {
    let on = platform();
    let (spec, instance) = on.running().await;
    let (docker, name) = (client(&on.daemon), instance.name.to_string());
    let others = tokio::spawn(async move {
        let mut made = 0_u32;
        while made < 5 {
            let service = docker
                .inspect_service(&name, None::<InspectServiceOptions>)
                .await
                .expect("there");
            let mut body = service.spec.expect("a body");
            body.labels
                .get_or_insert_default()
                .insert(format!("other.{made}"), "1".to_owned());
            let version = service.version.and_then(|version| version.index).expect("a version");
            let options = UpdateServiceOptionsBuilder::new()
                .version(i32::try_from(version).expect("small"))
                .build();
            match docker.update_service(&name, body, options, None).await {
                Ok(_) => made += 1,
                Err(error) => assert!(error.to_string().contains("out of sequence"), "{error}"),
            }
            sleep(Duration::from_millis(37)).await;
        }
    });
    let mut expected = spec.clone();
    for n in 0..5 {
        let change = InstanceChange::new().set_env("CONTRACT".parse().expect("a name"), n.to_string());
        let answer = on
            .swarm
            .update(spec.id, &change, UpdateOptions::new())
            .await
            .expect("updated");
        assert_eq!(answer.outcome, EnsureOutcome::Updated);
        expected = change.apply_to(&expected).expect("a spec");
    }
    others.await.expect("all five made");
    let seen = on.swarm.get(spec.id).await.expect("there");
    // What the others' client does not know of it drops, which is not ours to mend: only what was asked is compared.
    assert_eq!(expected.environment, seen.spec.environment);
    for n in 0..5 {
        let label = format!("other.{n}");
        assert!(
            seen.spec.labels.keys().any(|key| key.as_str() == label),
            "{label} is gone"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_told_from_a_manager() {
    let on = platform();
    on.daemon.set_manager(false);
    let error = on.swarm.get(spec().id).await.expect_err("no manager");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite);
    let health = on.swarm.health().await;
    let manager = health
        .checks
        .iter()
        .find(|check| check.name == "manager")
        .expect("a finding");
    assert_eq!(manager.state, HealthState::Failed);
    assert!(!health.is_ready());
}
