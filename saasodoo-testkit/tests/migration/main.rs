//! Migrations between two platforms in memory that share their data.

mod creation;
mod downtime;
mod dual_run;
mod holds;
mod hooks;
mod journal_races;
mod moves;
mod others;
mod safety;
mod told;

use std::sync::Arc;
use std::time::Duration;

use saasodoo_core::migration::{Control, Force, MigrationConfig, Migrator, ObjectJournal, Record, RootedData};
use saasodoo_core::{InstanceId, InstanceOrchestrator, InstanceSpec, StorageLocation};
use saasodoo_testkit::explorer::Scenario;
use saasodoo_testkit::memory::MemoryOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

async fn one() -> (Scenario, InstanceSpec, StorageLocation) {
    let scenario = Scenario::with_fleet(1).await.expect("a tenant");
    let spec = scenario.specs[0].clone();
    let instance = scenario.old.get(spec.id).await.expect("there");
    let location = instance.storage.location.expect("a location");
    scenario.old.write_file(&location, "before", "1").expect("written");
    (scenario, spec, location)
}

/// Until it comes to rest.
async fn migrate(migrator: &Migrator, id: InstanceId) -> Record {
    let rest = migrator.migrate(id, Force::none(), &Control::new()).await;
    rest.expect("it comes to rest")
}

async fn pass(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn quick() -> MigrationConfig {
    let mut config = MigrationConfig::default();
    config.bake = Duration::from_secs(10);
    config
}

fn on_objects(scenario: &Scenario, config: MigrationConfig) -> Migrator {
    let side = |memory: &MemoryOrchestrator| Arc::new(memory.clone());
    let locator = Arc::new(RootedData::under(ROOT));
    let journal = ObjectJournal::new(side(&scenario.old), side(&scenario.new), locator);
    scenario.migrator().config(config).journal(Arc::new(journal)).build()
}
