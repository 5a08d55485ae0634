//! What happens while it happens: bars on a terminal, lines everywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use saasodoo_core::InstanceId;
use saasodoo_core::migration::{Event, Failure, Migrator, Progress, Record, Signal, Step};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::out::{Out, say};
use super::show;

/// Whom a call is about.
pub(crate) struct Crew<'a> {
    pub(crate) ids: &'a [InstanceId],
    pub(crate) names: BTreeMap<InstanceId, String>,
    /// What the journal says before.
    pub(crate) records: &'a [Record],
}

/// The bars of a call. On something that is no terminal they are lines.
#[derive(Clone)]
pub(crate) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    state: Arc<Mutex<State>>,
    /// Says it when a tenant comes to rest; not where the command itself answers for each.
    tells_rest: bool,
}

#[derive(Default)]
struct State {
    each: BTreeMap<InstanceId, ProgressBar>,
    names: BTreeMap<InstanceId, String>,
    rested: BTreeSet<InstanceId>,
    of: usize,
}

/// Follows a migrator until it is ended.
pub(crate) struct Follower {
    pub(crate) bars: Bars,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Follower {
    /// Follows everything that the migrator does from now on. Tenants that are at rest already count as such, except for
    /// a command that moves them from there.
    pub(crate) fn start(migrator: &Migrator, crew: Crew<'_>, tells_rest: bool) -> Self {
        let ids: BTreeSet<InstanceId> = crew.ids.iter().copied().collect();
        let mut names = crew.names;
        let mut rested = BTreeSet::new();
        for record in crew.records.iter().filter(|record| ids.contains(&record.instance)) {
            if let Some(name) = show::name_of(record) {
                names.insert(record.instance, name);
            }
            if tells_rest && record.step.is_rest() {
                rested.insert(record.instance);
            }
        }
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(u64::try_from(ids.len()).unwrap_or(u64::MAX)));
        total.set_style(style("{bar:40} {pos}/{len} at rest, {elapsed}"));
        total.set_position(u64::try_from(rested.len()).unwrap_or(u64::MAX));
        let bars = Bars {
            all,
            total,
            state: Arc::new(Mutex::new(State {
                each: BTreeMap::new(),
                names,
                rested,
                of: ids.len(),
            })),
            tells_rest,
        };
        let (stop, mut stopped) = oneshot::channel();
        let (mut progress, shown, migrator) = (migrator.progress(), bars.clone(), migrator.clone());
        let task = tokio::spawn(async move {
            loop {
                // What has happened is shown before the end.
                let progress = tokio::select! {
                    biased;
                    Some(progress) = progress.next() => progress,
                    _ = &mut stopped => return,
                };
                shown.take(&progress, &migrator).await;
            }
        });
        Self { bars, stop, task }
    }

    /// After the last event was shown.
    pub(crate) async fn end(self) {
        let _ = self.stop.send(());
        let _ = self.task.await;
        let _ = self.bars.all.clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    async fn take(&self, progress: &Progress, migrator: &Migrator) {
        let id = progress.instance;
        match &progress.event {
            Event::Began { .. } => {
                self.state().rested.remove(&id);
            }
            Event::Inventoried(inventory) => {
                let name = inventory.observed.name.to_string();
                self.state().names.insert(id, name);
            }
            Event::StepBegan { step } => self.step(id, *step),
            Event::StepEnded {
                step,
                signal: Signal::Failed,
                note,
                ..
                // One that is back with it is told below, with the reason.
            } if !progress.step.is_rest() => self.line(&format!("{}: {step} failed: {note}", self.name(id))),
            Event::Halted(Failure { step, message, .. }) if self.tells_rest => {
                self.line(&format!("HALTED {} {id} at {step}: {message}", self.name(id)));
            }
            Event::Noted { note } => self.line(&format!("{}: {note}", self.name(id))),
            _ => {}
        }
        if progress.step.is_rest() && matches!(progress.event, Event::StepEnded { .. }) {
            let bar = {
                let mut state = self.state();
                state.rested.insert(id);
                self.total
                    .set_position(u64::try_from(state.rested.len()).unwrap_or(u64::MAX));
                state.each.remove(&id)
            };
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
            if self.tells_rest {
                let record = migrator.status(id).await.ok().flatten();
                self.rest(progress, record.as_ref());
            }
        }
    }

    fn step(&self, id: InstanceId, step: Step) {
        let name = self.name(id);
        let mut state = self.state();
        let bar = state.each.entry(id).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new_spinner());
            bar.set_style(style("  {spinner} {prefix:44} {msg}"));
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_prefix(name);
        bar.set_message(step.to_string());
    }

    /// One line about a tenant that has come to rest.
    fn rest(&self, progress: &Progress, record: Option<&Record>) {
        let (count, of) = {
            let state = self.state();
            (state.rested.len(), state.of)
        };
        let mut line = format!("{count}/{of} {} {}", progress.step, self.name(progress.instance));
        if let Some(record) = record {
            if !record.outages.is_empty() {
                line.push_str(&format!(" down {}", show::downtime(record, progress.at)));
            }
            if let Some(why) = show::why_back(record) {
                line.push_str(&format!(": {why}"));
            }
        }
        self.line(&line);
    }

    fn name(&self, id: InstanceId) -> String {
        self.state().names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A line above the bars.
    pub(crate) fn line(&self, text: &str) {
        self.all.suspend(|| say(text));
    }

    /// A line of the command's answer.
    pub(crate) fn answer(&self, out: &Out, text: &str) {
        self.all.suspend(|| out.line(text));
    }
}
