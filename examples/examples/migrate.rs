//! Moves tenants from one platform to the other, as an operator does:
//!
//! ```sh
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave inventory
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave plan
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave run
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave status
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave rollback ID
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave report --html report.html
//! ```
//!
//! For real platforms each of them takes `--source swarm --target kubernetes`, or the other way round.
//!
//! Without `--source` and `--target` it moves a simulated fleet of 50 between two platforms in memory that share their
//! data. The runbook is in `docs/src/migration.md`.

#[path = "migrate/platforms.rs"]
mod platforms;
#[path = "migrate/route.rs"]
mod route;
#[path = "migrate/show.rs"]
mod show;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use futures::StreamExt;
use saasodoo_core::dual::{Comparator, DualRun, JournalPlacement, MemorySink, Policy};
use saasodoo_core::migration::{
    Control, FileJournal, Force, HttpProbe, Journal, KnownSecrets, MemoryJournal, MigrationConfig, Migrator, Record,
    RecordedData, Report, RootedData, Side, Step, Wave, WaveOptions,
};
use saasodoo_core::{Instance, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, Secret};

use platforms::{PlatformArgs, Platforms};
use route::RouteCommand;

/// Moves tenants between Docker Swarm and Kubernetes on the data they have, with a way back.
#[derive(Debug, Parser)]
#[command(name = "migrate", version)]
struct Cli {
    #[command(flatten)]
    platforms: PlatformArgs,
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Settings {
    /// Where the journal is kept; the same directory for every command about the same wave.
    #[arg(long, default_value = "migration", value_name = "DIR", global = true)]
    state: PathBuf,
    /// A JSON file with secrets: {"<id>": {"database_password": "…", "admin_password": "…"}}.
    #[arg(long, value_name = "FILE", global = true)]
    secrets: Option<PathBuf>,
    /// The state of an earlier migration the other way, which knows where the data of its instances is: a Kubernetes
    /// claim does not say.
    #[arg(long, value_name = "DIR", global = true)]
    earlier: Option<PathBuf>,
    /// How long both sides are watched before the commit, in seconds; default: 120, and 1 for the simulation.
    #[arg(long, value_name = "SECONDS", global = true)]
    bake: Option<u64>,
    /// How long a target may take to be ready, in seconds.
    #[arg(long, default_value_t = 420, value_name = "SECONDS", global = true)]
    ready: u64,
    /// How long one operation on a real platform may take, in seconds. A change whose answer was lost, because the process
    /// died or the platform did not answer, is waited for 80 s longer than this before anything that contradicts it.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(30..=3600), value_name = "SECONDS", global = true)]
    deadline: u64,
    /// How long after the commit a tenant can be taken back, in hours.
    #[arg(long, default_value_t = 72, value_name = "HOURS", global = true)]
    window: u64,
    /// Asks each tenant's host through this router of the target before visitors are sent there.
    #[arg(long, value_name = "HOST:PORT", global = true)]
    probe: Option<String>,
    /// Sends visitors to a side: a program and its arguments, divided by spaces and run without a shell for each host of
    /// a tenant, with HOST, INSTANCE and SIDE (source or target) in its environment. It is run again until it succeeds
    /// or the time is up.
    #[arg(long, value_name = "CMD", value_parser = RouteCommand::parse, global = true)]
    route_command: Option<RouteCommand>,
    /// Move an instance that is not well on the source.
    #[arg(long, global = true)]
    force_unhealthy: bool,
    /// Give up what could not be parsed.
    #[arg(long, global = true)]
    force_unparsed: bool,
    /// Go on although an instance is gone from that side where it was before. Only after seeing, on that very platform,
    /// that nothing of it is left.
    #[arg(long, value_name = "SIDE", value_parser = ["source", "target"], global = true)]
    accept_absent: Vec<String>,
    /// Go on although that side has another name in the journal. Only when it is the same platform: another manager of
    /// the same swarm, another address of the same API server.
    #[arg(long, value_name = "SIDE", value_parser = ["source", "target"], global = true)]
    accept_platform: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// What is on the source, and what of it could not be parsed.
    Inventory,
    /// Every change of every tenant, and hosts and names that clash. Changes nothing.
    Plan {
        /// Only these; default: all.
        ids: Vec<InstanceId>,
    },
    /// Moves tenants. Run again to go on. Ctrl-C pauses where tenants are up; a second one takes those under way back.
    Run {
        /// Only these, in this order; default: all, by name.
        ids: Vec<InstanceId>,
        /// How many at once.
        #[arg(long, default_value_t = 4)]
        concurrency: usize,
        /// Begin no more when more than this share has failed.
        #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
        stop_at: f64,
        /// Begin again with those that were rolled back.
        #[arg(long)]
        retry: bool,
    },
    /// Where each tenant is.
    Status,
    /// Takes tenants back to the source.
    Rollback {
        /// These.
        #[arg(required = true)]
        ids: Vec<InstanceId>,
        /// What was changed on the target since the commit is lost.
        #[arg(long)]
        lose_changes: bool,
    },
    /// Removes the sources of committed tenants whose window is over. The data stays.
    Finish {
        /// Only these; default: all that are due.
        ids: Vec<InstanceId>,
        /// Before the window is over; only with ids.
        #[arg(long, requires = "ids")]
        early: bool,
    },
    /// What it was like.
    Report {
        /// Writes one page of HTML there.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
        /// Writes JSON there; default, without --html: to the standard output.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Compares both sides as they are now, too.
        #[arg(long)]
        compare: bool,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    saasodoo_examples::init_tracing();
    match run(cli).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<ExitCode> {
    let Cli {
        platforms,
        settings,
        command,
    } = cli;
    let path = settings.state.join("journal.jsonl");
    // Only a command that changes something needs the file for itself.
    let writes = matches!(
        command,
        Command::Run { .. } | Command::Rollback { .. } | Command::Finish { .. }
    );
    let journal: Arc<dyn Journal> = if writes {
        Arc::new(FileJournal::open(&path)?)
    } else if path.exists() {
        Arc::new(FileJournal::open_read_only(&path)?)
    } else {
        Arc::new(MemoryJournal::new())
    };
    let records = journal.load_all().await?;
    if matches!(command, Command::Status) {
        show::status(&records);
        return Ok(ExitCode::SUCCESS);
    }
    if let Command::Report {
        html,
        json,
        compare: false,
    } = &command
    {
        write_report(
            Report::new(jiff::Timestamp::now(), &records),
            html.as_ref(),
            json.as_ref(),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let platforms = platforms
        .connect(&records, Duration::from_secs(settings.deadline))
        .await?;
    let mut known = Vec::new();
    if let Some(earlier) = &settings.earlier {
        let journal = FileJournal::open_read_only(earlier.join("journal.jsonl"))?;
        known.extend(journal.load_all().await?);
    }
    let migrator = migrator(&settings, &platforms, journal, &records, &known)?;
    let force = force(&settings);
    match command {
        Command::Inventory => {
            let (fleet, whole) = fleet(&platforms).await;
            show::inventory(&fleet, &records);
            return Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(2) });
        }
        Command::Plan { ids } => {
            let (ids, whole) = chosen(&platforms, &records, ids).await;
            let plan = migrator.dry_run(&ids, force, 8).await?;
            println!("{plan}");
            if !whole || !plan.is_clear() {
                return Ok(ExitCode::from(2));
            }
        }
        Command::Run {
            ids,
            concurrency,
            stop_at,
            retry,
        } => {
            let (ids, whole) = chosen(&platforms, &records, ids).await;
            let mut options = WaveOptions::default();
            options.concurrency = concurrency;
            options.stop_at_failure_rate = stop_at;
            options.force = force;
            options.retry = retry;
            let code = wave(&migrator, &platforms, &ids, options).await?;
            return Ok(if whole { code } else { ExitCode::from(2) });
        }
        Command::Rollback { ids, lose_changes } => {
            let mut force = force;
            force.lose_changes = lose_changes;
            let bars = show::follow(&migrator, ids.len(), &BTreeMap::new());
            let mut failed = false;
            for id in ids {
                match migrator.rollback_with(id, force).await {
                    Ok(record) => bars.line(&show::line(&record, migrator.now())),
                    Err(error) => {
                        failed = true;
                        bars.line(&format!("{id}: {error}"));
                    }
                }
            }
            bars.end();
            return Ok(ExitCode::from(u8::from(failed)));
        }
        Command::Finish { ids, early } => {
            let mut results = Vec::new();
            if ids.is_empty() {
                results = migrator.finish_due_with(force).await?;
            }
            for id in ids {
                results.push((id, migrator.finish_with(id, early, force).await));
            }
            let failed = results.iter().any(|(_, result)| result.is_err());
            for (id, result) in &results {
                match result {
                    Ok(record) => println!("{}", show::line(record, migrator.now())),
                    Err(error) => println!("{id}: {error}"),
                }
            }
            println!(
                "{} finished",
                results.iter().filter(|(_, result)| result.is_ok()).count()
            );
            return Ok(ExitCode::from(u8::from(failed)));
        }
        Command::Report { html, json, .. } => {
            let report = compare(&platforms, migrator.journal(), &records).await?;
            write_report(report, html.as_ref(), json.as_ref())?;
        }
        Command::Status => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn force(settings: &Settings) -> Force {
    let mut force = Force::none();
    force.unhealthy_source = settings.force_unhealthy;
    force.unparsed = settings.force_unparsed;
    for side in [Side::Source, Side::Target] {
        let names = |given: &[String]| given.iter().any(|given| given == side.as_str());
        if names(&settings.accept_absent) {
            force = force.accept_absent(side);
        }
        if names(&settings.accept_platform) {
            force = force.accept_platform(side);
        }
    }
    force
}

fn migrator(
    settings: &Settings,
    platforms: &Platforms,
    journal: Arc<dyn Journal>,
    records: &[Record],
    earlier: &[Record],
) -> Result<Migrator> {
    let mut config = MigrationConfig::default();
    config.ready = Duration::from_secs(settings.ready);
    // What a platform's own deadlines leave: an operation, undoing it, and the way of the answer.
    config.call = Duration::from_secs(settings.deadline + 10);
    config.doubt = Duration::from_secs(settings.deadline + 80);
    config.rollback_window = Duration::from_secs(settings.window * 3600);
    if platforms.simulated {
        config.poll = Duration::from_millis(50);
        config.bake = Duration::from_secs(1);
        config.bake_poll = Duration::from_millis(250);
        config.expected_downtime = Duration::from_secs(2);
    }
    if let Some(bake) = settings.bake {
        config.bake = Duration::from_secs(bake);
    }
    // Only what an earlier migration knows: this one's own journal would say of its target what it expects there.
    let data = RecordedData::of(earlier, RootedData::under(platforms.data_root.clone()));
    let mut builder = Migrator::builder(platforms.source.clone(), platforms.target.clone())
        .journal(journal)
        .identities(platforms.identities.0.clone(), platforms.identities.1.clone())
        .data_locator(Arc::new(data))
        .config(config)
        .secrets(Arc::new(KnownSecrets::of(secrets(
            settings,
            platforms,
            &[records, earlier].concat(),
        )?)));
    if let Some(router) = &settings.probe {
        builder = builder.probe(Arc::new(HttpProbe::through(router)));
    }
    if let Some(command) = &settings.route_command {
        builder = builder.route(Arc::new(command.clone()));
    }
    Ok(builder.build())
}

/// Specs that hold the secrets: the simulation's own, or those of the file on top of what is in the journal.
fn secrets(settings: &Settings, platforms: &Platforms, records: &[Record]) -> Result<Vec<InstanceSpec>> {
    let Some(path) = &settings.secrets else {
        return Ok(platforms.specs.clone());
    };
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let given: BTreeMap<String, BTreeMap<String, String>> =
        serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    let mut specs = Vec::new();
    for (id, secrets) in given {
        let id: InstanceId = id.parse()?;
        let known = records.iter().find(|record| record.instance == id);
        let mut spec = match known.and_then(|record| record.inventory.as_ref()) {
            Some(inventory) => inventory.spec.clone(),
            None => InstanceSpec::new(id, "unknown".parse()?, "unknown:0".parse()?),
        };
        for (name, value) in secrets {
            let secret = Secret::new(value);
            match name.as_str() {
                "database_password" => spec = spec.with_database(endpoint(secret)),
                "admin_password" => spec = spec.with_admin("", secret),
                other => bail!("{}: {other:?} is no secret of an instance", path.display()),
            }
        }
        specs.push(spec);
    }
    Ok(specs)
}

/// Only its password is used.
fn endpoint(password: Secret) -> saasodoo_core::DatabaseEndpoint {
    let mut endpoint = saasodoo_core::DatabaseEndpoint::new("", "", "", password);
    endpoint.user = None;
    endpoint
}

/// Every tenant of the source that can be read, by name, and whether that is all. What cannot be read is said, and keeps
/// nobody else from going on.
async fn fleet(platforms: &Platforms) -> (Vec<Instance>, bool) {
    let mut whole = true;
    let mut listed = platforms.source.list(InstanceFilter::all());
    let mut fleet: Vec<Instance> = Vec::new();
    while let Some(instance) = listed.next().await {
        match instance {
            Ok(instance) => fleet.push(instance),
            Err(error) => {
                whole = false;
                eprintln!("not listed on the source: {error}");
            }
        }
    }
    fleet.sort_by(|a, b| natural(a.name.as_str()).cmp(&natural(b.name.as_str())));
    (fleet, whole)
}

/// `tenant-9` comes before `tenant-10`.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

/// The ids that were given, else everybody on the source and everybody under way; and whether these are all.
async fn chosen(platforms: &Platforms, records: &[Record], ids: Vec<InstanceId>) -> (Vec<InstanceId>, bool) {
    if !ids.is_empty() {
        return (ids, true);
    }
    let mut seen = BTreeSet::new();
    let (fleet, whole) = fleet(platforms).await;
    let there = fleet.into_iter().map(|instance| instance.id);
    let known = records.iter().map(|record| record.instance);
    (there.chain(known).filter(|id| seen.insert(*id)).collect(), whole)
}

async fn wave(
    migrator: &Migrator,
    platforms: &Platforms,
    ids: &[InstanceId],
    options: WaveOptions,
) -> Result<ExitCode> {
    // For the bars only.
    let (fleet, _) = fleet(platforms).await;
    let names = fleet
        .into_iter()
        .map(|instance| (instance.id, instance.name.to_string()))
        .collect();
    let control = Control::new();
    let bars = show::follow(migrator, ids.len(), &names);
    let orders = {
        let (control, bars) = (control.clone(), bars.clone());
        tokio::spawn(async move {
            let mut times = 0;
            while tokio::signal::ctrl_c().await.is_ok() {
                times += 1;
                if times == 1 {
                    bars.line("pausing where tenants are up; Ctrl-C again takes those under way back");
                    control.pause();
                } else {
                    bars.line("taking those under way back");
                    control.abort();
                }
            }
        })
    };
    let summary = Wave::new(migrator, options).run(ids, &control).await;
    orders.abort();
    bars.end();
    let summary = summary?;
    println!("{summary}");
    let well = summary.rolled_back.is_empty() && summary.halted.is_empty() && !summary.stopped;
    Ok(if well { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// Asks both sides for every tenant, and compares what they say.
async fn compare(platforms: &Platforms, journal: &Arc<dyn Journal>, records: &[Record]) -> Result<Report> {
    const SETTLE: Duration = Duration::from_secs(2);
    /// So long without one more answer, and the rest counts as not compared.
    const PATIENCE: Duration = Duration::from_secs(90);
    let moved = records
        .iter()
        .filter(|record| record.is_committed() && record.step != Step::Finished);
    let moved: Vec<InstanceId> = moved.map(|record| record.instance).collect();
    let sink = Arc::new(MemorySink::new());
    // As a service does that serves both sides: who lives where is in the journal.
    let placement = JournalPlacement::open(journal.clone(), platforms.source.backend()).await?;
    let dual = DualRun::builder(platforms.source.clone(), platforms.target.clone())
        .policy(Policy::Observe)
        .placement(Arc::new(placement))
        .comparator(Comparator::mirrored())
        .settle(SETTLE, 3)
        .sink(sink.clone())
        .build();
    for id in &moved {
        dual.get(*id).await.with_context(|| format!("reading {id}"))?;
    }
    let asked = u64::try_from(moved.len())?;
    let answered = || {
        let counts = dual.counts();
        counts.comparisons + counts.failed + counts.dropped + counts.coalesced
    };
    let (mut before, mut since) = (0, tokio::time::Instant::now());
    while answered() < asked && since.elapsed() < PATIENCE {
        if answered() > before {
            (before, since) = (answered(), tokio::time::Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let counts = dual.counts();
    let missing = asked.saturating_sub(counts.comparisons);
    if missing > 0 {
        eprintln!("{missing} of {asked} tenants were not compared");
    }
    Ok(Report::new(jiff::Timestamp::now(), records)
        .with_dual_run(counts, sink.divergences(), &dual.latencies())
        .with_not_compared(missing))
}

fn write_report(report: Report, html: Option<&PathBuf>, json: Option<&PathBuf>) -> Result<()> {
    if let Some(path) = html {
        std::fs::write(path, report.to_html()).with_context(|| path.display().to_string())?;
        eprintln!("{}", path.display());
    }
    match json {
        Some(path) => std::fs::write(path, report.to_json()?).with_context(|| path.display().to_string())?,
        None if html.is_none() => println!("{}", report.to_json()?),
        None => {}
    }
    Ok(())
}
