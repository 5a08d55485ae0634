//! Measures what migrating a fleet costs beside the platforms: calls, time of this process, the journal on disk, memory,
//! and the report, at several sizes of the fleet. Beside it the calls that a script makes which moves one tenant after the
//! other and looks at nothing.
//!
//! ```sh
//! cargo run --release -p saasodoo-benches --bin migration
//! ```
//!
//! Both platforms are in memory on a paused clock, so that waiting takes no time and what is left is the library's own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use jiff::Timestamp;
use saasodoo_benches::{Results, Samples, memory, per};
use saasodoo_core::migration::{
    Clock, Control, FileJournal, Force, Journal, KnownSecrets, Migrator, Report, Wave, WaveOptions,
};
use saasodoo_core::{
    BackendKind, CreateOptions, DataPolicy, InstanceOrchestrator as _, InstanceOrchestratorExt as _, InstanceSpec,
    InstanceStatus, OperationKind, Power,
};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

const ROOT: &str = "/mnt/cephfs/odoo_instances";

/// Measures migrations.
#[derive(Parser)]
struct Options {
    /// Sizes of the fleet, ascending.
    #[arg(long, value_delimiter = ',', default_value = "100,1000,10000")]
    sizes: Vec<u32>,
    /// How many tenants are moved at once.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
    /// The most tenants that are moved in the naive way.
    #[arg(long, default_value_t = 200)]
    naive: usize,
}

struct Fleet {
    old: MemoryOrchestrator,
    new: MemoryOrchestrator,
    specs: Vec<InstanceSpec>,
}

impl Fleet {
    async fn of(size: u32) -> anyhow::Result<Self> {
        let old = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
        let new = MemoryOrchestrator::builder()
            .posing_as(BackendKind::Kubernetes)
            .sharing_data_with(&old)
            .build();
        let specs = fixtures::fleet(size);
        for spec in &specs {
            old.create(spec, CreateOptions::new()).await?;
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        let fleet = Self { old, new, specs };
        fleet.forget();
        Ok(fleet)
    }

    fn forget(&self) {
        self.old.forget_calls();
        self.new.forget_calls();
    }

    fn calls(&self) -> u64 {
        let of = |side: &MemoryOrchestrator| side.calls().len();
        u64::try_from(of(&self.old) + of(&self.new)).unwrap_or(u64::MAX)
    }

    fn migrator(&self, journal: Arc<dyn Journal>) -> Migrator {
        Migrator::builder(Arc::new(self.old.clone()), Arc::new(self.new.clone()))
            .journal(journal)
            .data_root(ROOT)
            .secrets(Arc::new(KnownSecrets::of(self.specs.clone())))
            .clock(Clock::tokio(Timestamp::now()))
            .build()
    }
}

/// A directory that goes away.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("saasodoo-bench-migration-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn once(took: Duration) -> Samples {
    let mut samples = Samples::default();
    samples.push(took);
    samples
}

fn bytes(path: &Path) -> anyhow::Result<u64> {
    Ok(std::fs::metadata(path)?.len())
}

async fn measure(options: &Options, size: u32, results: &mut Results) -> anyhow::Result<()> {
    let (count, scratch) = (usize::try_from(size)?, Scratch::new()?);
    let file = scratch.0.join("journal.jsonl");
    let fleet = Fleet::of(size).await?;
    let ids: Vec<_> = fleet.specs.iter().map(|spec| spec.id).collect();
    let resident = memory("VmRSS");
    let migrator = fleet.migrator(Arc::new(FileJournal::open(&file)?));

    let start = Instant::now();
    let plan = migrator.dry_run(&ids, Force::none(), options.concurrency).await?;
    ensure!(plan.is_clear(), "{plan}");
    let took = once(start.elapsed());
    results.row("plan", "saasodoo", count, &took, per(fleet.calls(), count));
    fleet.forget();

    let mut wave = WaveOptions::default();
    wave.concurrency = options.concurrency;
    let start = Instant::now();
    let summary = Wave::new(&migrator, wave).run(&ids, &Control::new()).await?;
    ensure!(summary.committed.len() == count, "{summary}");
    let took = once(start.elapsed());
    let row = results.row("wave", "saasodoo", count, &took, per(fleet.calls(), count));
    row.memory_bytes = Some(memory("VmRSS").saturating_sub(resident));
    let power = |side: &MemoryOrchestrator| side.count_calls(OperationKind::SetPower);
    results.notes.push(format!(
        "a wave of {size}: {} changes of power, {} creations and {} reads of each tenant; {} bytes of journal for each",
        (power(&fleet.old) + power(&fleet.new)) / count,
        fleet.new.count_calls(OperationKind::Create) / count,
        (fleet.old.count_calls(OperationKind::Get) + fleet.new.count_calls(OperationKind::Get)) / count,
        bytes(&file)? / u64::from(size),
    ));
    drop(migrator);

    let start = Instant::now();
    let journal = FileJournal::open_read_only(&file)?;
    results.row("open journal", "saasodoo", count, &once(start.elapsed()), 0.0);
    let records = journal.load_all().await?;
    ensure!(records.len() == count, "{} records", records.len());

    let start = Instant::now();
    let report = Report::new(Timestamp::now(), &records);
    let json = serde_json::to_string(&report)?;
    let html = report.to_html();
    results.row("report", "saasodoo", count, &once(start.elapsed()), 0.0);
    results.notes.push(format!(
        "the report of {size}: {} bytes of JSON, {} bytes of HTML",
        json.len(),
        html.len()
    ));
    Ok(())
}

/// One after the other: read, suspend, wait, create on the same data, wait. No journal, no fence, no way back.
async fn naive(size: usize, results: &mut Results) -> anyhow::Result<()> {
    let fleet = Fleet::of(u32::try_from(size)?).await?;
    let start = Instant::now();
    for spec in &fleet.specs {
        let instance = fleet.old.get(spec.id).await?;
        let location = instance.storage.location.context("no location")?.to_string();
        let directory = location.rsplit('/').next().context("no directory")?.parse()?;
        fleet.old.set_power(spec.id, Power::Suspend).await?;
        let budget = Duration::from_secs(120);
        fleet.old.wait_until(spec.id, InstanceStatus::Paused, budget).await?;
        let options = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(directory));
        fleet.new.create(spec, options).await?;
        fleet.new.wait_until(spec.id, InstanceStatus::Running, budget).await?;
    }
    let took = once(start.elapsed());
    results.row("wave", "naive", size, &took, per(fleet.calls(), size));
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()?;
    runtime.block_on(async {
        let mut results = Results::new("migration", "in memory");
        for size in &options.sizes {
            measure(&options, *size, &mut results).await?;
            naive(options.naive.min(usize::try_from(*size)?), &mut results).await?;
        }
        println!("{}", results.table());
        println!("{}", results.write()?.display());
        Ok(())
    })
}
