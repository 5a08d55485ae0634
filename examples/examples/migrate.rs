//! Moves tenants from one platform to the other, as an operator does:
//!
//! ```sh
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave inventory
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave plan
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave run
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave status
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave rollback ID
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave finish
//! cargo run -p saasodoo-examples --example migrate -- --state /tmp/wave report --html report.html
//! ```
//!
//! For real platforms each of them takes `--source swarm --target kubernetes`, or the other way round.
//!
//! Without `--source` and `--target` it moves a simulated fleet of 50 between two platforms in memory that share their
//! data; a journal about other platforms is refused then. The runbook is in `docs/src/migration.md`.

#[path = "migrate/cli.rs"]
mod cli;
#[path = "migrate/fleet.rs"]
mod fleet;
#[path = "migrate/guard.rs"]
mod guard;
#[path = "migrate/ids.rs"]
mod ids;
#[path = "migrate/moves.rs"]
mod moves;
#[path = "migrate/orders.rs"]
mod orders;
#[path = "migrate/out.rs"]
mod out;
#[path = "migrate/platforms.rs"]
mod platforms;
#[path = "migrate/progress.rs"]
mod progress;
#[path = "migrate/report.rs"]
mod report;
#[path = "migrate/route.rs"]
mod route;
#[path = "migrate/router.rs"]
mod router;
#[path = "migrate/show.rs"]
mod show;
#[path = "migrate/state.rs"]
mod state;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use saasodoo_core::migration::{Journal, MemoryJournal, Record, Report, WaveOptions};

use cli::{Cli, Command, Outcome};
use out::{Out, say};

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(why) = cli.contradiction() {
        Cli::command()
            .error(clap::error::ErrorKind::ArgumentConflict, why)
            .exit();
    }
    saasodoo_examples::init_tracing();
    let out = Out::default();
    let outcome = run(cli, &out).await;
    match outcome.and_then(|outcome| out.end().map(|()| outcome)) {
        Ok(outcome) => outcome.into(),
        Err(error) => {
            say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli, out: &Out) -> Result<Outcome> {
    let Cli {
        platforms,
        settings,
        command,
    } = cli;
    let path = settings.journal();
    let opened = state::open(&path, &command)?;
    let begun = opened.is_some();
    let journal: Arc<dyn Journal> = opened.unwrap_or_else(|| Arc::new(MemoryJournal::new()));
    let records = journal.load_all().await?;
    if let Some(outcome) = from_the_journal(out, &command, &records, settings.window())? {
        return Ok(outcome);
    }
    let identities = platforms.identify().await?;
    say(format!("platforms: {identities}"));
    let force = settings.force();
    identities.check(&records, force, &path)?;
    let platforms = platforms
        .connect(&records, Duration::from_secs(settings.deadline))
        .await?;
    let earlier = state::earlier(&settings).await?;
    let builder = || state::builder(&settings, &identities, &platforms, &records, &earlier);
    let migrator = |journal| builder().map(|builder| builder.journal(journal).build());
    match command {
        Command::Inventory => {
            let (fleet, outcome) = fleet::listed(&platforms).await;
            show::inventory(out, &fleet, &records);
            Ok(outcome)
        }
        Command::Plan { ids } => {
            let (ids, outcome) = fleet::to_plan(out, &platforms, &records, ids).await?;
            let plan = migrator(journal)?.dry_run(&ids, force, 8).await?;
            out.line(&plan);
            Ok(outcome.and(Outcome::failed_if(!plan.is_clear())))
        }
        Command::Run {
            ids,
            concurrency,
            stop_at,
            least_sample,
            retry,
        } => {
            let chosen = fleet::to_move(&platforms, &records, ids).await?;
            let mut options = WaveOptions::default();
            options.concurrency = concurrency;
            options.stop_at_failure_rate = stop_at;
            options.least_sample = least_sample;
            options.force = force;
            options.retry = retry;
            // What can be refused is refused before there is a file.
            let builder = builder()?;
            if let Some(router) = &settings.probe {
                router.check().await?;
            }
            let journal = if begun { journal } else { state::create(&path).await? };
            let migrator = builder.journal(journal).build();
            moves::wave(out, &migrator, chosen, &records, options).await
        }
        Command::Rollback { ids, lose_changes } => {
            let ids = fleet::known(&records, &ids)?;
            let mut force = force;
            force.lose_changes = lose_changes;
            moves::rollback(out, &migrator(journal)?, &ids, &records, force).await
        }
        Command::Finish { ids, early } => {
            let ids = fleet::known(&records, &ids)?;
            moves::finish(out, &migrator(journal)?, ids, &records, early, force).await
        }
        Command::Report { html, json, .. } => {
            let (report, outcome) = report::compare(&platforms, &journal, &records).await?;
            report::write(out, &report, html.as_deref(), json.as_deref())?;
            Ok(outcome)
        }
        Command::Status => Ok(Outcome::Done),
    }
}

/// The commands that ask no platform.
fn from_the_journal(out: &Out, command: &Command, records: &[Record], window: Duration) -> Result<Option<Outcome>> {
    match command {
        Command::Status => show::status(out, records, window),
        Command::Report {
            html,
            json,
            compare: false,
        } => {
            let report = Report::new(jiff::Timestamp::now(), records);
            report::write(out, &report, html.as_deref(), json.as_deref())?;
        }
        _ => return Ok(None),
    }
    Ok(Some(Outcome::Done))
}
