//! Many instances: in an order, so many at once, and no further when too many fail.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::engine::Order;
use super::forward::inventory_of;
use super::journal_file::UNWRITABLE;
use super::preflight;
use super::run::may_pass;
use super::{Control, Force, Migrator, Record, Step};
use crate::{
    DataPath, Error, ErrorKind, HealthCheck, HealthState, Instance, InstanceFilter, InstanceId, ObjectName,
    OperationKind, Result,
};

/// How a wave goes.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct WaveOptions {
    /// How many instances move at once. Default: 4.
    pub concurrency: usize,
    /// The wave begins no more instances when more than this share of those that came to rest has failed. Default: 0.1.
    pub stop_at_failure_rate: f64,
    /// So many must have come to rest before the rate counts. Default: 5.
    pub least_sample: usize,
    /// What the operator accepts, for all of them.
    pub force: Force,
    /// Begins again with those that were rolled back before, and with those that are finished and have come back to the
    /// source since, by another journal.
    pub retry: bool,
}

impl Default for WaveOptions {
    fn default() -> Self {
        Self {
            concurrency: 4,
            stop_at_failure_rate: 0.1,
            least_sample: 5,
            force: Force::none(),
            retry: false,
        }
    }
}

/// Moves many instances with one [`Migrator`].
///
/// A wave keeps no state of its own: run it again with the same list, and it goes on with what is under way and leaves
/// alone what is done.
#[derive(Debug)]
pub struct Wave<'a> {
    migrator: &'a Migrator,
    options: WaveOptions,
}

/// What became of a wave.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct WaveSummary {
    /// They live on the target.
    pub committed: Vec<InstanceId>,
    /// They are back on the source, with the reason.
    pub rolled_back: BTreeMap<InstanceId, String>,
    /// They can go neither forward nor back until somebody has looked, with the reason.
    pub halted: BTreeMap<InstanceId, String>,
    /// They were paused.
    pub paused: Vec<InstanceId>,
    /// They were not begun: the wave was stopped before.
    pub not_begun: Vec<InstanceId>,
    /// The failure rate stopped the wave, or the journal could not be written.
    pub stopped: bool,
    /// Why no more were begun, when the journal could not be written: nobody new is stopped then.
    #[serde(default)]
    pub journal_failed: Option<String>,
    /// The median downtime of those that were committed in this or an earlier run.
    pub median_downtime: Option<Duration>,
    /// The longest.
    pub longest_downtime: Option<Duration>,
}

impl fmt::Display for WaveSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} committed, {} rolled back, {} halted, {} paused, {} not begun",
            self.committed.len(),
            self.rolled_back.len(),
            self.halted.len(),
            self.paused.len(),
            self.not_begun.len()
        )?;
        if let (Some(median), Some(longest)) = (self.median_downtime, self.longest_downtime) {
            write!(f, "; downtime: median {median:.1?}, longest {longest:.1?}")?;
        }
        match &self.journal_failed {
            Some(why) => write!(f, "; stopped because the journal cannot be written: {why}")?,
            None if self.stopped => f.write_str("; stopped because too many failed")?,
            None => {}
        }
        for (id, why) in &self.rolled_back {
            write!(f, "\n  rolled back {id}: {why}")?;
        }
        for (id, why) in &self.halted {
            write!(f, "\n  HALTED {id}: {why}")?;
        }
        Ok(())
    }
}

enum Outcome {
    Rest(Box<Record>),
    Halted(Error),
    NotBegun,
}

impl<'a> Wave<'a> {
    /// A wave of this migrator.
    #[must_use]
    pub fn new(migrator: &'a Migrator, options: WaveOptions) -> Self {
        Self { migrator, options }
    }

    /// Moves the instances in this order. Those under way go first, whatever the order.
    ///
    /// # Errors
    /// When the journal cannot be read. What fails for one instance is in the summary.
    pub async fn run(&self, ids: &[InstanceId], control: &Control) -> Result<WaveSummary> {
        let known: BTreeMap<InstanceId, Record> = self
            .migrator
            .journal()
            .load_all()
            .await?
            .into_iter()
            .map(|record| (record.instance, record))
            .collect();
        let under_way = |id: &InstanceId| known.get(id).is_some_and(|record| !record.step.is_rest());
        let mut order: Vec<InstanceId> = Vec::new();
        let mut seen = BTreeSet::new();
        for id in ids
            .iter()
            .filter(|id| under_way(id))
            .chain(ids.iter().filter(|id| !under_way(id)))
        {
            if seen.insert(*id) {
                order.push(*id);
            }
        }
        let tally = std::sync::Mutex::new(Tally::default());
        let (tally, known, under_way) = (&tally, &known, &under_way);
        let outcomes: Vec<(InstanceId, Outcome)> = stream::iter(order)
            .map(|id| async move {
                let record = known.get(&id);
                let again = match self.again(id, record).await {
                    Ok(again) => again,
                    Err(error) => return (id, Outcome::Halted(error)),
                };
                let fresh = record.is_none() || again;
                let held = control.order() != Order::Go || self.is_stopped(tally);
                if fresh && held {
                    return (id, Outcome::NotBegun);
                }
                let outcome = self.one(id, again, control).await;
                // What was at rest before says nothing about this run.
                let counts = fresh || under_way(&id);
                if counts && let Ok(mut tally) = tally.lock() {
                    tally.count(&outcome);
                }
                (id, outcome)
            })
            .buffer_unordered(self.options.concurrency.max(1))
            .collect()
            .await;
        let mut summary = self.summary(ids, outcomes);
        summary.stopped = self.is_stopped(tally);
        summary.journal_failed = tally.lock().ok().and_then(|tally| tally.journal.clone());
        Ok(summary)
    }

    /// Whether to begin anew with an instance whose last migration is over.
    async fn again(&self, id: InstanceId, record: Option<&Record>) -> Result<bool> {
        let Some(record) = record.filter(|record| self.options.retry && record.step.is_over()) else {
            return Ok(false);
        };
        if record.step == Step::RolledBack {
            return Ok(true);
        }
        let inner = &self.migrator.inner;
        match super::forward::bounded(inner.config.call, inner.source.get(id)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn one(&self, id: InstanceId, again: bool, control: &Control) -> Outcome {
        let moved = async {
            if again {
                self.migrator.retry(id, self.options.force, control).await
            } else {
                self.migrator.migrate(id, self.options.force, control).await
            }
        };
        // A hook that panics for one tenant must not leave the others half-way.
        match AssertUnwindSafe(moved).catch_unwind().await {
            Ok(Ok(record)) => Outcome::Rest(Box::new(record)),
            Ok(Err(error)) => Outcome::Halted(error),
            Err(panic) => Outcome::Halted(
                Error::new(ErrorKind::Unexpected, format!("a panic: {}", what(&*panic)))
                    .with_instance(id)
                    .with_operation(OperationKind::Migrate)
                    .with_advice("the journal is at the step in hand: run it again when the hook is put right"),
            ),
        }
    }

    fn is_stopped(&self, tally: &std::sync::Mutex<Tally>) -> bool {
        let Ok(tally) = tally.lock() else {
            return true;
        };
        if tally.journal.is_some() {
            return true;
        }
        tally.ended >= self.options.least_sample.max(1)
            && f64::from(tally.failed) / f64::from(u32::try_from(tally.ended).unwrap_or(u32::MAX))
                > self.options.stop_at_failure_rate
    }

    fn summary(&self, ids: &[InstanceId], outcomes: Vec<(InstanceId, Outcome)>) -> WaveSummary {
        let mut summary = WaveSummary::default();
        let mut downtimes = Vec::new();
        let mut outcomes: BTreeMap<InstanceId, Outcome> = outcomes.into_iter().collect();
        for id in ids {
            match outcomes.remove(id) {
                None => {}
                Some(Outcome::NotBegun) => summary.not_begun.push(*id),
                Some(Outcome::Halted(error)) => {
                    summary.halted.insert(*id, error.to_string());
                }
                Some(Outcome::Rest(record)) if record.is_committed() => {
                    // Who was stopped before was not down.
                    if !record.outages.is_empty() {
                        downtimes.push(record.downtime(self.migrator.now()));
                    }
                    summary.committed.push(*id);
                }
                Some(Outcome::Rest(record)) if record.step == Step::RolledBack => {
                    summary.rolled_back.insert(*id, why(&record));
                }
                Some(Outcome::Rest(_)) => summary.paused.push(*id),
            }
        }
        downtimes.sort_unstable();
        summary.median_downtime = downtimes.get(downtimes.len() / 2).copied();
        summary.longest_downtime = downtimes.last().copied();
        summary
    }
}

fn why(record: &Record) -> String {
    match &record.failure {
        Some(failure) => format!("{} failed: {}", failure.step, failure.message),
        None if record.committed_at.is_some() => "taken back by the operator after the commit".to_owned(),
        None => "given up by the operator".to_owned(),
    }
}

/// What a panic says.
fn what(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("it says nothing")
}

#[derive(Debug, Default)]
struct Tally {
    ended: usize,
    failed: u32,
    /// What the journal said when it could not be written.
    journal: Option<String>,
}

impl Tally {
    fn count(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Rest(record) if record.is_committed() => self.ended += 1,
            // Paused.
            Outcome::Rest(record) if record.step != Step::RolledBack => {}
            // The operator wanted it back: that says nothing about the next ones.
            Outcome::Rest(record) if record.failure.is_none() => {}
            Outcome::Rest(_) => {
                self.ended += 1;
                self.failed += 1;
            }
            Outcome::Halted(error) => {
                self.ended += 1;
                self.failed += 1;
                if error.field() == Some(UNWRITABLE) && self.journal.is_none() {
                    self.journal = Some(error.message().to_owned());
                }
            }
            Outcome::NotBegun => {}
        }
    }
}

/// The plan of one instance of a fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InstancePlan {
    /// The instance.
    pub instance: InstanceId,
    /// The name of its objects.
    pub name: ObjectName,
    /// Every change, line by line; empty when it cannot be moved.
    pub plan: Vec<String>,
    /// What the preflight found that is not as it should be.
    pub findings: Vec<HealthCheck>,
}

impl InstancePlan {
    /// True when nothing stops it.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        self.findings.iter().all(|finding| finding.state != HealthState::Failed)
    }
}

/// Something that two instances cannot both have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Clash {
    /// `host`, `name` or `data`.
    pub what: String,
    /// The host, the name or the data's directory.
    pub value: String,
    /// Who has it.
    pub instances: Vec<InstanceId>,
}

/// The plan of a whole fleet, made without changing anything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FleetPlan {
    /// Instance by instance, in the order of the wave.
    pub instances: Vec<InstancePlan>,
    /// Those that could not be planned at all, with the reason.
    pub failed: BTreeMap<InstanceId, String>,
    /// Hosts, names and data directories that more than one instance has, on both sides together.
    pub clashes: Vec<Clash>,
    /// What is on either side and cannot be understood, with the reason: what clashes with it is not known.
    #[serde(default)]
    pub unreadable: Vec<String>,
}

impl FleetPlan {
    /// True when nothing stops any of them, and everything that may clash with them could be read.
    #[must_use]
    pub fn is_clear(&self) -> bool {
        let whole = self.failed.is_empty() && self.clashes.is_empty() && self.unreadable.is_empty();
        whole && self.instances.iter().all(InstancePlan::is_clear)
    }
}

impl fmt::Display for FleetPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for plan in &self.instances {
            let mark = if plan.is_clear() { "" } else { "  CANNOT MOVE" };
            writeln!(f, "{}{mark}", plan.name)?;
            for line in &plan.plan {
                writeln!(f, "  {line}")?;
            }
            for HealthCheck { name, state, detail } in &plan.findings {
                let mark = if *state == HealthState::Failed { "!!" } else { "! " };
                writeln!(f, "  {mark} {name}: {detail}")?;
            }
        }
        for (id, why) in &self.failed {
            writeln!(f, "{id}  CANNOT BE PLANNED: {why}")?;
        }
        for Clash { what, value, instances } in &self.clashes {
            let who: Vec<String> = instances.iter().map(ToString::to_string).collect();
            writeln!(f, "CLASH: {what} {value}: {}", who.join(", "))?;
        }
        for why in &self.unreadable {
            writeln!(f, "NOT READ: {why}")?;
        }
        let clear = self.instances.iter().filter(|plan| plan.is_clear()).count();
        write!(
            f,
            "{clear} of {} can move; {} clashes",
            self.instances.len() + self.failed.len(),
            self.clashes.len()
        )
    }
}

/// Who has what only one instance can have. An instance that is on both sides has it once.
#[derive(Default)]
struct Holders(BTreeMap<(&'static str, String), BTreeSet<InstanceId>>);

impl Holders {
    fn add(&mut self, id: InstanceId, instance: &Instance, data: Option<DataPath>) {
        let hosts = instance.endpoints.hosts.iter().map(|host| ("host", host.to_string()));
        let name = ("name", instance.name.to_string());
        let data = data.map(|data| ("data", data.to_string()));
        for what in hosts.chain([name]).chain(data) {
            self.0.entry(what).or_default().insert(id);
        }
    }

    fn clashes(self) -> Vec<Clash> {
        let shared = self.0.into_iter().filter(|(_, who)| who.len() > 1);
        shared
            .map(|((what, value), who)| Clash {
                what: what.to_owned(),
                value,
                instances: who.into_iter().collect(),
            })
            .collect()
    }
}

impl Migrator {
    /// The plan of many instances: inventory, preflight and plan of each, and hosts, names and data directories that
    /// clash, between any two instances of both sides. Changes nothing, and writes nothing to the journal.
    ///
    /// # Errors
    /// When a side cannot be listed for a reason that may pass. What fails for one instance is in the plan.
    pub async fn dry_run(&self, ids: &[InstanceId], force: Force, concurrency: usize) -> Result<FleetPlan> {
        let mut fleet = FleetPlan::default();
        let mut holders = Holders::default();
        let wanted: BTreeSet<InstanceId> = ids.iter().copied().collect();
        for side in [&self.inner.source, &self.inner.target] {
            let mut there = side.list(InstanceFilter::all());
            while let Some(instance) = there.next().await {
                let instance = match instance {
                    Ok(instance) => instance,
                    Err(error) if may_pass(&error) => return Err(error),
                    // An object that cannot be understood is no reason to say nothing about the others.
                    Err(error) => {
                        fleet.unreadable.push(error.to_string());
                        continue;
                    }
                };
                // Objects of the guide's client carry eight digits of the id only.
                let id = match instance.id.is_legacy() {
                    true => ids.iter().find(|id| id.matches(instance.id)).copied(),
                    false => wanted.get(&instance.id).copied(),
                };
                holders.add(
                    id.unwrap_or(instance.id),
                    &instance,
                    self.inner.locator.locate(&instance).ok(),
                );
            }
        }
        let platforms = preflight::platforms(&self.inner).await;
        let platforms = &platforms;
        let plans: Vec<_> = stream::iter(ids.to_vec())
            .map(|id| async move { (id, self.plan_one(id, force, platforms).await) })
            .buffered(concurrency.max(1))
            .collect()
            .await;
        for (id, plan) in plans {
            match plan {
                Ok(plan) => fleet.instances.push(plan),
                Err(error) => {
                    fleet.failed.insert(id, error.to_string());
                }
            }
        }
        fleet.clashes = holders.clashes();
        Ok(fleet)
    }

    async fn plan_one(&self, id: InstanceId, force: Force, platforms: &[HealthCheck]) -> Result<InstancePlan> {
        let instance = self.inner.source.get(id).await?;
        let inventory = inventory_of(&instance, id, &self.inner)?;
        let found = preflight::checks(&self.inner, &inventory, force).await;
        let findings: Vec<HealthCheck> = platforms
            .iter()
            .cloned()
            .chain(found.checks)
            .filter(|check| check.state != HealthState::Ok)
            .collect();
        let refused = findings.iter().any(|finding| finding.state == HealthState::Failed);
        let plan = match preflight::plan(&self.inner, &inventory, found.creation).await {
            Ok(plan) => plan,
            Err(_) if refused => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(InstancePlan {
            instance: id,
            name: instance.name,
            plan,
            findings,
        })
    }

    /// Finishes every committed migration whose rollback window is over.
    ///
    /// # Errors
    /// When the journal cannot be read. What fails for one instance is answered for it.
    pub async fn finish_due(&self) -> Result<Vec<(InstanceId, Result<Record>)>> {
        self.finish_due_with(Force::none()).await
    }

    /// The same, and accepts what stands in the way in this call.
    ///
    /// # Errors
    /// As [`finish_due`](Self::finish_due).
    pub async fn finish_due_with(&self, force: Force) -> Result<Vec<(InstanceId, Result<Record>)>> {
        let now: Timestamp = self.now();
        let mut results = Vec::new();
        for record in self.journal().load_all().await? {
            let due = record.step == Step::RemoveSource
                || (record.step == Step::Committed && self.window_ends(&record).is_some_and(|end| now >= end));
            if due {
                results.push((record.instance, self.finish_with(record.instance, false, force).await));
            }
        }
        Ok(results)
    }
}
