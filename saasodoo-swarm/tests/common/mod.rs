//! What the tests against the testbed share.
#![allow(dead_code, unreachable_pub)]

pub mod proxy;
pub mod recorder;
pub mod subject;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use saasodoo_core::{
    Bytes, Config, Cpu, DatabaseEndpoint, Deadlines, DeleteOptions, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceSpec, StorageLocation,
};
use saasodoo_swarm::{DockerHost, Polling, SwarmBuilder, SwarmOrchestrator};

/// A variable that `testbed env` sets.
pub fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: eval \"$(.ci/testbed/testbed env)\""))
}

/// A data root of one test on the testbed's CephFS, removed with the test.
#[derive(Debug)]
pub struct Root(pub PathBuf);

impl Root {
    pub fn new() -> Self {
        let path = PathBuf::from(variable("SAASODOO_CEPHFS")).join(format!("sw-{}", InstanceId::random()));
        std::fs::create_dir_all(&path).expect("the testbed's CephFS is writable");
        Self(path)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The daemon's socket.
pub fn socket() -> PathBuf {
    let text = variable("DOCKER_HOST");
    PathBuf::from(text.strip_prefix("unix://").expect("the testbed's socket"))
}

pub fn builder(root: &Path) -> SwarmBuilder {
    let config = Config::builder()
        .image(variable("SAASODOO_STUB_IMAGE").parse().expect("an image"))
        .base_domain("sw.example".parse().expect("a host"))
        .deadlines(Deadlines::default())
        .build();
    SwarmOrchestrator::builder(config)
        .host(DockerHost::Unix(socket()))
        .data_root(root)
        .polling(Polling::new(Duration::from_millis(500), Duration::from_secs(3)))
}

pub fn orchestrator(root: &Path) -> SwarmOrchestrator {
    builder(root).build().expect("the testbed's daemon")
}

/// A small instance of the stub.
pub fn spec() -> InstanceSpec {
    let id = InstanceId::random();
    let mut spec = InstanceSpec::new(
        id,
        format!("sw{}", id.short()).parse().expect("a name"),
        variable("SAASODOO_STUB_IMAGE").parse().expect("an image"),
    )
    .with_database(DatabaseEndpoint::new(
        "postgres",
        "odoo_x",
        "odoo_x_user",
        "s3ntinel-db".into(),
    ))
    .with_admin("admin@tenant.example", "s3ntinel-admin".into())
    .with_cpu(Cpu::from_millis(100))
    .with_memory(Bytes::from_mib(64))
    .with_storage(Bytes::from_mib(64));
    spec.probes.period_seconds = 1;
    spec.scheduling.stop_grace_seconds = 5;
    spec
}

/// The directory of an instance's data.
pub fn directory(location: Option<&StorageLocation>) -> PathBuf {
    match location {
        Some(StorageLocation::Directory { path }) => PathBuf::from(path),
        other => panic!("not a directory: {other:?}"),
    }
}

/// Runs a test on a root and an orchestrator of its own, and deletes everything under the root afterwards, also when
/// the test fails.
pub async fn on_testbed<F: Future<Output = ()> + Send + 'static>(test: impl FnOnce(SwarmOrchestrator, PathBuf) -> F) {
    let root = Root::new();
    cleaned(orchestrator(&root.0), root.0.clone(), test).await;
}

/// Runs a test, and deletes all instances under the root afterwards, also when the test fails. What the test says comes
/// before what the clean-up says.
pub async fn cleaned<F: Future<Output = ()> + Send + 'static>(
    swarm: SwarmOrchestrator,
    root: PathBuf,
    test: impl FnOnce(SwarmOrchestrator, PathBuf) -> F,
) {
    let result = tokio::spawn(test(swarm.clone(), root.clone())).await;
    let mut trouble = Vec::new();
    let listed: Vec<_> = swarm.list(InstanceFilter::all()).collect().await;
    for instance in listed {
        match instance {
            Ok(instance) => {
                let inside = match &instance.storage.location {
                    Some(StorageLocation::Directory { path }) => Path::new(path).starts_with(&root),
                    _ => false,
                };
                if inside && let Err(error) = swarm.delete(instance.id, DeleteOptions::retain()).await {
                    trouble.push(error);
                }
            }
            Err(error) => trouble.push(error),
        }
    }
    if let Err(error) = result {
        eprintln!("clean-up: {trouble:?}");
        std::panic::resume_unwind(error.into_panic());
    }
    assert!(trouble.is_empty(), "clean-up: {trouble:?}");
}
