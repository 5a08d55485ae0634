//! The simulated daemon as a subject of the contract suite.
#![allow(unreachable_pub)]

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{InspectServiceOptions, UpdateServiceOptionsBuilder};
use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker};
use hyper_util::rt::TokioIo;
use saasodoo_core::{
    BackendKind, Bytes, Config, Cpu, DataPath, DatabaseEndpoint, DynOrchestrator, Error, ErrorKind, Host, ImageRef,
    Instance, InstanceId, InstanceSpec, Result, StorageLocation,
};
use saasodoo_swarm::{QuotaPolicy, SwarmBuilder, SwarmOrchestrator};
use saasodoo_testkit::contract::{Budgets, FaultGuard, Subject};
use saasodoo_testkit::fake_docker::FakeDocker;

const IMAGE: &str = "saasodoo/odoo-stub:17";
const OTHER_IMAGE: &str = "saasodoo/odoo-stub:18";

pub fn daemon() -> FakeDocker {
    FakeDocker::builder().image(IMAGE).image(OTHER_IMAGE).build()
}

/// A client whose connections stay within the process.
pub fn client(daemon: &FakeDocker) -> Docker {
    let daemon = daemon.clone();
    let transport = move |request: BollardRequest| {
        let connection = daemon.connect();
        async move {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(connection?)).await?;
            tokio::spawn(connection);
            Ok::<_, bollard::errors::Error>(sender.send_request(request).await?)
        }
    };
    Docker::connect_with_custom_transport(transport, Some("http://docker"), 3600, API_DEFAULT_VERSION)
        .expect("nothing to go wrong")
}

pub fn config() -> Config {
    Config::builder()
        .image(IMAGE.parse().expect("an image"))
        .base_domain("fake.example".parse().expect("a host"))
        .build()
}

/// On a paused clock: the daemon's time is the orchestrator's, too.
pub fn builder(daemon: &FakeDocker) -> SwarmBuilder {
    let clock = daemon.clone();
    SwarmOrchestrator::builder(config())
        .client(client(daemon))
        .clock(move || clock.now())
        // No file system of a test machine has the quotas of CephFS.
        .quota(QuotaPolicy::BestEffort)
}

/// A small instance of the stub.
pub fn spec() -> InstanceSpec {
    let id = InstanceId::random();
    let mut spec = InstanceSpec::new(
        id,
        format!("fd{}", id.short()).parse().expect("a name"),
        IMAGE.parse().expect("an image"),
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

pub struct FakeSubject {
    pub daemon: FakeDocker,
    orchestrator: SwarmOrchestrator,
    root: tempfile::TempDir,
    /// Directories with data. CephFS never gives an inode number out twice, and the file systems of test machines do
    /// so at once, unless somebody still has the old directory open.
    open: Mutex<Vec<File>>,
}

impl FakeSubject {
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    pub fn with(configure: impl FnOnce(SwarmBuilder) -> SwarmBuilder) -> Self {
        let (daemon, root) = (daemon(), tempfile::tempdir().expect("a directory"));
        let orchestrator = configure(builder(&daemon).data_root(root.path())).build();
        Self {
            daemon,
            orchestrator: orchestrator.expect("nothing to connect to"),
            root,
            open: Mutex::default(),
        }
    }
}

fn trouble(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unexpected, error.to_string()).with_backend(BackendKind::Swarm)
}

fn path(location: &StorageLocation) -> Result<PathBuf> {
    match location {
        StorageLocation::Directory { path } => Ok(PathBuf::from(path)),
        other => Err(trouble(format!("{other} is no directory"))),
    }
}

#[async_trait]
impl Subject for FakeSubject {
    fn name(&self) -> &str {
        "fake-docker"
    }

    fn orchestrator(&self) -> DynOrchestrator {
        Arc::new(self.orchestrator.clone())
    }

    fn spec(&self) -> InstanceSpec {
        spec()
    }

    fn other_image(&self) -> ImageRef {
        OTHER_IMAGE.parse().expect("an image")
    }

    fn missing_image(&self) -> ImageRef {
        "saasodoo/no-such-image:17".parse().expect("an image")
    }

    fn base_domain(&self) -> Host {
        self.orchestrator.config().common.base_domain.clone()
    }

    fn budgets(&self) -> Budgets {
        // The longest that anything takes by itself is the end of a rolling update.
        Budgets {
            settle: Duration::from_secs(10),
            ..Budgets::simulated()
        }
    }

    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()> {
        let location = instance.storage.location.as_ref();
        let directory = path(location.ok_or_else(|| trouble("no location"))?)?;
        std::fs::write(directory.join(name), content).map_err(trouble)?;
        let opened = File::open(directory).map_err(trouble)?;
        self.open.lock().map_err(trouble)?.push(opened);
        Ok(())
    }

    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>> {
        match std::fs::read_to_string(path(location)?.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(trouble(error)),
        }
    }

    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        Some(self.daemon.fail_nth_request(n))
    }

    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        Some(self.daemon.lose_nth_response(n))
    }

    /// The daemon's own count: what it was really asked.
    fn count_requests(&self) -> Option<u64> {
        Some(self.daemon.requests())
    }

    async fn restart_server(&self) -> Result<bool> {
        self.daemon.restart(Duration::from_secs(8)).await;
        Ok(true)
    }

    async fn spoil(&self, instance: &Instance) -> Result<bool> {
        let (docker, name) = (client(&self.daemon), instance.name.as_str());
        let service = docker.inspect_service(name, None::<InspectServiceOptions>).await;
        let service = service.map_err(trouble)?;
        let mut body = service.spec.ok_or_else(|| trouble("no spec"))?;
        let container = body
            .task_template
            .as_mut()
            .and_then(|template| template.container_spec.as_mut());
        let env = container.and_then(|container| container.env.as_mut());
        let env = env.ok_or_else(|| trouble("no environment"))?;
        env.retain(|entry| !entry.starts_with("ODOO_DATABASE_PORT_NUMBER="));
        env.push("ODOO_DATABASE_PORT_NUMBER=many".to_owned());
        let version = service.version.and_then(|version| version.index).unwrap_or_default();
        let options = UpdateServiceOptionsBuilder::new()
            .version(i32::try_from(version).map_err(trouble)?)
            .build();
        docker
            .update_service(name, body, options, None)
            .await
            .map_err(trouble)?;
        Ok(true)
    }

    async fn make_directory(&self) -> Result<Option<DataPath>> {
        let name = format!("adopt-{}", InstanceId::random());
        let directory = self.root.path().join(&name);
        std::fs::create_dir(&directory).map_err(trouble)?;
        std::fs::write(directory.join("marker"), "adopt me").map_err(trouble)?;
        name.parse().map(Some)
    }

    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        let path = self.root.path().join(path.as_str()).to_str()?.to_owned();
        Some(StorageLocation::Directory { path })
    }

    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        std::fs::remove_dir_all(self.root.path().join(path.as_str())).map_err(trouble)
    }
}
