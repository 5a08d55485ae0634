//! The in-memory backend as the contract suite sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use saasodoo_core::{
    DataPath, DynOrchestrator, Error, ErrorKind, Host, ImageRef, Instance, InstanceSpec, Result, StorageLocation,
    Unparsed,
};

use super::{Fault, MemoryOrchestrator, PlannedFault};
use crate::contract::{Budgets, FaultGuard, Subject};
use crate::fixtures;

/// Has the contract suite run against a [`MemoryOrchestrator`], or against something that is made of ones.
///
/// The clock should be paused; on a running one the suite takes as long as the simulation.
#[derive(Debug)]
pub struct MemorySubject {
    memory: MemoryOrchestrator,
    orchestrator: DynOrchestrator,
    name: String,
    made: AtomicU32,
}

impl MemorySubject {
    /// The backend itself, under the name `memory`.
    #[must_use]
    pub fn new(memory: MemoryOrchestrator) -> Self {
        let orchestrator: DynOrchestrator = Arc::new(memory.clone());
        Self::over("memory", orchestrator, memory)
    }

    /// Something that works on this backend, such as a decorator; faults and data are the backend's.
    #[must_use]
    pub fn over(name: impl Into<String>, orchestrator: DynOrchestrator, memory: MemoryOrchestrator) -> Self {
        Self {
            memory,
            orchestrator,
            name: name.into(),
            made: AtomicU32::new(0),
        }
    }

    fn next(&self) -> u32 {
        self.made.fetch_add(1, Ordering::Relaxed)
    }

    fn nth(&self, n: u32, fault: Fault) -> FaultGuard {
        self.memory.add_fault(PlannedFault {
            operation: None,
            instance: None,
            first: n,
            last: Some(n),
            fault,
        })
    }
}

fn text(content: Vec<u8>) -> Result<String> {
    String::from_utf8(content)
        .map_err(|error| Error::new(ErrorKind::Unexpected, "the file is not text").with_source(error))
}

#[async_trait]
impl Subject for MemorySubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn orchestrator(&self) -> DynOrchestrator {
        Arc::clone(&self.orchestrator)
    }

    fn spec(&self) -> InstanceSpec {
        let mut spec = fixtures::spec(&format!("tenant-{}", self.next()));
        spec.probes.period_seconds = 1;
        spec
    }

    fn other_image(&self) -> ImageRef {
        fixtures::image("saasodoo/odoo-stub:18")
    }

    fn missing_image(&self) -> ImageRef {
        fixtures::image("saasodoo/odoo-stub:missing")
    }

    fn base_domain(&self) -> Host {
        self.memory.peek(|world| world.settings.config.base_domain.clone())
    }

    fn budgets(&self) -> Budgets {
        Budgets::simulated()
    }

    async fn write_file(&self, instance: &Instance, name: &str, content: &str) -> Result<()> {
        let location = instance.storage.location.as_ref();
        let location = location.ok_or_else(|| Error::new(ErrorKind::StorageMissing, "nobody knows where it is"))?;
        self.memory.write_file(location, name, content)
    }

    async fn read_file(&self, location: &StorageLocation, name: &str) -> Result<Option<String>> {
        match self.memory.read_file(location, name) {
            Ok(content) => content.map(text).transpose(),
            Err(error) if error.kind() == ErrorKind::StorageMissing => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn fail_nth_request(&self, n: u32) -> Option<FaultGuard> {
        Some(self.nth(n, Fault::Fail(ErrorKind::Unavailable)))
    }

    fn lose_nth_response(&self, n: u32) -> Option<FaultGuard> {
        Some(self.nth(n, Fault::LoseResponse))
    }

    fn count_requests(&self) -> Option<u64> {
        u64::try_from(self.memory.calls().len()).ok()
    }

    async fn restart_server(&self) -> Result<bool> {
        let down = Duration::from_secs(2);
        self.memory.cut_watches(down);
        tokio::time::sleep(down).await;
        Ok(true)
    }

    async fn spoil(&self, instance: &Instance) -> Result<bool> {
        let odd = Unparsed::new("resources.memory", "many", "is not a size");
        self.memory.garble(instance.id, odd)?;
        Ok(true)
    }

    async fn make_directory(&self) -> Result<Option<DataPath>> {
        let path: DataPath = format!("adoptable_{}", self.next()).parse()?;
        let location = self.memory.make_directory(&path);
        self.memory.write_file(&location, "marker", "adopt me")?;
        Ok(Some(path))
    }

    fn directory_location(&self, path: &DataPath) -> Option<StorageLocation> {
        self.memory.read(|world, _, _| Some(world.adopted_data(path).location))
    }

    async fn remove_directory(&self, path: &DataPath) -> Result<()> {
        let location = self.memory.read(|world, _, _| world.adopted_data(path).location);
        self.memory.destroy_data(&location)
    }
}
