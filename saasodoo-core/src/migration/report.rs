//! What a migration was like, for people and for programs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Failure, Outage, Record, Signal, Step, StepRun};
use crate::dual::{Counts, Divergence, FieldVerdict, LatencySummary, Place};
use crate::{BackendKind, InstanceId, OperationKind};

/// Everything about a wave: as JSON by [`to_json`](Self::to_json), and as a page by [`to_html`](Self::to_html).
///
/// ```
/// use saasodoo_core::migration::Report;
///
/// let report = Report::new(jiff::Timestamp::UNIX_EPOCH, &[]);
/// assert!(report.to_html().starts_with("<!doctype html>"));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Report {
    /// When it was made.
    pub made: Timestamp,
    /// Instance by instance, in the order in which they began.
    pub instances: Vec<InstanceReport>,
    /// Divergences that a dual run found.
    pub divergences: Vec<Divergence>,
    /// What it counted.
    pub counts: Option<Counts>,
    /// How long both sides take.
    pub latencies: Vec<LatencyRow>,
    /// How many instances should have been compared and were not: of them nothing is known.
    #[serde(default)]
    pub not_compared: u64,
    /// How many can go neither forward nor back until somebody has looked.
    #[serde(default)]
    pub halted: u64,
    /// How many tenants were down when the report was made.
    #[serde(default)]
    pub down_now: u64,
}

/// One instance's migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstanceReport {
    /// The instance.
    pub instance: InstanceId,
    /// The name of its objects.
    pub name: String,
    /// From.
    pub source: BackendKind,
    /// To.
    pub target: BackendKind,
    /// Where it is.
    pub step: Step,
    /// Why it went back; `None` when nothing failed, also when the operator took it back.
    pub failure: Option<String>,
    /// When the operator took it back, before the commit or after it.
    #[serde(default)]
    pub taken_back: Option<Timestamp>,
    /// Why the last process gave it up where it is: it goes neither forward nor back until somebody has looked.
    #[serde(default)]
    pub halted: Option<Failure>,
    /// The end of the rollback window, once it is committed.
    #[serde(default)]
    pub window_until: Option<Timestamp>,
    /// When it began.
    pub began: Timestamp,
    /// Each run of each step.
    pub timeline: Vec<StepRun>,
    /// When the tenant was down.
    pub outages: Vec<Outage>,
    /// How long in all, in milliseconds.
    pub downtime_ms: u64,
    /// Both sides compared at the commit.
    pub parity: Vec<FieldVerdict>,
    /// Things worth knowing.
    pub notes: Vec<String>,
}

/// One operation's latency on both sides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LatencyRow {
    /// The operation.
    pub operation: OperationKind,
    /// On the primary.
    pub primary: Option<LatencySummary>,
    /// On the secondary.
    pub secondary: Option<LatencySummary>,
}

impl Report {
    /// A report on these migrations.
    #[must_use]
    pub fn new(made: Timestamp, records: &[Record]) -> Self {
        Self::of(
            made,
            records.iter().map(|record| InstanceReport::new(record, made)).collect(),
        )
    }

    pub(super) fn of(made: Timestamp, instances: Vec<InstanceReport>) -> Self {
        let count = |which: fn(&InstanceReport) -> bool| {
            let those = instances.iter().filter(|instance| which(instance));
            u64::try_from(those.count()).unwrap_or(u64::MAX)
        };
        Self {
            made,
            divergences: Vec::new(),
            counts: None,
            latencies: Vec::new(),
            not_compared: 0,
            halted: count(|instance| instance.halted.is_some()),
            down_now: count(|instance| instance.down_since().is_some()),
            instances,
        }
    }

    /// So many instances could not be compared.
    #[must_use]
    pub fn with_not_compared(mut self, instances: u64) -> Self {
        self.not_compared = instances;
        self
    }

    /// Adds what a dual run found.
    #[must_use]
    pub fn with_dual_run(mut self, counts: Counts, divergences: Vec<Divergence>, latencies: &[LatencySummary]) -> Self {
        self.counts = Some(counts);
        self.divergences = divergences;
        for summary in latencies {
            let at = self.latencies.iter().position(|row| row.operation == summary.operation);
            let at = at.unwrap_or_else(|| {
                self.latencies.push(LatencyRow {
                    operation: summary.operation,
                    primary: None,
                    secondary: None,
                });
                self.latencies.len() - 1
            });
            if let Some(row) = self.latencies.get_mut(at) {
                match summary.place {
                    Place::Primary => row.primary = Some(summary.clone()),
                    Place::Secondary => row.secondary = Some(summary.clone()),
                }
            }
        }
        self
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// Never in practice; those of the serializer.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }

    /// The report as one page of HTML that needs nothing else: no network, no script.
    #[must_use]
    pub fn to_html(&self) -> String {
        super::report_html::page(self)
    }

    /// The median downtime of the committed instances that were down at all.
    #[must_use]
    pub fn median_downtime(&self) -> Option<Duration> {
        self.downtimes().map(|spread| Duration::from_millis(spread.median))
    }

    /// The downtimes of the committed instances that were down at all.
    pub(super) fn downtimes(&self) -> Option<Spread> {
        Spread::of(
            self.instances
                .iter()
                .filter(|instance| instance.is_on_target() && !instance.outages.is_empty())
                .map(|instance| instance.downtime_ms)
                .collect(),
        )
    }
}

/// How downtimes are spread, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Spread {
    pub(super) median: u64,
    pub(super) p95: u64,
    pub(super) longest: u64,
}

impl Spread {
    pub(super) fn of(mut all: Vec<u64>) -> Option<Self> {
        all.sort_unstable();
        let at = |at: usize| all.get(at).copied();
        Some(Self {
            median: at(all.len() / 2)?,
            p95: at((all.len() * 95).div_ceil(100).saturating_sub(1))?,
            longest: *all.last()?,
        })
    }
}

impl InstanceReport {
    fn new(record: &Record, now: Timestamp) -> Self {
        let name = record.inventory.as_ref().map_or_else(
            || record.instance.to_string(),
            |inventory| inventory.observed.name.to_string(),
        );
        Self {
            instance: record.instance,
            name,
            source: record.source,
            target: record.target,
            step: record.step,
            failure: record
                .failure
                .as_ref()
                .map(|failure| format!("{}: {}", failure.step, failure.message)),
            taken_back: taken_back(record),
            halted: record.halted.clone(),
            window_until: record.window_until,
            began: record.began,
            timeline: record.history.clone(),
            outages: record.outages.clone(),
            downtime_ms: u64::try_from(record.downtime(now).as_millis()).unwrap_or(u64::MAX),
            parity: record.parity.clone(),
            notes: record.notes.clone(),
        }
    }

    /// True when the tenant has its home on the target.
    #[must_use]
    pub fn is_on_target(&self) -> bool {
        matches!(self.step, Step::Committed | Step::RemoveSource | Step::Finished)
    }

    /// True when it went or goes back because the operator wanted it: nothing had failed.
    #[must_use]
    pub fn was_taken_back(&self) -> bool {
        self.step.is_back() && self.failure.is_none()
    }

    /// Since when the tenant is down; `None` when it is up.
    #[must_use]
    pub fn down_since(&self) -> Option<Timestamp> {
        self.outages
            .last()
            .filter(|outage| outage.to.is_none())
            .map(|outage| outage.from)
    }
}

/// Only a failure and the operator lead back, and a failure is written down. The operator's signal itself is in the
/// history only when it came within a step: not when it came at the commit's rest.
fn taken_back(record: &Record) -> Option<Timestamp> {
    if !record.step.is_back() || record.failure.is_some() {
        return None;
    }
    let signal = record
        .history
        .iter()
        .rev()
        .find(|run| matches!(run.signal, Some(Signal::Abort | Signal::Rollback)))
        .and_then(|run| run.ended);
    let way_back = || record.history.iter().find(|run| run.step.is_back());
    signal
        .or_else(|| way_back().map(|run| run.began))
        .or(Some(record.updated))
}
