//! Which tenants a call is about.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use saasodoo_core::migration::{Record, Step};
use saasodoo_core::{ErrorKind, Instance, InstanceFilter, InstanceId};

use super::cli::Outcome;
use super::ids::{self, Known};
use super::out::{Out, say};
use super::platforms::Platforms;
use super::show;

/// Every tenant of the source that can be read, by name. What cannot be read is said, counts as failed, and keeps nobody
/// else from going on.
pub(crate) async fn listed(platforms: &Platforms) -> (Vec<Instance>, Outcome) {
    let mut outcome = Outcome::Done;
    let mut listed = platforms.source.list(InstanceFilter::all());
    let mut fleet: Vec<Instance> = Vec::new();
    while let Some(instance) = listed.next().await {
        match instance {
            Ok(instance) => fleet.push(instance),
            Err(error) => {
                outcome = Outcome::Failed;
                say(format!("not listed on the source: {error}"));
            }
        }
    }
    fleet.sort_by(|a, b| natural(a.name.as_str()).cmp(&natural(b.name.as_str())));
    (fleet, outcome)
}

/// `tenant-9` comes before `tenant-10`.
fn natural(name: &str) -> (usize, &str) {
    (name.len(), name)
}

/// Whom to move.
pub(crate) struct Chosen {
    pub(crate) ids: Vec<InstanceId>,
    pub(crate) names: BTreeMap<InstanceId, String>,
    /// Failed when these are not all, because some could not be read.
    pub(crate) outcome: Outcome,
}

/// The ids that were given, else everybody on the source and everybody under way. An id that neither the journal nor the
/// source knows is refused before anything is begun: a migration of it would stay in the journal for good.
pub(crate) async fn to_move(platforms: &Platforms, records: &[Record], ids: Vec<InstanceId>) -> Result<Chosen> {
    let mut names = BTreeMap::new();
    if ids.is_empty() {
        let (fleet, mut outcome) = listed(platforms).await;
        let (mut seen, mut ids) = (BTreeSet::new(), Vec::new());
        for instance in fleet {
            let Some(id) = whole(&instance, records, &mut outcome) else {
                continue;
            };
            names.insert(id, instance.name.to_string());
            if seen.insert(id) {
                ids.push(id);
            }
        }
        let known = records.iter().map(|record| record.instance);
        ids.extend(known.filter(|id| seen.insert(*id)));
        return Ok(Chosen { ids, names, outcome });
    }
    let mut given = Vec::new();
    for id in ids {
        let known = anywhere(platforms, records, id).await?;
        let named = known.iter().filter(|known| !known.name.is_empty());
        names.extend(named.map(|known| (known.id, known.name.clone())));
        given.push((id, known));
    }
    Ok(Chosen {
        ids: refused_unless_known(ids::all(given, NOBODY), "nothing was begun", "inventory")?,
        names,
        outcome: Outcome::Done,
    })
}

const NOBODY: &str = "neither the source nor the journal has";

fn refused_unless_known(ids: Result<Vec<InstanceId>, String>, nothing: &str, lists: &str) -> Result<Vec<InstanceId>> {
    ids.map_err(|why| anyhow!("{why}; {nothing}: `{lists}` lists what there is"))
}

/// The whole id of an instance on the source. One of which only eight digits are known is left out, which is said and
/// counts as failed.
fn whole(instance: &Instance, records: &[Record], outcome: &mut Outcome) -> Option<InstanceId> {
    let mut known = journaled(records, instance.id);
    known.push(seen(instance));
    match ids::whole(instance.id, &known) {
        Ok(id) => id,
        Err(why) => {
            say(format!("left out: {why}"));
            *outcome = Outcome::Failed;
            None
        }
    }
}

fn seen(instance: &Instance) -> Known {
    Known {
        id: instance.id,
        name: instance.name.to_string(),
    }
}

/// What the journal has that fits.
fn journaled(records: &[Record], id: InstanceId) -> Vec<Known> {
    let fits = records.iter().filter(|record| record.instance.matches(id));
    fits.map(|record| Known {
        id: record.instance,
        name: show::name_of(record).unwrap_or_default(),
    })
    .collect()
}

/// What the journal and the source have that fits.
async fn anywhere(platforms: &Platforms, records: &[Record], id: InstanceId) -> Result<Vec<Known>> {
    let mut known = journaled(records, id);
    if !id.is_legacy() && !known.is_empty() {
        return Ok(known);
    }
    match platforms.source.get(id).await {
        Ok(instance) => known.push(seen(&instance)),
        Err(error) if error.is_not_found() => {}
        // Several have these digits.
        Err(error) if id.is_legacy() && error.kind() == ErrorKind::Conflict => {
            let (fleet, _) = listed(platforms).await;
            let fits = fleet.iter().filter(|instance| instance.id.matches(id));
            known.extend(fits.map(seen));
            if known.len() < 2 {
                return Err(error).with_context(|| format!("looking for {id} on the source"));
            }
        }
        Err(error) => return Err(error).with_context(|| format!("looking for {id} on the source")),
    }
    Ok(known)
}

/// The whole ids of those that were given, when the journal knows all of them.
pub(crate) fn known(records: &[Record], given: &[InstanceId]) -> Result<Vec<InstanceId>> {
    let given = given.iter().map(|id| (*id, journaled(records, *id)));
    refused_unless_known(
        ids::all(given, "the journal does not have"),
        "nothing was changed",
        "status",
    )
}

/// The ids that were given, but for those that have moved, else everybody on the source whom the journal does not have
/// under way or moved; those are named, for on the target they stand in their own way.
pub(crate) async fn to_plan(
    out: &Out,
    platforms: &Platforms,
    records: &[Record],
    given: Vec<InstanceId>,
) -> Result<(Vec<InstanceId>, Outcome)> {
    if !given.is_empty() {
        let mut known = Vec::new();
        for id in given {
            known.push((id, anywhere(platforms, records, id).await?));
        }
        let mut ids = refused_unless_known(ids::all(known, NOBODY), "nothing was planned", "inventory")?;
        let mut moved = BTreeSet::new();
        for record in ids.iter().filter_map(|id| show::record_of(records, *id)) {
            let (name, id, step) = (show::name_of(record).unwrap_or_default(), record.instance, record.step);
            if has_moved(platforms, record).await {
                moved.insert(id);
                out.line(format!("{name}  HAS MOVED, in the journal at {step}: {id}"));
            } else if step != Step::RolledBack {
                out.line(format!("{name}  in the journal at {step}: {id}"));
            }
        }
        ids.retain(|id| !moved.contains(id));
        return Ok((ids, Outcome::Done));
    }
    let (fleet, mut outcome) = listed(platforms).await;
    let (mut ids, mut moved) = (Vec::new(), 0);
    for instance in fleet {
        let Some(id) = whole(&instance, records, &mut outcome) else {
            continue;
        };
        match show::record_of(records, id).map(|record| record.step) {
            None | Some(Step::RolledBack) => ids.push(id),
            Some(Step::Committed | Step::RemoveSource | Step::Finished) => moved += 1,
            Some(step) => out.line(format!("{}  UNDER WAY at {step}: {id}", instance.name)),
        }
    }
    if moved > 0 {
        out.line(format!("{moved} left out, which the journal has as moved"));
    }
    Ok((ids, outcome))
}

/// Whether it lives on the target. One that is finished may have come back to the source since, by another journal:
/// then it can move again.
async fn has_moved(platforms: &Platforms, record: &Record) -> bool {
    match record.step {
        Step::Committed | Step::RemoveSource => true,
        Step::Finished => {
            let there = platforms.source.get(record.instance).await;
            there.is_err_and(|error| error.is_not_found())
        }
        _ => false,
    }
}
