//! What a migration was like, for people and for programs.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Outage, Record, Step, StepRun};
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
    /// Why it went back.
    pub failure: Option<String>,
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
        Self {
            made,
            instances: records.iter().map(|record| InstanceReport::new(record, made)).collect(),
            divergences: Vec::new(),
            counts: None,
            latencies: Vec::new(),
            not_compared: 0,
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
        let mut all: Vec<u64> = self
            .instances
            .iter()
            .filter(|instance| matches!(instance.step, Step::Committed | Step::RemoveSource | Step::Finished))
            .filter(|instance| !instance.outages.is_empty())
            .map(|instance| instance.downtime_ms)
            .collect();
        all.sort_unstable();
        all.get(all.len() / 2).copied().map(Duration::from_millis)
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
            began: record.began,
            timeline: record.history.clone(),
            outages: record.outages.clone(),
            downtime_ms: u64::try_from(record.downtime(now).as_millis()).unwrap_or(u64::MAX),
            parity: record.parity.clone(),
            notes: record.notes.clone(),
        }
    }
}
