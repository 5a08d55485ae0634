//! The cluster as a subject of the contract suite.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kube::api::{Patch, PatchParams};
use saasodoo_core::{
    DataPath, DynOrchestrator, Error, ErrorKind, Host, ImageRef, Instance, InstanceSpec, Result, StorageLocation,
};
use saasodoo_testkit::contract::{Budgets, FaultGuard, Subject};
use serde_json::json;

use super::{BASE, Bed, Fault, dynamic, image, spec};

pub(crate) struct ClusterSubject {
    pub(crate) bed: Bed,
    pub(crate) orchestrator: DynOrchestrator,
    /// Below which directories are adopted.
    pub(crate) root: PathBuf,
    /// Commands that stop and start the server; `None`: it is left alone.
    pub(crate) control: Option<PathBuf>,
}

fn failed(what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unexpected, what.to_string())
}

impl ClusterSubject {
    /// The directory behind a location.
    async fn directory(&self, location: &StorageLocation) -> Result<Option<PathBuf>> {
        let volume = match location {
            StorageLocation::Directory { path } => return Ok(Some(path.into())),
            StorageLocation::Claim {
                volume: Some(volume), ..
            } => volume.clone(),
            StorageLocation::Claim { name, .. } => {
                let claim = self
                    .bed
                    .api("", "v1", "PersistentVolumeClaim")
                    .get_opt(name)
                    .await
                    .map_err(failed)?;
                let volume = claim.and_then(|claim| Some(claim.data["spec"]["volumeName"].as_str()?.to_owned()));
                match volume {
                    Some(volume) => volume,
                    None => return Ok(None),
                }
            }
            other => return Err(failed(format!("{other:?}"))),
        };
        let volumes = dynamic(&self.bed.client, "", "v1", "PersistentVolume", None);
        let volume = volumes.get_opt(&volume).await.map_err(failed)?;
        Ok(volume.and_then(|volume| Some(volume.data["spec"]["hostPath"]["path"].as_str()?.into())))
    }
}

#[async_trait]
impl Subject for ClusterSubject {
    fn name(&self) -> &str {
        "kubernetes"
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
        // Several clauses start pods at once on two cores.
        Budgets {
            start: Duration::from_secs(120),
            stop: Duration::from_secs(90),
            failure: Duration::from_secs(180),
            ..Budgets::real()
        }
    }

    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()> {
        let location = instance
            .storage
            .location
            .as_ref()
            .ok_or_else(|| failed("no location"))?;
        for _ in 0..100 {
            if let Some(directory) = self.directory(location).await? {
                return std::fs::write(directory.join(name), content).map_err(failed);
            }
            // A claim is bound some time after it was made.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        Err(failed(format!("{location} has no volume")))
    }

    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>> {
        let Some(directory) = self.directory(location).await? else {
            return Ok(None);
        };
        match std::fs::read_to_string(directory.join(name)) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        let tap = self.bed.tap.clone();
        Some(FaultGuard::new(tap.fail(n.into(), Fault::Before), move || tap.heal()))
    }

    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        let tap = self.bed.tap.clone();
        Some(FaultGuard::new(tap.fail(n.into(), Fault::After), move || tap.heal()))
    }

    fn count_requests(&self) -> Option<u64> {
        Some(self.bed.tap.count())
    }

    async fn restart_server(&self) -> Result<bool> {
        let Some(control) = &self.control else {
            return Ok(false);
        };
        for action in ["stop-apiserver", "start-apiserver"] {
            let mut command = std::process::Command::new(control);
            command.arg(action);
            // Waiting for it must not hold up the watch that is being looked at.
            let status = tokio::task::spawn_blocking(move || command.status()).await;
            let status = status.map_err(failed)?.map_err(failed)?;
            if !status.success() {
                return Err(failed(format!("{action}: {status}")));
            }
        }
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
        let name = format!("adopted-{}", saasodoo_core::InstanceId::random().short());
        let directory = self.root.join(&name);
        std::fs::create_dir_all(&directory).map_err(failed)?;
        std::fs::write(directory.join("marker"), "adopt me").map_err(failed)?;
        name.parse().map(Some)
    }

    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        let path = self.root.join(path.as_str()).display().to_string();
        Some(StorageLocation::Directory { path })
    }

    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        std::fs::remove_dir_all(self.root.join(path.as_str())).map_err(failed)
    }
}
