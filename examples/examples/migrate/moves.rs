//! The commands that move tenants: there, back, and for good.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use anyhow::Result;
use saasodoo_core::migration::{Control, Force, Migrator, Record, Step, Wave, WaveOptions, WaveSummary};
use saasodoo_core::{Error, InstanceId};

use super::cli::Outcome;
use super::fleet::Chosen;
use super::orders;
use super::out::{Out, say};
use super::progress::{Crew, Follower};
use super::show;

pub(crate) async fn wave(
    out: &Out,
    migrator: &Migrator,
    chosen: Chosen,
    records: &[Record],
    options: WaveOptions,
) -> Result<Outcome> {
    let Chosen { ids, names, outcome } = chosen;
    let crew = Crew {
        ids: &ids,
        names,
        records,
    };
    let follower = Follower::start(migrator, crew, true);
    let (control, bars) = (Control::new(), follower.bars.clone());
    let steering = orders::steer(&control, move |text| bars.line(text))?;
    let summary = Wave::new(migrator, options).run(&ids, &control).await;
    steering.abort();
    follower.end().await;
    let summary = summary?;
    out.line(&summary);
    let after = migrator.journal().load_all().await?;
    for record in after.iter().filter(|record| summary.paused.contains(&record.instance)) {
        let name = show::name_of(record).unwrap_or_default();
        out.line(format!("  paused {name} at {}: {}", record.step, record.instance));
    }
    let earlier = rolled_back_before(&summary, records, &after);
    if earlier > 0 {
        out.line(format!(
            "{earlier} of these were rolled back in an earlier run: --retry begins again with them"
        ));
    }
    let failed = summary.rolled_back.len() > earlier || !summary.halted.is_empty() || summary.stopped;
    let paused = !summary.paused.is_empty() || !summary.not_begun.is_empty();
    let paused = if paused { Outcome::Paused } else { Outcome::Done };
    Ok(outcome.and(Outcome::failed_if(failed)).and(paused))
}

/// How many of those that are rolled back were so before this run, which did nothing about them.
fn rolled_back_before(summary: &WaveSummary, before: &[Record], after: &[Record]) -> usize {
    let run_of = |records: &[Record], id: &InstanceId, over: bool| {
        let record = records.iter().find(|record| record.instance == *id);
        let record = record.filter(|record| !over || record.step == Step::RolledBack);
        record.map(|record| record.run)
    };
    let same = |id: &&InstanceId| {
        let was = run_of(before, id, true);
        was.is_some() && was == run_of(after, id, false)
    };
    summary.rolled_back.keys().filter(same).count()
}

pub(crate) async fn rollback(
    out: &Out,
    migrator: &Migrator,
    ids: &[InstanceId],
    records: &[Record],
    force: Force,
) -> Result<Outcome> {
    one_by_one(out, migrator, ids, records, Step::RolledBack, async |id| {
        migrator.rollback_with(id, force).await
    })
    .await
}

/// Without ids those that are due.
pub(crate) async fn finish(
    out: &Out,
    migrator: &Migrator,
    ids: Vec<InstanceId>,
    records: &[Record],
    early: bool,
    force: Force,
) -> Result<Outcome> {
    let ids = if ids.is_empty() { due(migrator, records) } else { ids };
    if ids.is_empty() {
        out.line(next_due(migrator, records));
        return Ok(Outcome::Done);
    }
    one_by_one(out, migrator, &ids, records, Step::Finished, async |id| {
        migrator.finish_with(id, early, force).await
    })
    .await
}

fn due(migrator: &Migrator, records: &[Record]) -> Vec<InstanceId> {
    let now = migrator.now();
    let over = |record: &&Record| match record.step {
        Step::RemoveSource => true,
        Step::Committed => migrator.window_ends(record).is_some_and(|end| now >= end),
        _ => false,
    };
    records.iter().filter(over).map(|record| record.instance).collect()
}

fn next_due(migrator: &Migrator, records: &[Record]) -> String {
    let committed = records.iter().filter(|record| record.step == Step::Committed);
    let next = committed
        .filter_map(|record| Some((migrator.window_ends(record)?, record)))
        .min_by_key(|(end, _)| *end);
    match next {
        Some((end, record)) => format!(
            "nothing is due; the next one is {} {} at {}",
            show::name_of(record).unwrap_or_default(),
            record.instance,
            show::when(end, migrator.now())
        ),
        None => "nothing is due: no tenant is committed".to_owned(),
    }
}

/// One tenant after the other, each to its end, where one that is at `end` already is left as it is. An order to stop
/// holds between two of them.
async fn one_by_one(
    out: &Out,
    migrator: &Migrator,
    ids: &[InstanceId],
    records: &[Record],
    end: Step,
    work: impl AsyncFn(InstanceId) -> Result<Record, Error>,
) -> Result<Outcome> {
    let crew = Crew {
        ids,
        names: BTreeMap::new(),
        records,
    };
    let follower = Follower::start(migrator, crew, false);
    let bars = follower.bars.clone();
    let stop = orders::stop_after_this(move |text| bars.line(text))?;
    let (mut done, mut already, mut failed, mut left) = (0, 0, 0, Vec::new());
    let already_there = if end == Step::Finished {
        "already finished"
    } else {
        "already rolled back"
    };
    for id in ids {
        if stop.load(Ordering::SeqCst) {
            left.push(id.to_string());
            continue;
        }
        let record = records.iter().find(|record| record.instance == *id);
        let name = record.and_then(show::name_of).unwrap_or_default();
        if record.is_some_and(|record| record.step == end) {
            already += 1;
            follower.bars.answer(out, &format!("{id} {name} {already_there}"));
            continue;
        }
        match work(*id).await {
            Ok(record) => {
                done += 1;
                follower.bars.answer(out, &show::line(&record, migrator.now()));
            }
            Err(error) => {
                failed += 1;
                follower.bars.line(&format!("FAILED {id} {name}: {error}"));
            }
        }
    }
    follower.end().await;
    let already = match already {
        0 => String::new(),
        count => format!("{count} {already_there}, "),
    };
    out.line(format!("{done} done, {already}{failed} failed, {} left", left.len()));
    if left.is_empty() {
        return Ok(Outcome::failed_if(failed > 0));
    }
    say(format!("stopped; left as they were: {}", left.join(" ")));
    Ok(Outcome::Paused.and(Outcome::failed_if(failed > 0)))
}
