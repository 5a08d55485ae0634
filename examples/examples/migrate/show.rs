//! What the operator sees.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use saasodoo_core::migration::{Event, Migrator, Progress, Record, Signal, Step};
use saasodoo_core::{Instance, InstanceId};

pub(crate) fn inventory(fleet: &[Instance], records: &[Record]) {
    println!("{:<44} {:<12} {:<36} data", "name", "status", "host");
    for instance in fleet {
        let host = instance.endpoints.hosts.first().map_or("-", |host| host.as_str());
        let data = instance
            .storage
            .location
            .as_ref()
            .map_or_else(|| "-".to_owned(), ToString::to_string);
        println!("{:<44} {:<12} {host:<36} {data}", instance.name, instance.status);
        for part in &instance.unparsed {
            println!("    not parsed: {} ({}): {}", part.field, part.raw, part.reason);
        }
    }
    let open = records.iter().filter(|record| !record.step.is_over()).count();
    println!(
        "{} instances; the journal knows {}, {open} of them not over",
        fleet.len(),
        records.len()
    );
}

pub(crate) fn status(records: &[Record]) {
    let now = Timestamp::now();
    let mut counts: BTreeMap<Step, usize> = BTreeMap::new();
    for record in records {
        *counts.entry(record.step).or_default() += 1;
        println!("{}", line(record, now));
    }
    let counts: Vec<String> = counts.iter().map(|(step, count)| format!("{count} {step}")).collect();
    println!("{} migrations: {}", records.len(), counts.join(", "));
}

/// One migration in one line.
pub(crate) fn line(record: &Record, now: Timestamp) -> String {
    let name = record
        .inventory
        .as_ref()
        .map_or("-", |inventory| inventory.observed.name.as_str());
    let mut line = format!(
        "{} {name:<40} {:<13} down {:.1?}",
        record.instance,
        record.step.to_string(),
        record.downtime(now)
    );
    if let Some(failure) = &record.failure {
        line.push_str(&format!("\n    {}: {}", failure.step, failure.message));
    }
    line
}

/// The bars of a run. On something that is no terminal they are lines.
#[derive(Clone)]
pub(crate) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    each: Arc<Mutex<BTreeMap<InstanceId, ProgressBar>>>,
    names: Arc<BTreeMap<InstanceId, String>>,
}

/// Follows everything that the migrator does from now on.
pub(crate) fn follow(migrator: &Migrator, total: usize, names: &BTreeMap<InstanceId, String>) -> Bars {
    let all = MultiProgress::new();
    let bar = all.add(ProgressBar::new(u64::try_from(total).unwrap_or(u64::MAX)));
    bar.set_style(style("{bar:40} {pos}/{len} at rest, {elapsed}"));
    let bars = Bars {
        all,
        total: bar,
        each: Arc::default(),
        names: Arc::new(names.clone()),
    };
    let mut progress = migrator.progress();
    let shown = bars.clone();
    tokio::spawn(async move {
        while let Some(progress) = progress.next().await {
            shown.take(&progress);
        }
    });
    bars
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Bars {
    fn take(&self, progress: &Progress) {
        let name = self
            .names
            .get(&progress.instance)
            .cloned()
            .unwrap_or_else(|| progress.instance.to_string());
        match &progress.event {
            Event::StepBegan { step } => {
                let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
                let bar = each.entry(progress.instance).or_insert_with(|| {
                    let bar = self.all.add(ProgressBar::new_spinner());
                    bar.set_style(style("  {spinner} {prefix:44} {msg}"));
                    bar.set_prefix(name);
                    bar.enable_steady_tick(Duration::from_millis(120));
                    bar
                });
                bar.set_message(step.to_string());
            }
            Event::StepEnded {
                step,
                signal: Signal::Failed,
                note,
                ..
            } => self.line(&format!("{name}: {step} failed: {note}")),
            Event::Noted { note } => self.line(&format!("{name}: {note}")),
            _ => {}
        }
        if progress.step.is_rest() && matches!(progress.event, Event::StepEnded { .. }) {
            let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(bar) = each.remove(&progress.instance) {
                bar.finish_and_clear();
            }
            self.total.inc(1);
        }
    }

    /// A line above the bars.
    pub(crate) fn line(&self, text: &str) {
        if self.total.is_hidden() {
            eprintln!("{text}");
        } else {
            // Failing to draw is no reason to fail.
            let _ = self.all.println(text);
        }
    }

    pub(crate) fn end(&self) {
        let _ = self.all.clear();
    }
}
