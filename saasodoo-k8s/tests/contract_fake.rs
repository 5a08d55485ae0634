//! The contract suite over the adapter as it is, against a Kubernetes API server in this process, on a paused clock.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::Client;
use saasodoo_core::{
    Bytes, Config, Cpu, DataPath, DynOrchestrator, Error, ErrorKind, Host, ImageRef, Instance, InstanceId,
    InstanceSpec, Result, StorageLocation,
};
use saasodoo_k8s::{AdoptionSource, KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::contract::{Budgets, FaultGuard, Outcome, Runner, Subject};
use saasodoo_testkit::fake_kubernetes::FakeKubernetes;
use saasodoo_testkit::fixtures;
use tower::Service as _;

const NAMESPACE: &str = "saasodoo";
const BASE: &str = "tenants.example";

struct FakeSubject {
    fake: FakeKubernetes,
    orchestrator: DynOrchestrator,
    /// Where directories are adopted. The adapter looks whether they are there, so they are on this machine too.
    root: tempfile::TempDir,
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unexpected, what.to_string())
}

impl FakeSubject {
    async fn new() -> Self {
        let fake = FakeKubernetes::new();
        let root = tempfile::tempdir().expect("a directory");
        let common = Config::builder()
            .namespace(NAMESPACE)
            .expect("a namespace")
            .base_domain(BASE.parse().expect("a host"))
            .build();
        let config = KubernetesConfig::new(common).with_adoption(AdoptionSource::HostPath {
            root: root.path().display().to_string(),
        });
        let orchestrator = KubernetesOrchestrator::builder(config)
            .client(Client::new(fake.service(), NAMESPACE))
            .build()
            .await
            .expect("an orchestrator");
        Self {
            fake,
            orchestrator: Arc::new(orchestrator),
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
        let id = InstanceId::random();
        let mut spec = fixtures::spec_with_id(&format!("t{}", id.short()), id)
            .with_cpu(Cpu::from_millis(200))
            .with_memory(Bytes::from_mib(64))
            .with_storage(Bytes::from_mib(16));
        spec.probes.period_seconds = 1;
        spec.probes.startup_seconds = 60;
        spec.scheduling.stop_grace_seconds = 5;
        spec
    }

    fn other_image(&self) -> ImageRef {
        fixtures::IMAGE.replace(":17", ":18").parse().expect("an image")
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
        let path = format!(
            "/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{}",
            instance.name.as_str()
        );
        let patch = r#"{"metadata": {"annotations": {"saasodoo.io/addons": "{not json"}}}"#;
        let request = http::Request::patch(path)
            .header(http::header::CONTENT_TYPE, "application/merge-patch+json")
            .body(http_body_util::Full::new(bytes::Bytes::from(patch)))
            .map_err(failed)?;
        let mut service = self.fake.service();
        let response = service.call(request).await.map_err(failed)?;
        Ok(response.status().is_success())
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
    let report = Runner::new(Arc::new(subject)).run().await;
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

/// Sixteen clauses at once: requests, changes and watches of many instances meet.
#[tokio::test(start_paused = true)]
async fn clauses_can_run_at_once() {
    let subject = FakeSubject::new().await;
    let fake = subject.fake.clone();
    let report = Runner::new(Arc::new(subject)).concurrency(16).run().await;
    println!("{report}");
    report.assert_passed(150);
    assert_eq!(fake.violations(), Vec::<String>::new());
}
