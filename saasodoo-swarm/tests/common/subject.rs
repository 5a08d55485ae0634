//! The testbed as a subject of the contract suite.
#![allow(dead_code, unreachable_pub)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{InspectServiceOptions, UpdateServiceOptionsBuilder};
use saasodoo_core::{
    BackendKind, DataPath, DynOrchestrator, Error, ErrorKind, Host, ImageRef, Instance, InstanceId, InstanceSpec,
    Result, StorageLocation,
};
use saasodoo_swarm::SwarmOrchestrator;
use saasodoo_testkit::contract::{Budgets, FaultGuard, Subject};

use super::proxy::{Fault, Proxy};
use super::{spec, variable};

/// The testbed as the contract suite sees it.
pub struct SwarmSubject {
    pub orchestrator: SwarmOrchestrator,
    pub root: PathBuf,
    /// Through which the orchestrator talks to the daemon, and which can lose what it says.
    pub proxy: Option<Proxy>,
    /// Nothing else uses the orchestrator, so its requests can be counted.
    pub counts: bool,
    /// The daemon may be restarted.
    pub restarts: bool,
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
impl Subject for SwarmSubject {
    fn name(&self) -> &str {
        "swarm"
    }

    fn orchestrator(&self) -> DynOrchestrator {
        Arc::new(self.orchestrator.clone())
    }

    fn spec(&self) -> InstanceSpec {
        spec()
    }

    fn other_image(&self) -> ImageRef {
        "saasodoo/odoo-stub:18".parse().expect("an image")
    }

    fn missing_image(&self) -> ImageRef {
        "saasodoo/no-such-image:17".parse().expect("an image")
    }

    fn base_domain(&self) -> Host {
        self.orchestrator.config().common.base_domain.clone()
    }

    fn budgets(&self) -> Budgets {
        Budgets {
            start: Duration::from_secs(90),
            stop: Duration::from_secs(60),
            failure: Duration::from_secs(150),
            settle: Duration::from_secs(8),
        }
    }

    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()> {
        let location = instance.storage.location.as_ref().ok_or_else(|| trouble("no location"))?;
        std::fs::write(path(location)?.join(name), content).map_err(trouble)
    }

    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>> {
        match std::fs::read_to_string(path(location)?.join(name)) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(trouble(error)),
        }
    }

    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        self.proxy.as_ref().map(|proxy| proxy.fault(n, Fault::Fail))
    }

    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        self.proxy.as_ref().map(|proxy| proxy.fault(n, Fault::Lose))
    }

    fn count_requests(&self) -> Option<u64> {
        self.counts.then(|| self.orchestrator.requests())
    }

    async fn restart_server(&self) -> Result<bool> {
        if !self.restarts {
            return Ok(false);
        }
        let restarted = std::process::Command::new(variable("SAASODOO_TESTBED_CTL"))
            .arg("restart-dockerd")
            .status()
            .map_err(trouble)?;
        if !restarted.success() {
            return Err(trouble(format!("restart-dockerd: {restarted}")));
        }
        Ok(true)
    }

    async fn spoil(&self, instance: &Instance) -> Result<bool> {
        let host = variable("DOCKER_HOST");
        let docker =
            bollard::Docker::connect_with_unix(&host, 30, bollard::API_DEFAULT_VERSION).map_err(trouble)?;
        let name = instance.name.as_str();
        let service = docker.inspect_service(name, None::<InspectServiceOptions>).await.map_err(trouble)?;
        let mut body = service.spec.ok_or_else(|| trouble("no spec"))?;
        let env = body
            .task_template
            .as_mut()
            .and_then(|template| template.container_spec.as_mut())
            .and_then(|container| container.env.as_mut())
            .ok_or_else(|| trouble("no environment"))?;
        env.retain(|entry| !entry.starts_with("ODOO_DATABASE_PORT_NUMBER="));
        env.push("ODOO_DATABASE_PORT_NUMBER=many".to_owned());
        let version = service.version.and_then(|version| version.index).unwrap_or_default();
        let options = UpdateServiceOptionsBuilder::new()
            .version(i32::try_from(version).map_err(trouble)?)
            .build();
        docker.update_service(name, body, options, None).await.map_err(trouble)?;
        Ok(true)
    }

    async fn make_directory(&self) -> Result<Option<DataPath>> {
        let name = format!("adopt-{}", InstanceId::random());
        let directory = self.root.join(&name);
        std::fs::create_dir(&directory).map_err(trouble)?;
        std::fs::write(directory.join("marker"), "adopt me").map_err(trouble)?;
        name.parse().map(Some)
    }

    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        let path = self.root.join(path.as_str()).to_str()?.to_owned();
        Some(StorageLocation::Directory { path })
    }

    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        std::fs::remove_dir_all(self.root.join(path.as_str())).map_err(trouble)
    }
}
