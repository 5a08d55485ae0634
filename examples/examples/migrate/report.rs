//! The report, and both sides compared for it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use saasodoo_core::InstanceOrchestrator;
use saasodoo_core::dual::{Comparator, DualRun, JournalPlacement, MemorySink, Policy};
use saasodoo_core::migration::{Journal, Record, Report, Step};

use super::cli::Outcome;
use super::out::{Out, say};
use super::platforms::Platforms;
use super::show;

/// Asks both sides for every tenant, and compares what they say.
pub(crate) async fn compare(
    platforms: &Platforms,
    journal: &Arc<dyn Journal>,
    records: &[Record],
) -> Result<(Report, Outcome)> {
    const SETTLE: Duration = Duration::from_secs(2);
    /// So long without one more answer, and the rest counts as not compared.
    const PATIENCE: Duration = Duration::from_secs(90);
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
    let moved = records
        .iter()
        .filter(|record| record.is_committed() && record.step != Step::Finished);
    // One that is missing is compared, and differs; one that cannot be read is not.
    let (mut asked, mut awaited, mut unread) = (0_u64, 0_u64, 0_u64);
    for record in moved {
        asked += 1;
        if let Err(error) = dual.get(record.instance).await {
            unread += 1;
            awaited += u64::from(error.is_not_found());
            let name = show::name_of(record).unwrap_or_default();
            say(format!("not compared: {name} {}: {error}", record.instance));
        } else {
            awaited += 1;
        }
    }
    let answered = || {
        let counts = dual.counts();
        counts.comparisons + counts.failed + counts.dropped + counts.coalesced
    };
    let (mut before, mut since) = (0, tokio::time::Instant::now());
    while answered() < awaited && since.elapsed() < PATIENCE {
        if answered() > before {
            (before, since) = (answered(), tokio::time::Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let counts = dual.counts();
    let missing = unread + awaited.saturating_sub(counts.comparisons);
    if missing > 0 {
        say(format!("{missing} of {asked} tenants were not compared"));
    }
    let report = Report::new(jiff::Timestamp::now(), records)
        .with_dual_run(counts, sink.divergences(), &dual.latencies())
        .with_not_compared(missing);
    Ok((report, Outcome::failed_if(missing > 0)))
}

pub(crate) fn write(out: &Out, report: &Report, html: Option<&Path>, json: Option<&Path>) -> Result<()> {
    if let Some(path) = html {
        write_one(out, path, &report.to_html())?;
        if path != Path::new(STANDARD) {
            say(path.display());
        }
    }
    match json {
        Some(path) => write_one(out, path, &report.to_json()?),
        None if html.is_none() => write_one(out, Path::new(STANDARD), &report.to_json()?),
        None => Ok(()),
    }
}

/// The path that is the standard output.
const STANDARD: &str = "-";

fn write_one(out: &Out, path: &Path, text: &str) -> Result<()> {
    if path == Path::new(STANDARD) {
        out.line(text);
        return Ok(());
    }
    std::fs::write(path, text).with_context(|| format!("writing the report to {}", path.display()))
}
