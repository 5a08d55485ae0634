//! The journal as labels on the instances' own objects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use futures::TryStreamExt;
use jiff::Timestamp;
use uuid::Uuid;

use super::hooks::DataLocator;
use super::{Doubt, Entry, Event, Failure, Force, Inventory, Journal, Mutation, Record, Side, Step, Tenancy};
use crate::{
    BackendKind, DynOrchestrator, Error, ErrorKind, Instance, InstanceChange, InstanceFilter, InstanceId, LabelKey,
    LabelValue, OperationKind, Result, UpdateOptions,
};

const PREFIX: &str = "migration.saasodoo.io/";
const RUN: &str = "migration.saasodoo.io/run";
const STATE: &str = "migration.saasodoo.io/state";
const TIMES: &str = "migration.saasodoo.io/times";
const DOUBTS: &str = "migration.saasodoo.io/doubts";
const DATA: &str = "migration.saasodoo.io/data";
/// The whole id: the guide's own objects carry eight digits of it.
const ID: &str = "migration.saasodoo.io/instance";
/// The digest of what was inventoried.
const FIRST: &str = "migration.saasodoo.io/inventory";
/// The digest of the target's spec at the commit.
const COMMITTED: &str = "migration.saasodoo.io/committed";
/// Which process has written last.
const WRITER: &str = "migration.saasodoo.io/writer";
const KEYS: [&str; 9] = [RUN, STATE, TIMES, DOUBTS, DATA, ID, FIRST, COMMITTED, WRITER];

/// How often a write is repeated that met another change of the object.
const ATTEMPTS: u32 = 5;

/// True for the labels of this journal, which are no part of an instance's own spec.
pub(super) fn is_ours(key: &LabelKey) -> bool {
    key.as_str().starts_with(PREFIX)
}

/// A journal in labels of the source's objects, and of the target's from the removal of the source on: any process that
/// reaches the platforms can go on, without a file.
///
/// It keeps what is needed to go on, and not the story: no plan, no steps, no downtime, no reasons. Of what was read it keeps
/// a digest: a change since then is noticed, and not which one, so that a rollback after a change on the target names every
/// field in which both sides differ. The labels go away when the migration is over, and the record with them. While they
/// are there, a `create` of the instance with its own spec is a conflict that names them.
///
/// Each opened journal writes under a number of its own: of two processes on one instance, the one that is behind is
/// refused before it changes anything. So is one whose labels are gone: another process may have ended the migration. That
/// is also what happens when somebody deletes the source's objects, or takes the labels away, while it moves: the journal
/// is lost then, and people have to look at both sides.
#[derive(Debug)]
pub struct ObjectJournal {
    source: DynOrchestrator,
    target: DynOrchestrator,
    locator: Arc<dyn DataLocator>,
    /// Tells this journal from another process' one on the same objects.
    writer: Uuid,
    /// What was written last, so that an entry that changes nothing needed costs no request.
    written: Mutex<BTreeMap<InstanceId, BTreeMap<&'static str, String>>>,
}

impl ObjectJournal {
    /// A journal on the objects of these sides, which must be those of the migrator.
    #[must_use]
    pub fn new(source: DynOrchestrator, target: DynOrchestrator, locator: Arc<dyn DataLocator>) -> Self {
        Self {
            source,
            target,
            locator,
            writer: Uuid::new_v4(),
            written: Mutex::default(),
        }
    }

    fn inventory(&self, instance: &Instance, kept: &Kept) -> Result<Inventory> {
        let data = match &kept.data {
            Some(data) => data.parse()?,
            None => self.locator.locate(instance)?,
        };
        let mut spec = instance.spec.clone();
        spec.id = kept.record.instance;
        spec.labels.retain(|key, _| !is_ours(key));
        let mut inventory = Inventory::new(instance.clone(), spec, data, kept.tenancy);
        inventory.first.clone_from(&kept.first);
        Ok(inventory)
    }

    /// The later of what both sides hold.
    fn record(&self, id: InstanceId, source: Option<&Instance>, target: Option<&Instance>) -> Result<Option<Record>> {
        let mut best: Option<Kept> = None;
        for instance in [source, target].into_iter().flatten() {
            if let Some(kept) = Kept::read(instance)?
                && best
                    .as_ref()
                    .is_none_or(|best| kept.record.next_seq > best.record.next_seq)
            {
                best = Some(kept);
            }
        }
        let Some(mut kept) = best else {
            return Ok(None);
        };
        kept.record.instance = if id.is_legacy() { kept.id.unwrap_or(id) } else { id };
        if kept.record.step > Step::Inventory
            && let Some(instance) = source.or(target)
        {
            kept.record.inventory = Some(self.inventory(instance, &kept)?);
        }
        Ok(Some(kept.record))
    }

    async fn find(&self, orchestrator: &DynOrchestrator, id: InstanceId) -> Result<Option<Instance>> {
        match orchestrator.get(id).await {
            Ok(instance) => Ok(Some(instance)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an entry on one side's objects; false when they are not there.
    async fn write(&self, writing: &Writing<'_>, place: Place) -> Result<bool> {
        let id = writing.entry.instance;
        let orchestrator = match place {
            Place::Source => &self.source,
            Place::InsteadOfSource | Place::BesideSource => &self.target,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let Some(instance) = self.find(orchestrator, id).await? else {
                return Ok(false);
            };
            let change = change(&instance, writing.labels)?;
            // An entry of ours whose answer was lost is there as it is.
            if change.is_empty() {
                return Ok(true);
            }
            match Kept::read(&instance)? {
                Some(kept) => self.must_follow(writing, &kept, place)?,
                None => self.may_be_first(writing, place).await?,
            }
            let options = UpdateOptions::new().if_revision(instance.provenance.revision.clone());
            match orchestrator.update(id, &change, options).await {
                Ok(_) => return Ok(true),
                Err(error) if error.is_not_found() => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Conflict && attempts < ATTEMPTS => {}
                Err(error) if error.retry() != crate::Retry::Never && attempts < ATTEMPTS => {
                    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn write_all(&self, writing: &Writing<'_>, over: bool, deletes_source: bool) -> Result<()> {
        let on_source = self.write(writing, Place::Source).await?;
        let on_target = match on_source {
            // Who comes when the source is gone finds there what has become of it. When all is over nothing stays.
            true if over || deletes_source => self.write(writing, Place::BesideSource).await?,
            true => false,
            false => self.write(writing, Place::InsteadOfSource).await?,
        };
        if on_source || on_target || over {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NotFound,
            "neither side has the instance, so there is nothing to write the journal on",
        )
        .with_instance(writing.entry.instance)
        .with_operation(OperationKind::Migrate)
        .with_advice("look at both platforms by hand; the data was not touched"))
    }

    /// Refuses an entry that does not follow what the labels hold.
    fn must_follow(&self, writing: &Writing<'_>, kept: &Kept, place: Place) -> Result<()> {
        let (entry, at) = (writing.entry, kept.record.next_seq);
        let ours = kept.writer == Some(self.writer);
        // To go on from what another one has written is to take over, which it notices; who has been taken over from does
        // not take over again.
        let follows = if kept.record.run == entry.run {
            at <= entry.seq
                && match place {
                    Place::Source => ours || !writing.has_written,
                    // The source's labels are gone, and may have been newer: only who has read these goes on from them.
                    Place::InsteadOfSource => ours || (!writing.has_written && at == entry.seq),
                    Place::BesideSource => true,
                }
        } else {
            kept.record.step.is_over()
        };
        if follows {
            return Ok(());
        }
        Err(refused(
            entry,
            format!("the labels are at entry {at} of migration {}", kept.record.run),
        ))
    }

    /// Refuses to go on without labels: the migration may be over, by another process, which takes them away.
    async fn may_be_first(&self, writing: &Writing<'_>, place: Place) -> Result<()> {
        let known = match place {
            _ if matches!(writing.entry.event, Event::Began { .. }) => true,
            Place::BesideSource => true,
            Place::InsteadOfSource => writing.knows_it_is_gone,
            // A source that was made again has none, and the target has them.
            Place::Source => match self.find(&self.target, writing.entry.instance).await? {
                Some(target) => match Kept::read(&target)? {
                    Some(kept) => return self.must_follow(writing, &kept, place),
                    None => false,
                },
                None => false,
            },
        };
        if known {
            return Ok(());
        }
        let what = match place {
            Place::Source => "the labels of this migration are gone",
            Place::InsteadOfSource | Place::BesideSource => {
                "the source is gone, with the labels of this migration on it"
            }
        };
        Err(refused(writing.entry, what))
    }
}

/// An entry on its way to the labels.
struct Writing<'a> {
    entry: &'a Entry,
    labels: &'a BTreeMap<&'static str, String>,
    /// This process has written to this migration before.
    has_written: bool,
    /// This migration has deleted the source, or may have, as was known before this entry.
    knows_it_is_gone: bool,
}

/// Which labels are written.
#[derive(Clone, Copy)]
enum Place {
    /// Those that count, as long as the source is there.
    Source,
    /// The target's, when there is no source: then they count.
    InsteadOfSource,
    /// The target's, after the source's: they count when the source is gone.
    BesideSource,
}

fn refused(entry: &Entry, why: impl Into<String>) -> Error {
    Error::conflict(["journal"], why)
        .with_instance(entry.instance)
        .with_operation(OperationKind::Migrate)
        .with_advice(
            "another process works on this instance, or has ended its migration: end that process or let it finish, then \
             look at the status",
        )
}

/// The change of labels that makes the object hold exactly these of ours.
fn change(instance: &Instance, labels: &BTreeMap<&'static str, String>) -> Result<InstanceChange> {
    let mut change = InstanceChange::new();
    for key in KEYS {
        let name: LabelKey = key.parse()?;
        let present = instance.spec.labels.get(&name);
        match labels.get(key) {
            Some(value) => {
                let value: LabelValue = value.parse()?;
                if present != Some(&value) {
                    change = change.set_label(name, value);
                }
            }
            None if present.is_some() => change = change.unset_label(name),
            None => {}
        }
    }
    Ok(change)
}

#[async_trait]
impl Journal for ObjectJournal {
    async fn load(&self, id: InstanceId) -> Result<Option<Record>> {
        let (source, target) = tokio::try_join!(self.find(&self.source, id), self.find(&self.target, id))?;
        self.record(id, source.as_ref(), target.as_ref())
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        let all = |orchestrator: &DynOrchestrator| orchestrator.list(InstanceFilter::all()).try_collect::<Vec<_>>();
        let (source, target): (Vec<Instance>, Vec<Instance>) = tokio::try_join!(all(&self.source), all(&self.target))?;
        let by_id = |instances: &'_ [Instance]| -> BTreeMap<InstanceId, usize> {
            instances
                .iter()
                .enumerate()
                .map(|(at, instance)| (instance.id, at))
                .collect()
        };
        let (at_source, at_target) = (by_id(&source), by_id(&target));
        let mut ids: Vec<InstanceId> = at_source.keys().chain(at_target.keys()).copied().collect();
        ids.sort_unstable();
        ids.dedup();
        let mut records = Vec::new();
        for id in ids {
            let here = at_source.get(&id).and_then(|at| source.get(*at));
            let there = at_target.get(&id).and_then(|at| target.get(*at));
            records.extend(self.record(id, here, there)?);
        }
        records.sort_by_key(|record| (record.began, record.instance));
        Ok(records)
    }

    async fn append(&self, entry: &Entry, after: &Record) -> Result<()> {
        let over = after.step.is_over();
        let mut labels = if over { BTreeMap::new() } else { Kept::labels(after) };
        if !over {
            labels.insert(WRITER, self.writer.to_string());
        }
        let before = {
            let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.get(&entry.instance).cloned()
        };
        // Before each change it is seen that nobody else writes.
        let changes = matches!(entry.event, Event::Intends { .. });
        let same = before
            .as_ref()
            .is_some_and(|before| essence(before) == essence(&labels));
        if same && !changes {
            return Ok(());
        }
        let deletes_source = matches!(
            entry.event,
            Event::Intends {
                side: Side::Source,
                mutation: Mutation::Delete,
                ..
            }
        );
        let writing = Writing {
            entry,
            labels: &labels,
            has_written: before.is_some_and(|before| before.get(RUN) == Some(&entry.run.to_string())),
            knows_it_is_gone: after.source_deleted && !deletes_source,
        };
        let kept = self.write_all(&writing, over, deletes_source).await;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = kept {
            // What the labels hold is not known, but whose they were is.
            if let Some(before) = written.get_mut(&entry.instance) {
                before.remove(STATE);
            }
            return Err(error);
        }
        written.insert(entry.instance, labels);
        Ok(())
    }
}

/// The labels without the number of the entry and the time: what matters for going on.
fn essence(labels: &BTreeMap<&'static str, String>) -> BTreeMap<&'static str, String> {
    let mut labels = labels.clone();
    if let Some(state) = labels.get_mut(STATE) {
        *state = state.splitn(3, '.').nth(2).unwrap_or_default().to_owned();
    }
    if let Some(times) = labels.get_mut(TIMES) {
        let mut parts: Vec<&str> = times.split('.').collect();
        if parts.len() > 1 {
            parts.remove(1);
        }
        *times = parts.join(".");
    }
    labels
}

/// What the labels keep.
struct Kept {
    record: Record,
    tenancy: Tenancy,
    data: Option<String>,
    id: Option<InstanceId>,
    first: Option<String>,
    writer: Option<Uuid>,
}

impl Kept {
    fn labels(record: &Record) -> BTreeMap<&'static str, String> {
        let mut labels = BTreeMap::new();
        let inventory = record.inventory.as_ref();
        let tenancy = match inventory.map_or(Tenancy::Running, |inventory| inventory.tenancy) {
            Tenancy::Running => 'r',
            Tenancy::Stopped => 's',
            Tenancy::Suspended => 'h',
        };
        labels.insert(RUN, record.run.to_string());
        labels.insert(ID, record.instance.to_string());
        labels.insert(
            STATE,
            format!(
                "v1.{}.{}.{}.{}.{tenancy}.{:x}",
                record.next_seq,
                record.step,
                record.source,
                record.target,
                flags(record)
            ),
        );
        let seconds = |at: Option<Timestamp>| at.map_or(0, Timestamp::as_second);
        labels.insert(
            TIMES,
            format!(
                "{}.{}.{}.{}.{}",
                record.began.as_second(),
                record.updated.as_second(),
                // Not earlier than it was: the part of a second is rounded up.
                seconds(record.bake_until) + i64::from(record.bake_until.is_some()),
                seconds(record.committed_at),
                seconds(record.window_until) + i64::from(record.window_until.is_some())
            ),
        );
        if !record.doubts.is_empty() {
            labels.insert(DOUBTS, doubts(&record.doubts));
        }
        if let Some(inventory) = inventory
            && inventory.data.as_str().parse::<LabelValue>().is_ok()
        {
            labels.insert(DATA, inventory.data.to_string());
        }
        if let Some(inventory) = inventory {
            labels.insert(FIRST, inventory.digest());
        }
        if let Some(digest) = &record.target_digest {
            labels.insert(COMMITTED, digest.clone());
        }
        labels
    }

    fn read(instance: &Instance) -> Result<Option<Self>> {
        let label = |key: &str| {
            instance
                .spec
                .labels
                .iter()
                .find(|(name, _)| name.as_str() == key)
                .map(|(_, value)| value.as_str())
        };
        let unreadable = |what: String| {
            Error::new(
                ErrorKind::Unexpected,
                format!("the labels {PREFIX}* cannot be read: {what}"),
            )
            .with_instance(instance.id)
            .with_operation(OperationKind::Migrate)
            .with_advice("they were changed by hand: look at both platforms, then remove them")
        };
        let (Some(run), Some(state), Some(times)) = (label(RUN), label(STATE), label(TIMES)) else {
            // Some of them are a migration of which not enough is known, and not none.
            let there: Vec<&str> = KEYS.into_iter().filter(|key| label(key).is_some()).collect();
            return if there.is_empty() {
                Ok(None)
            } else {
                Err(unreadable(format!("there is only {}", there.join(", "))))
            };
        };
        let mut kept = parse(instance.id, run, state, times, label(DOUBTS), label(DATA))
            .ok_or_else(|| unreadable(format!("{state:?}, {times:?}")))?;
        kept.id = label(ID).and_then(|id| id.parse().ok());
        kept.record.target_digest = label(COMMITTED).map(ToOwned::to_owned);
        kept.first = label(FIRST).map(ToOwned::to_owned);
        kept.writer = label(WRITER).and_then(|writer| writer.parse().ok());
        Ok(Some(kept))
    }
}

fn flags(record: &Record) -> u32 {
    [
        record.force.unhealthy_source,
        record.force.unparsed,
        record.create_tried,
        record.target_ours.is_some(),
        record.target_ours == Some(true),
        record.source_touched,
        record.target_started,
        record.routed,
        record.failure.is_some(),
        record.source_deleted,
        record.target_deleted,
        record.target_closed,
    ]
    .into_iter()
    .enumerate()
    .map(|(bit, set)| u32::from(set) << bit)
    .sum()
}

fn doubts(doubts: &[Doubt]) -> String {
    let mut parts: Vec<String> = doubts
        .iter()
        .map(|doubt| {
            format!(
                "{}{}{:08x}",
                side_code(doubt.side),
                mutation_code(doubt.mutation),
                ceil(doubt.until)
            )
        })
        .collect();
    parts.sort_unstable();
    parts.dedup();
    if parts.len() > 5 {
        // Too many for a label: everything is in doubt until the last of them.
        let last = doubts.iter().map(|doubt| ceil(doubt.until)).max().unwrap_or_default();
        return format!("xx{last:08x}");
    }
    parts.join("_")
}

fn ceil(at: Timestamp) -> i64 {
    at.as_second() + 1
}

const fn side_code(side: Side) -> char {
    match side {
        Side::Source => 's',
        Side::Target => 't',
    }
}

const MUTATIONS: [Mutation; 5] = [
    Mutation::Create,
    Mutation::Suspend,
    Mutation::Resume,
    Mutation::Start,
    Mutation::Delete,
];

const fn mutation_code(mutation: Mutation) -> char {
    match mutation {
        Mutation::Create => 'c',
        Mutation::Suspend => 'h',
        Mutation::Resume => 'r',
        Mutation::Start => 's',
        Mutation::Delete => 'd',
    }
}

fn parse_doubts(text: &str) -> Option<Vec<Doubt>> {
    let mut doubts = Vec::new();
    for part in text.split('_') {
        let (codes, until) = (part.get(..2)?, part.get(2..)?);
        let until = Timestamp::from_second(i64::from_str_radix(until, 16).ok()?).ok()?;
        for side in [Side::Source, Side::Target] {
            for mutation in MUTATIONS {
                let code: String = [side_code(side), mutation_code(mutation)].into_iter().collect();
                if codes == "xx" || codes == code {
                    doubts.push(Doubt { side, mutation, until });
                }
            }
        }
    }
    Some(doubts)
}

fn parse(
    instance: InstanceId,
    run: &str,
    state: &str,
    times: &str,
    doubts: Option<&str>,
    data: Option<&str>,
) -> Option<Kept> {
    let run: Uuid = run.parse().ok()?;
    let [version, seq, step, source, target, tenancy, flags] = state.split('.').collect::<Vec<_>>().try_into().ok()?;
    // The last one was not always written.
    let (times, window) = match times.split('.').count() {
        5 => times.rsplit_once('.')?,
        _ => (times, "0"),
    };
    let [began, updated, bake, committed] = times.split('.').collect::<Vec<_>>().try_into().ok()?;
    let flags = u32::from_str_radix(flags, 16).ok()?;
    let flag = |bit: u32| flags & (1 << bit) != 0;
    let time = |text: &str| Timestamp::from_second(text.parse().ok()?).ok();
    let some = |at: Timestamp| (at.as_second() != 0).then_some(at);
    let tenancy = match tenancy {
        "r" => Tenancy::Running,
        "s" => Tenancy::Stopped,
        "h" => Tenancy::Suspended,
        _ => return None,
    };
    if version != "v1" {
        return None;
    }
    let began = time(began)?;
    let entry = Entry {
        instance,
        run,
        seq: 0,
        at: began,
        event: super::Event::Began {
            source: backend(source)?,
            target: backend(target)?,
            source_identity: None,
            target_identity: None,
            force: Force {
                unhealthy_source: flag(0),
                unparsed: flag(1),
                ..Force::none()
            },
        },
    };
    let mut record = Record::begin(&entry).ok()?;
    record.next_seq = seq.parse().ok()?;
    record.step = Step::from_name(step)?;
    record.updated = time(updated)?;
    record.bake_until = some(time(bake)?);
    record.committed_at = some(time(committed)?);
    record.window_until = some(time(window)?);
    record.create_tried = flag(2);
    record.target_ours = flag(3).then_some(flag(4));
    record.source_touched = flag(5);
    record.target_started = flag(6);
    record.routed = flag(7);
    record.failure = flag(8).then(|| Failure {
        step: record.step,
        kind: ErrorKind::Unexpected,
        message: "a step failed, and labels do not keep which one and why: see the log of the process that ran it"
            .to_owned(),
        at: record.updated,
    });
    record.source_deleted = flag(9);
    record.target_deleted = flag(10);
    record.target_closed = flag(11);
    record.doubts = doubts.map_or(Some(Vec::new()), parse_doubts)?;
    Some(Kept {
        record,
        tenancy,
        data: data.map(ToOwned::to_owned),
        id: None,
        first: None,
        writer: None,
    })
}

fn backend(name: &str) -> Option<BackendKind> {
    [
        BackendKind::Memory,
        BackendKind::Kubernetes,
        BackendKind::Swarm,
        BackendKind::DualRun,
    ]
    .into_iter()
    .find(|kind| kind.as_str() == name)
}
