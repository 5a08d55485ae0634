//! What the operator reads: the tables, and how times are written.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::migration::{Record, Step};
use saasodoo_core::{Instance, InstanceId};

use super::out::Out;

/// The journal's record of an instance. Objects of the guide's client carry eight digits of the id only.
pub(crate) fn record_of(records: &[Record], id: InstanceId) -> Option<&Record> {
    records.iter().find(|record| record.instance.matches(id))
}

pub(crate) fn name_of(record: &Record) -> Option<String> {
    record.inventory.as_ref().map(|known| known.observed.name.to_string())
}

pub(crate) fn inventory(out: &Out, fleet: &[Instance], records: &[Record]) {
    let mut rows = vec![Row::of(["id", "name", "status", "journal", "host", "data"])];
    for instance in fleet {
        let record = record_of(records, instance.id);
        let host = instance.endpoints.hosts.first();
        let data = instance.storage.location.as_ref();
        let mut row = Row::of([
            instance.id.to_string(),
            instance.name.to_string(),
            instance.status.to_string(),
            record.map_or_else(|| "-".to_owned(), |record| record.step.to_string()),
            host.map_or_else(|| "-".to_owned(), ToString::to_string),
            data.map_or_else(|| "-".to_owned(), ToString::to_string),
        ]);
        for part in &instance.unparsed {
            row.below(format!("not parsed: {} ({}): {}", part.field, part.raw, part.reason));
        }
        rows.push(row);
    }
    print(out, &rows);
    out.line(format!(
        "{} instances on the source; by the journal {}",
        fleet.len(),
        counted(records)
    ));
}

/// How many are where, in few words.
pub(crate) fn counted(records: &[Record]) -> String {
    let of = |wanted: fn(Step) -> bool| records.iter().filter(|record| wanted(record.step)).count();
    format!(
        "{} committed, {} under way, {} finished, {} rolled back",
        of(|step| step == Step::Committed),
        of(|step| !step.is_rest()),
        of(|step| step == Step::Finished),
        of(|step| step == Step::RolledBack),
    )
}

/// `window` is for a journal that does not keep until when a tenant can be taken back.
pub(crate) fn status(out: &Out, records: &[Record], window: Duration) {
    let now = Timestamp::now();
    let mut rows = vec![Row::of(["id", "name", "step", "downtime", "can be taken back"])];
    let mut counts: BTreeMap<Step, usize> = BTreeMap::new();
    for record in records {
        *counts.entry(record.step).or_default() += 1;
        let mut row = Row::of([
            record.instance.to_string(),
            name_of(record).unwrap_or_else(|| "-".to_owned()),
            record.step.to_string(),
            downtime(record, now),
            way_back(record, now, window),
        ]);
        if let Some(halted) = &record.halted {
            row.below(format!("HALTED at {}: {}", halted.step, halted.message));
        }
        if let Some(why) = why_back(record) {
            row.below(why);
        }
        rows.push(row);
    }
    if records.is_empty() {
        return out.line("no migrations");
    }
    print(out, &rows);
    let counts: Vec<String> = counts.iter().map(|(step, count)| format!("{count} {step}")).collect();
    let number = |of: fn(&Record) -> bool| records.iter().filter(|record| of(record)).count();
    out.line(format!(
        "{} migrations: {}; {} down now, {} halted",
        records.len(),
        counts.join(", "),
        number(Record::is_down),
        number(|record| record.halted.is_some())
    ));
}

/// One migration in one line, and why it went back below.
pub(crate) fn line(record: &Record, now: Timestamp) -> String {
    let name = name_of(record).unwrap_or_default();
    let mut line = format!(
        "{} {name} {} down {}",
        record.instance,
        record.step,
        downtime(record, now)
    );
    if let Some(why) = why_back(record) {
        line.push_str(&format!("\n    {why}"));
    }
    line
}

/// Why a tenant is on its way back, or back.
pub(crate) fn why_back(record: &Record) -> Option<String> {
    if !record.step.is_back() {
        return None;
    }
    Some(match &record.failure {
        Some(failure) => format!("{} failed: {}", failure.step, failure.message),
        None if record.committed_at.is_some() => "taken back by the operator after the commit".to_owned(),
        None => "given up by the operator".to_owned(),
    })
}

/// Of all outages, and whether one lasts; `-` for a tenant that was never down.
pub(crate) fn downtime(record: &Record, now: Timestamp) -> String {
    let so_far = span(record.downtime(now));
    match (record.is_down(), record.outages.is_empty()) {
        (true, _) => format!("DOWN {so_far}"),
        (false, true) => "-".to_owned(),
        (false, false) => so_far,
    }
}

fn way_back(record: &Record, now: Timestamp, window: Duration) -> String {
    match record.step {
        Step::Committed => match window_end(record, window) {
            Some(end) if end > now => format!("until {}", when(end, now)),
            _ => "no more: finish is due".to_owned(),
        },
        Step::RemoveSource if !record.source_deleted => "yes".to_owned(),
        Step::RemoveSource | Step::Finished => "no more".to_owned(),
        step if step.is_over() => "-".to_owned(),
        step if step.is_back() => "under way".to_owned(),
        _ => "yes".to_owned(),
    }
}

fn window_end(record: &Record, window: Duration) -> Option<Timestamp> {
    record
        .window_until
        .or_else(|| record.committed_at?.checked_add(window).ok())
}

/// `2026-11-28 16:00 UTC, in 2 d 23 h`
pub(crate) fn when(at: Timestamp, now: Timestamp) -> String {
    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    format!("{}, in {}", at.strftime("%Y-%m-%d %H:%M UTC"), span(left))
}

pub(crate) fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// One row of a table, and what there is to say below it.
struct Row {
    cells: Vec<String>,
    below: Vec<String>,
}

impl Row {
    fn of(cells: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            cells: cells.into_iter().map(Into::into).collect(),
            below: Vec::new(),
        }
    }

    fn below(&mut self, text: String) {
        self.below.push(text);
    }
}

/// Every column is as wide as its widest cell; nothing is cut off.
fn print(out: &Out, rows: &[Row]) {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (at, cell) in row.cells.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(at) {
                Some(widest) => *widest = width.max(*widest),
                None => widths.push(width),
            }
        }
    }
    for row in rows {
        let cells = row.cells.iter().zip(&widths);
        let line: String = cells.map(|(cell, width)| format!("{cell:<width$}  ")).collect();
        out.line(line.trim_end());
        for text in &row.below {
            out.line(format!("    {text}"));
        }
    }
}
