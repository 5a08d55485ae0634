//! What a dual run counts: comparisons, and how long each side takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::compare::{FieldVerdict, Verdict};
use super::placement::Place;
use crate::OperationKind;

/// What was compared and what was not, up to now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counts {
    /// Comparisons that came to an end.
    pub comparisons: u64,
    /// Fields that were the same from the first sample on.
    pub matched: u64,
    /// Fields that differed, and a rule said why.
    pub ignored: u64,
    /// Fields that differed to the end of the settle window.
    pub diverged: u64,
    /// Fields that differed at first and no more in the last sample. Not counted as matched.
    pub settled: u64,
    /// Fields that differed in the last sample, but not in the same way all along.
    #[serde(default)]
    pub unsettled: u64,
    /// Comparisons that could not be made because a side did not answer.
    pub failed: u64,
    /// Comparisons left out because one of the same instance was under way.
    pub coalesced: u64,
    /// Comparisons left out because too many were under way.
    pub dropped: u64,
    /// Writes that were repeated on the secondary.
    pub mirrored: u64,
    /// Writes that were not.
    pub not_mirrored: u64,
}

/// The counters behind [`Counts`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) comparisons: AtomicU64,
    pub(super) matched: AtomicU64,
    pub(super) ignored: AtomicU64,
    pub(super) diverged: AtomicU64,
    pub(super) settled: AtomicU64,
    pub(super) unsettled: AtomicU64,
    pub(super) failed: AtomicU64,
    pub(super) coalesced: AtomicU64,
    pub(super) dropped: AtomicU64,
    pub(super) mirrored: AtomicU64,
    pub(super) not_mirrored: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Counters {
    /// Counts each field once. `at_first` are the fields that differed in the first sample.
    pub(super) fn verdicts(&self, verdicts: &[FieldVerdict], at_first: &BTreeSet<String>) {
        let number = |found: usize| u64::try_from(found).unwrap_or(u64::MAX);
        let of = |wanted: fn(&Verdict) -> bool| {
            let fields = verdicts.iter().filter(|field| wanted(&field.verdict));
            number(
                fields
                    .filter(|field| open(field) || !at_first.contains(&field.field))
                    .count(),
            )
        };
        // A field may also be gone in the last sample, as `present` is once both sides have the instance.
        let still_open: BTreeSet<&str> = verdicts.iter().filter(|f| open(f)).map(|f| f.field.as_str()).collect();
        let settled = at_first.iter().filter(|field| !still_open.contains(field.as_str()));
        count(&self.settled, number(settled.count()));
        count(&self.comparisons, 1);
        count(&self.matched, of(|verdict| matches!(verdict, Verdict::Matched)));
        count(&self.ignored, of(|verdict| matches!(verdict, Verdict::Ignored { .. })));
        count(&self.diverged, of(|verdict| matches!(verdict, Verdict::Diverged)));
        count(&self.unsettled, of(|verdict| matches!(verdict, Verdict::Unsettled)));
    }

    pub(super) fn snapshot(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            comparisons: read(&self.comparisons),
            matched: read(&self.matched),
            ignored: read(&self.ignored),
            diverged: read(&self.diverged),
            settled: read(&self.settled),
            unsettled: read(&self.unsettled),
            failed: read(&self.failed),
            coalesced: read(&self.coalesced),
            dropped: read(&self.dropped),
            mirrored: read(&self.mirrored),
            not_mirrored: read(&self.not_mirrored),
        }
    }
}

fn open(field: &FieldVerdict) -> bool {
    matches!(field.verdict, Verdict::Diverged | Verdict::Unsettled)
}

/// How long one operation takes on one side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LatencySummary {
    /// The side.
    pub place: Place,
    /// The operation.
    pub operation: OperationKind,
    /// How many calls.
    pub calls: u64,
    /// How many of them failed.
    pub errors: u64,
    /// Half of the calls took at most this.
    pub median: Duration,
    /// Nineteen of twenty took at most this.
    pub p95: Duration,
    /// The slowest.
    pub max: Duration,
}

/// The last so many calls of each operation on each side are kept.
const KEPT: usize = 512;

#[derive(Debug)]
struct Window {
    operation: OperationKind,
    calls: u64,
    errors: u64,
    max: Duration,
    last: Vec<Duration>,
    next: usize,
}

/// Latencies of both sides.
#[derive(Debug, Default)]
pub(super) struct Latencies(Mutex<BTreeMap<(Place, &'static str), Window>>);

impl Latencies {
    pub(super) fn record(&self, place: Place, operation: OperationKind, took: Duration, failed: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = all.entry((place, operation.as_str())).or_insert_with(|| Window {
            operation,
            calls: 0,
            errors: 0,
            max: Duration::ZERO,
            last: Vec::new(),
            next: 0,
        });
        window.calls += 1;
        window.errors += u64::from(failed);
        window.max = window.max.max(took);
        if window.last.len() < KEPT {
            window.last.push(took);
        } else {
            window.last[window.next] = took;
            window.next = (window.next + 1) % KEPT;
        }
    }

    pub(super) fn summaries(&self) -> Vec<LatencySummary> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .map(|((place, _), window)| {
                let mut sorted = window.last.clone();
                sorted.sort_unstable();
                let at = |percent: usize| {
                    let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
                    sorted.get(index).copied().unwrap_or_default()
                };
                LatencySummary {
                    place: *place,
                    operation: window.operation,
                    calls: window.calls,
                    errors: window.errors,
                    median: at(50),
                    p95: at(95),
                    max: window.max,
                }
            })
            .collect()
    }
}
