//! The contract suite, and what it does not ask, over the adapter as it is: against a Kubernetes API server in this
//! process, on a paused clock.

mod common;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use kube::Client;
use kube::api::{Patch, PatchParams};
use saasodoo_core::{
    Bytes, Cause, CreateOptions, DataPath, DataPolicy, DeleteOptions, DynOrchestrator, EnsureOutcome, Error, ErrorKind,
    HealthState, Host, ImageRef, Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId,
    InstanceOrchestratorExt as _, InstanceSpec, InstanceStatus, LogOptions, Operation, Origin, Result, StorageLocation,
    StorageState, UpdateOptions,
};
use saasodoo_k8s::AdoptionSource;
use saasodoo_testkit::contract::{Budgets, FaultGuard, Outcome, Runner, Subject};
use saasodoo_testkit::fake_kubernetes::FakeKubernetes;
use serde_json::json;

use common::guide::GuideInstance;
use common::{BASE, Bed, Tap, image, spec};

const NAMESPACE: &str = "saasodoo";
const START: Duration = Duration::from_secs(120);

/// The namespace on a fake server.
fn bed(fake: &FakeKubernetes) -> Bed {
    Bed {
        client: Client::new(fake.service(), NAMESPACE),
        namespace: NAMESPACE.to_owned(),
        tap: Tap::default(),
    }
}

struct FakeSubject {
    fake: FakeKubernetes,
    orchestrator: DynOrchestrator,
    bed: Bed,
    /// Where directories are adopted. The adapter looks whether they are there, so they are on this machine too.
    root: tempfile::TempDir,
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unexpected, what.to_string())
}

impl FakeSubject {
    async fn new() -> Self {
        Self::on(FakeKubernetes::new()).await
    }

    async fn on(fake: FakeKubernetes) -> Self {
        let root = tempfile::tempdir().expect("a directory");
        let bed = bed(&fake);
        let mut config = bed.config();
        config.adoption = Some(AdoptionSource::HostPath {
            root: root.path().display().to_string(),
        });
        let orchestrator = bed.orchestrator_with(config).await;
        Self {
            fake,
            orchestrator,
            bed,
            root,
        }
    }

    /// The directory behind a location.
    fn directory(&self, location: &StorageLocation) -> Result<Option<String>> {
        match location {
            StorageLocation::Directory { path } => Ok(Some(path.clone())),
            StorageLocation::Claim {
                volume: Some(volume), ..
            } => Ok(self.fake.directory_of_volume(volume)),
            StorageLocation::Claim { namespace, name, .. } => Ok(self.fake.directory_of_claim(namespace, name)),
            other => Err(failed(format!("{other:?}"))),
        }
    }

    fn full(&self, path: &DataPath) -> String {
        self.root.path().join(path.as_str()).display().to_string()
    }
}

#[async_trait]
impl Subject for FakeSubject {
    fn name(&self) -> &str {
        "fake-kubernetes"
    }

    fn orchestrator(&self) -> DynOrchestrator {
        Arc::clone(&self.orchestrator)
    }

    fn spec(&self) -> InstanceSpec {
        spec()
    }

    fn other_image(&self) -> ImageRef {
        image().as_str().replace(":17", ":18").parse().expect("an image")
    }

    fn missing_image(&self) -> ImageRef {
        "localhost:1/saasodoo/nowhere:17".parse().expect("an image")
    }

    fn base_domain(&self) -> Host {
        BASE.parse().expect("a host")
    }

    fn budgets(&self) -> Budgets {
        Budgets::simulated()
    }

    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()> {
        let location = instance.storage.location.as_ref();
        let location = location.ok_or_else(|| failed("no location"))?;
        for _ in 0..100 {
            if let Some(directory) = self.directory(location)? {
                let written = self.fake.write_file(&directory, name, content);
                return written.then_some(()).ok_or_else(|| failed("no such directory"));
            }
            // A claim is bound some time after it was made.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(failed(format!("{location} has no volume")))
    }

    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>> {
        let directory = self.directory(location)?;
        Ok(directory.and_then(|directory| self.fake.read_file(&directory, name)))
    }

    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        Some(self.fake.fail_nth_request(n))
    }

    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        Some(self.fake.lose_nth_response(n))
    }

    fn count_requests(&self) -> Option<u64> {
        Some(self.fake.count_requests())
    }

    async fn restart_server(&self) -> Result<bool> {
        self.fake.stop_server();
        tokio::time::sleep(Duration::from_secs(5)).await;
        // What happened meanwhile is forgotten by then: watches have to list again.
        self.fake.compact();
        self.fake.start_server();
        Ok(true)
    }

    async fn spoil(&self, instance: &Instance) -> Result<bool> {
        let patch = json!({"metadata": {"annotations": {"saasodoo.io/addons": "{not json"}}});
        self.bed
            .api("apps", "v1", "Deployment")
            .patch(instance.name.as_str(), &PatchParams::default(), &Patch::Merge(patch))
            .await
            .map_err(failed)?;
        Ok(true)
    }

    async fn make_directory(&self) -> Result<Option<DataPath>> {
        let path: DataPath = format!("adopted-{}", InstanceId::random().short()).parse()?;
        let full = self.full(&path);
        std::fs::create_dir_all(Path::new(&full)).map_err(failed)?;
        self.fake.make_directory(&full);
        self.fake.write_file(&full, "marker", "adopt me");
        Ok(Some(path))
    }

    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        Some(StorageLocation::Directory { path: self.full(path) })
    }

    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        let full = self.full(path);
        self.fake.remove_directory(&full);
        std::fs::remove_dir_all(full).map_err(failed)
    }
}

#[tokio::test(start_paused = true)]
async fn the_adapter_keeps_the_contract() {
    let subject = FakeSubject::new().await;
    let fake = subject.fake.clone();
    // Eight clauses at once: requests, changes and watches of many instances meet.
    let report = Runner::new(Arc::new(subject)).concurrency(8).run().await;
    println!("{} requests", fake.count_requests());
    report.write().expect("the result file");
    println!("{report}");
    report.assert_passed(150);
    let not_run = report.count(Outcome::Skipped) + report.count(Outcome::Unsupported);
    assert!(report.filtered || not_run <= 5, "not run:\n{report}");
    assert_eq!(
        fake.violations(),
        Vec::<String>::new(),
        "two writers on one directory, or data deleted while in use"
    );
}

/// Waits until the condition holds of the instance.
async fn until(
    orchestrator: &DynOrchestrator,
    id: InstanceId,
    what: &str,
    fits: impl Fn(&Instance) -> bool + Send + Sync,
) -> Instance {
    let begun = tokio::time::Instant::now();
    loop {
        let seen = orchestrator.get(id).await.expect("it is there");
        if fits(&seen) {
            return seen;
        }
        assert!(
            begun.elapsed() < START,
            "not {what}: {} {:?} {:?}",
            seen.status,
            seen.cause,
            seen.facts
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_create_writes_nothing() {
    let fake = FakeKubernetes::new();
    let bed = bed(&fake);
    let orchestrator = bed.orchestrator().await;
    let spec = spec();
    orchestrator.create_and_wait(&spec, START).await.expect("it runs");
    let (uids, picture) = (bed.uids().await, bed.picture().await);
    let same = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect("the same");
    assert_eq!(same.outcome, EnsureOutcome::Unchanged);
    let other = spec.clone().with_memory(Bytes::from_mib(65));
    let error = orchestrator
        .create(&other, CreateOptions::new())
        .await
        .expect_err("another spec");
    assert_eq!(error.conflicts(), ["resources.memory"]);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(bed.uids().await, uids);
    assert_eq!(bed.picture().await, picture);
}

#[tokio::test(start_paused = true)]
async fn instances_of_the_guide_are_operated() {
    let fake = FakeKubernetes::new();
    let bed = bed(&fake);
    let orchestrator = bed.orchestrator().await;
    let guide = GuideInstance::create(&bed, "0a1b2c3d", "acme").await;
    let id: InstanceId = guide.id.parse().expect("a short id");
    let seen = until(&orchestrator, id, "without its credentials", |i| i.cause.is_some()).await;
    assert_eq!(seen.status, InstanceStatus::Error, "{:?}", seen.cause);
    GuideInstance::credentials(&bed).await;
    let seen = until(&orchestrator, id, "running", |i| i.status == InstanceStatus::Running).await;
    assert_eq!(seen.provenance.origin, Origin::Legacy);
    assert_eq!(
        seen.endpoints.hosts.iter().map(Host::as_str).collect::<Vec<_>>(),
        ["acme.tenants.example"]
    );
    let whole: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse().expect("a UUID");
    assert_eq!(orchestrator.get(whole).await.expect("found").name, seen.name);

    let before = bed.uids().await;
    orchestrator.restart(id).await.expect("a restart");
    let unit = seen.facts.current().map(|unit| unit.id.clone());
    until(&orchestrator, id, "restarted", |i| {
        i.status == InstanceStatus::Running && i.facts.current().map(|unit| unit.id.clone()) != unit
    })
    .await;
    orchestrator.stop(id).await.expect("a stop");
    until(&orchestrator, id, "stopped", |i| i.status == InstanceStatus::Stopped).await;
    orchestrator.start(id).await.expect("a start");
    until(&orchestrator, id, "running", |i| i.status == InstanceStatus::Running).await;
    for (name, uid) in bed.uids().await.iter().filter(|(name, _)| !name.starts_with("Pod ")) {
        assert_eq!(before.get(name), Some(uid), "{name} was replaced");
    }

    let deleted = orchestrator
        .delete(id, DeleteOptions::retain())
        .await
        .expect("a deletion");
    assert!(deleted.existed && deleted.retained.is_some());
    let left: Vec<String> = bed.picture().await.into_keys().collect();
    assert_eq!(
        left,
        [
            "PersistentVolumeClaim odoo-acme-0a1b2c3d-storage",
            "Secret odoo-db-credentials"
        ]
    );
    assert_eq!(fake.violations(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_keeps_pods_from_being_is_the_cause() {
    let fake = FakeKubernetes::new();
    let orchestrator = bed(&fake).orchestrator().await;
    let mut nowhere = spec();
    nowhere.scheduling.node_selector = [("none".parse().expect("a key"), "x".parse().expect("a value"))].into();
    orchestrator
        .create(&nowhere, CreateOptions::new())
        .await
        .expect("created");
    let seen = until(&orchestrator, nowhere.id, "unschedulable", |i| i.cause.is_some()).await;
    assert!(
        matches!(seen.cause, Some(Cause::Unschedulable { .. })),
        "{:?}",
        seen.cause
    );

    fake.refuse_pods(Some(
        "exceeded quota: none, requested: pods=1, used: pods=0, limited: pods=0",
    ));
    let refused = spec();
    orchestrator
        .create(&refused, CreateOptions::new())
        .await
        .expect("the objects are created");
    let seen = until(&orchestrator, refused.id, "refused", |i| i.cause.is_some()).await;
    assert!(
        matches!(seen.cause, Some(Cause::QuotaExceeded { .. })),
        "{:?}",
        seen.cause
    );
    assert_eq!(seen.facts.units, []);
    fake.refuse_pods(None);
    until(&orchestrator, refused.id, "running", |i| {
        i.status == InstanceStatus::Running
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_makes_up_for_what_was_forgotten() {
    let fake = FakeKubernetes::new();
    let bed = bed(&fake);
    let orchestrator = bed.orchestrator().await;
    let (goes, stays) = (spec(), spec());
    orchestrator.create_and_wait(&goes, START).await.expect("it runs");
    orchestrator.create_and_wait(&stays, START).await.expect("it runs");
    let mut events = orchestrator.watch(InstanceFilter::all());
    while !matches!(events.next().await, Some(InstanceEvent::Synced)) {}
    let requests = fake.count_requests();
    orchestrator.get(goes.id).await.expect("there");
    assert_eq!(fake.count_requests(), requests, "the cache answers");

    // Everything happens while nothing is heard of it, and is forgotten.
    fake.fail_watches(true);
    orchestrator
        .delete(goes.id, DeleteOptions::retain())
        .await
        .expect("a deletion");
    orchestrator.stop(stays.id).await.expect("a stop");
    tokio::time::sleep(Duration::from_secs(20)).await;
    fake.compact();
    fake.fail_watches(false);
    let (mut stale, mut deleted, mut stopped) = (false, false, false);
    loop {
        match tokio::time::timeout(START, events.next())
            .await
            .expect("an event")
            .expect("no end")
        {
            InstanceEvent::Stale(_) => stale = true,
            InstanceEvent::Deleted(instance) => deleted |= instance.id == goes.id,
            InstanceEvent::Applied(instance) if instance.id == stays.id => {
                stopped = instance.status == InstanceStatus::Stopped;
            }
            InstanceEvent::Synced => break,
            _ => {}
        }
    }
    assert!(
        stale && deleted && stopped,
        "stale {stale}, deleted {deleted}, stopped {stopped}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_followed_log_goes_on_with_the_next_pod() {
    let fake = FakeKubernetes::new();
    let orchestrator = bed(&fake).orchestrator().await;
    let spec = spec();
    orchestrator.create_and_wait(&spec, START).await.expect("it runs");
    let mut log = orchestrator.logs(spec.id, LogOptions::all().follow());
    let mut line = async || {
        let line = tokio::time::timeout(START, log.next()).await.expect("a line in time");
        line.expect("it goes on").expect("no error")
    };
    let first = line().await;
    assert!(first.text.contains("starting on") && first.at.is_some(), "{first:?}");
    fake.cut_connections();
    orchestrator.restart(spec.id).await.expect("a restart");
    let mut seen = Vec::new();
    loop {
        let next = line().await;
        if next.unit != first.unit {
            assert!(next.text.contains("starting on"), "{next:?}");
            break;
        }
        seen.push(next.text);
    }
    let starts = seen.iter().filter(|text| text.contains("starting on")).count();
    assert_eq!(starts, 0, "no line comes twice: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_kind_or_permission_is_named_and_nothing_is_left() {
    let fake = FakeKubernetes::new();
    let bed = bed(&fake);
    let orchestrator = bed.orchestrator().await;
    assert!(orchestrator.health().await.is_ready());
    let spec = spec();
    fake.deny("create", "secrets");
    let health = orchestrator.health().await.to_string();
    assert!(health.contains("create secrets"), "{health}");
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("forbidden");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(bed.picture().await.is_empty(), "{:?}", bed.picture().await.keys());

    let fake = FakeKubernetes::new();
    let orchestrator = crate::bed(&fake).orchestrator().await;
    fake.remove_kind("IngressRoute");
    let health = orchestrator.health().await;
    let failed = health.checks.iter().find(|check| check.state == HealthState::Failed);
    assert_eq!(
        failed.map(|check| check.name.as_str()),
        Some("custom_resources"),
        "{health}"
    );
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("no such kind");
    assert_eq!(error.kind(), ErrorKind::MissingPrerequisite, "{error}");
    orchestrator.get(spec.id).await.expect_err("nothing is left");
}

/// The volume of a directory is protected while its claim is there.
#[tokio::test(start_paused = true)]
async fn an_adoption_that_fails_takes_back_its_volume_and_leaves_the_directory() {
    let subject = FakeSubject::new().await;
    let fake = &subject.fake;
    let path = subject.make_directory().await.expect("made").expect("a directory");
    fake.deny("create", "secrets");
    let began = tokio::time::Instant::now();
    let options = CreateOptions::new().with_data(saasodoo_core::DataPolicy::AdoptDirectory(path.clone()));
    let error = subject
        .orchestrator
        .create(&spec(), options)
        .await
        .expect_err("forbidden");
    assert_eq!(error.kind(), ErrorKind::Forbidden, "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(
        subject.bed.picture().await.is_empty(),
        "{:?}",
        subject.bed.picture().await.keys()
    );
    let volumes = common::dynamic(&subject.bed.client, "", "v1", "PersistentVolume", None);
    let left = volumes.list(&Default::default()).await.expect("a list").items;
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(
        fake.read_file(&subject.full(&path), "marker").as_deref(),
        Some("adopt me")
    );
}

/// A class that waits for the first pod: a claim of an instance that never ran has no volume to grow.
#[tokio::test(start_paused = true)]
async fn storage_grows_once_there_is_a_volume() {
    let fake = FakeKubernetes::builder().storage_class("unused").build();
    let bed = bed(&fake);
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "cephfs-saasodoo"},
        "provisioner": "example.com/late", "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
    });
    common::dynamic(&bed.client, "storage.k8s.io", "v1", "StorageClass", None)
        .create(&Default::default(), &serde_json::from_value(class).expect("an object"))
        .await
        .expect("a class");
    let orchestrator = bed.orchestrator().await;
    let spec = spec();
    let stopped = CreateOptions::new().stopped();
    orchestrator.create(&spec, stopped).await.expect("created");
    let larger = InstanceChange::new().storage(Bytes::from_mib(32));
    let error = orchestrator
        .update(spec.id, &larger, UpdateOptions::new())
        .await
        .expect_err("no volume yet");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    orchestrator.start(spec.id).await.expect("a start");
    until(&orchestrator, spec.id, "running", |i| {
        i.status == InstanceStatus::Running
    })
    .await;
    orchestrator
        .update(spec.id, &larger, UpdateOptions::new())
        .await
        .expect("it has a volume now");
    until(&orchestrator, spec.id, "grown", |i| {
        i.storage.capacity == Some(Bytes::from_mib(32))
    })
    .await;
}

/// What a migration waits for before it stops anybody.
#[tokio::test(start_paused = true)]
async fn adopted_storage_is_pending_until_its_claim_is_bound() {
    let binding = Duration::from_secs(15);
    let subject = FakeSubject::on(FakeKubernetes::builder().bind_time(binding).build()).await;
    let path = subject.make_directory().await.expect("made").expect("a directory");
    let (orchestrator, spec) = (&subject.orchestrator, spec());
    let options = CreateOptions::new()
        .with_data(DataPolicy::AdoptDirectory(path))
        .stopped();
    orchestrator.create(&spec, options).await.expect("made");
    let state = async || orchestrator.get(spec.id).await.expect("there").storage.state;
    assert_eq!(state().await, StorageState::Pending);
    // Who starts it nevertheless is told why nothing happens.
    orchestrator.start(spec.id).await.expect("started");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let waiting = orchestrator.get(spec.id).await.expect("there");
    assert_eq!(waiting.status, InstanceStatus::Starting);
    assert!(
        matches!(waiting.cause, Some(Cause::StoragePending { .. })),
        "{:?}",
        waiting.cause
    );
    tokio::time::sleep(binding).await;
    assert_eq!(state().await, StorageState::Ready);
    let running = orchestrator
        .wait_until(spec.id, InstanceStatus::Running, START)
        .await
        .expect("it runs");
    assert_eq!(running.cause, None);
}

/// The process of a Deployment that has gone is waited for, whoever told the Deployment to go.
#[tokio::test(start_paused = true)]
async fn what_a_late_collector_leaves_running_is_waited_for() {
    let fake = FakeKubernetes::builder()
        .collector_lag(Duration::from_secs(2))
        .latency(Duration::from_millis(20));
    let subject = FakeSubject::on(fake.build()).await;
    let (orchestrator, spec) = (&subject.orchestrator, spec());
    let gone = async |when: &str| {
        let error = orchestrator.get(spec.id).await.expect_err(when);
        assert_eq!(error.kind(), ErrorKind::NotFound, "{when}: {error}");
    };
    orchestrator.create(&spec, CreateOptions::new()).await.expect("created");
    orchestrator
        .wait_until(spec.id, InstanceStatus::Running, START)
        .await
        .expect("it runs");
    let deleted = orchestrator.delete(spec.id, DeleteOptions::retain()).await;
    deleted.expect("deleted");
    gone("after a deletion").await;
    // Its Deployment is there for long enough to make a pod.
    let error = orchestrator
        .create(&spec, CreateOptions::new())
        .await
        .expect_err("there is data");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    gone("after a creation was undone").await;
}

/// Planned between the claim and its volume, a purge would be refused when the volume is there.
#[tokio::test(start_paused = true)]
async fn a_purge_lists_the_volume_that_is_on_its_way() {
    let fake = FakeKubernetes::builder().bind_time(Duration::from_secs(2)).build();
    let subject = FakeSubject::on(fake).await;
    let (orchestrator, spec) = (&subject.orchestrator, spec());
    let options = CreateOptions::new().stopped();
    orchestrator.create(&spec, options).await.expect("created");
    let plan = orchestrator.plan(&Operation::Purge(spec.id)).await.expect("a plan");
    let token = plan.purge_token.expect("data");
    let kinds: Vec<&str> = token.objects().iter().map(|object| object.kind.as_str()).collect();
    assert_eq!(kinds, ["PersistentVolumeClaim", "PersistentVolume"]);
    let purged = orchestrator.delete(spec.id, DeleteOptions::purge(token)).await;
    assert_eq!(purged.expect("purged").purged.len(), 2);
}
