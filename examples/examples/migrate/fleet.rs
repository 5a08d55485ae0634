//! Which tenants a call is about.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use saasodoo_core::migration::{Record, Step};
use saasodoo_core::{Instance, InstanceFilter, InstanceId};

use super::cli::Outcome;
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
        let (fleet, outcome) = listed(platforms).await;
        let mut seen = BTreeSet::new();
        names.extend(fleet.iter().map(|there| (there.id, there.name.to_string())));
        let there = fleet.into_iter().map(|instance| instance.id);
        let known = records.iter().map(|record| record.instance);
        let ids = there.chain(known).filter(|id| seen.insert(*id)).collect();
        return Ok(Chosen { ids, names, outcome });
    }
    let mut unknown = Vec::new();
    for id in &ids {
        if records.iter().any(|record| record.instance == *id) {
            continue;
        }
        match platforms.source.get(*id).await {
            Ok(instance) => drop(names.insert(*id, instance.name.to_string())),
            Err(error) if error.is_not_found() => unknown.push(id.to_string()),
            Err(error) => return Err(error).with_context(|| format!("looking for {id} on the source")),
        }
    }
    if !unknown.is_empty() {
        bail!(
            "neither the source nor the journal has {}; nothing was begun",
            unknown.join(", ")
        );
    }
    Ok(Chosen {
        ids,
        names,
        outcome: Outcome::Done,
    })
}

/// The ids that were given, when the journal knows all of them.
pub(crate) fn known(records: &[Record], ids: &[InstanceId]) -> Result<()> {
    let unknown = |id: &&InstanceId| !records.iter().any(|record| record.instance == **id);
    let unknown: Vec<String> = ids.iter().filter(unknown).map(ToString::to_string).collect();
    if !unknown.is_empty() {
        bail!("the journal does not have {}; nothing was changed", unknown.join(", "));
    }
    Ok(())
}

/// The ids that were given, else everybody on the source whom the journal does not have under way or moved; those are
/// named, for on the target they stand in their own way.
pub(crate) async fn to_plan(
    out: &Out,
    platforms: &Platforms,
    records: &[Record],
    ids: Vec<InstanceId>,
) -> (Vec<InstanceId>, Outcome) {
    if !ids.is_empty() {
        let records = ids.iter().filter_map(|id| show::record_of(records, *id));
        for record in records.filter(|record| record.step != Step::RolledBack) {
            let name = show::name_of(record).unwrap_or_default();
            out.line(format!(
                "{name}  in the journal at {}: {}",
                record.step, record.instance
            ));
        }
        return (ids, Outcome::Done);
    }
    let (fleet, outcome) = listed(platforms).await;
    let (mut ids, mut moved) = (Vec::new(), 0);
    for instance in fleet {
        match show::record_of(records, instance.id).map(|record| record.step) {
            None | Some(Step::RolledBack) => ids.push(instance.id),
            Some(Step::Committed | Step::RemoveSource | Step::Finished) => moved += 1,
            Some(step) => out.line(format!("{}  UNDER WAY at {step}: {}", instance.name, instance.id)),
        }
    }
    if moved > 0 {
        out.line(format!(
            "{moved} left out, which the journal has as moved; with their ids they are planned too"
        ));
    }
    (ids, outcome)
}
