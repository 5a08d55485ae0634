//! What the cache knows, joined into instances, and what each subscriber has still to be told. No I/O.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{
    FORGIVEN_AFTER_SECONDS, Instance, InstanceEvent, InstanceFilter, InstanceId, SETTLED_AFTER_SECONDS, ShortId,
    Staleness, derive,
};
use tokio::time::Instant;

use super::{Kind, Observe};
use crate::names::SHORT_ID;
use crate::observe::{belongs, identity};
use crate::views::{ClaimView, DeploymentView, PodView, View};

type Name = Arc<str>;

/// A watch that is in touch has delivered a deletion by then.
const DELETION_SEEN: Duration = Duration::from_secs(60);

/// An instance whose status will change by time alone is looked at this often at least.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The cache.
pub(super) struct State {
    pub(super) started: bool,
    kinds: [Contact; 3],
    deployments: HashMap<Name, Entry>,
    pods: HashMap<Name, PodView>,
    claims: HashMap<Name, ClaimView>,
    by_id: HashMap<ShortId, BTreeSet<Name>>,
    by_group: HashMap<String, BTreeSet<Name>>,
    by_claim: HashMap<Name, BTreeSet<Name>>,
    pods_by_group: HashMap<String, BTreeSet<Name>>,
    /// Instances whose status changes by the passage of time alone.
    due: BTreeSet<(Instant, Name)>,
    writes: HashMap<InstanceId, Write>,
    subscribers: HashMap<u64, Subscriber>,
    next_key: u64,
    wake: Vec<Waker>,
}

/// How the connection for one kind is.
struct Contact {
    /// The kind was listed at least once.
    ready: bool,
    lost: Option<Staleness>,
    heard: Timestamp,
    /// A change may have been taken in half-way: the next list replaces everything.
    suspect: bool,
    /// When the list that is under way was begun.
    listing: Option<Instant>,
}

/// A deployment.
struct Entry {
    view: DeploymentView,
    id: Option<InstanceId>,
    /// The name of the claim with its data.
    claim: Option<Name>,
    /// What its observation is made from, to tell a change from a repetition.
    print: u64,
    due: Option<Instant>,
}

/// The versions that a caller's own writes have made.
#[derive(Clone, Copy)]
struct Write {
    deployment: u64,
    claim: u64,
    at: Instant,
}

impl Write {
    /// A deletion has no version to wait for; it waits for the event, which may have come before the caller's answer.
    fn is_over(&self) -> bool {
        self.deployment == u64::MAX && self.at.elapsed() > DELETION_SEEN
    }
}

struct Subscriber {
    filter: InstanceFilter,
    queue: VecDeque<Name>,
    dirty: HashMap<Name, Dirty>,
    /// What has been delivered, by its fingerprint.
    known: HashMap<Name, u64>,
    stale: Option<Staleness>,
    unsynced: bool,
    waker: Option<Waker>,
}

/// What a subscriber has to be told about an instance.
#[derive(Default)]
struct Dirty {
    /// The instance of this name is gone, as it was last seen. There may be a new one of the same name.
    gone: Option<Box<Instance>>,
}

/// A kind of object that the cache keeps.
pub(super) trait Watched: View + Clone + PartialEq + Send + 'static {
    const KIND: Kind;

    /// The object of this name.
    fn find<'a>(state: &'a State, name: &str) -> Option<&'a Self>;
    fn names(state: &State) -> Vec<Name>;
    /// Adds or replaces the object.
    fn put(self, state: &mut State, observe: &dyn Observe, now: Timestamp);
    fn remove(name: &str, state: &mut State, observe: &dyn Observe, now: Timestamp);
}

impl State {
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            started: false,
            kinds: [(); 3].map(|()| Contact {
                ready: false,
                lost: None,
                heard: now,
                suspect: false,
                listing: None,
            }),
            deployments: HashMap::new(),
            pods: HashMap::new(),
            claims: HashMap::new(),
            by_id: HashMap::new(),
            by_group: HashMap::new(),
            by_claim: HashMap::new(),
            pods_by_group: HashMap::new(),
            due: BTreeSet::new(),
            writes: HashMap::new(),
            subscribers: HashMap::new(),
            next_key: 0,
            wake: Vec::new(),
        }
    }

    /// How many deployments there are.
    pub(super) fn len(&self) -> usize {
        self.deployments.len()
    }

    /// True once every kind has been listed: before, an instance would seem to have no pods.
    pub(super) fn is_ready(&self) -> bool {
        self.kinds.iter().all(|kind| kind.ready)
    }

    /// The oldest loss of contact that lasts.
    pub(super) fn staleness(&self) -> Option<&Staleness> {
        self.kinds
            .iter()
            .filter_map(|kind| kind.lost.as_ref())
            .min_by_key(|stale| stale.since)
    }

    fn is_synced(&self) -> bool {
        self.is_ready() && self.staleness().is_none()
    }

    /// When the server was last heard of, for the kind for which this is longest ago.
    pub(super) fn heard(&self) -> Timestamp {
        self.kinds.iter().map(|kind| kind.heard).min().unwrap_or_default()
    }

    /// The wakers of the subscribers for whom there is news.
    pub(super) fn wakers(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.wake)
    }

    // What the follower of a kind reports.

    pub(super) fn heard_of(&mut self, kind: Kind, at: Timestamp) {
        let contact = &mut self.kinds[kind.index()];
        contact.heard = contact.heard.max(at);
    }

    pub(super) fn list_begins(&mut self, kind: Kind) {
        self.kinds[kind.index()].listing = Some(Instant::now());
    }

    /// Contact is lost: nobody is told anything wrong, and everybody is told that this may be out of date.
    pub(super) fn lose(&mut self, kind: Kind, reason: String) {
        let first = self.staleness().is_none();
        let contact = &mut self.kinds[kind.index()];
        let since = contact.heard;
        if let Some(lost) = &mut contact.lost {
            lost.reason = reason;
            return;
        }
        let stale = Staleness::new(since, reason);
        tracing::warn!(kind = kind.plural(), since = %stale.since, reason = %stale.reason, "the watch is out of touch");
        contact.lost = Some(stale.clone());
        if first {
            for subscriber in self.subscribers.values_mut() {
                subscriber.stale = Some(stale.clone());
                subscriber.unsynced = true;
                self.wake.extend(subscriber.waker.take());
            }
        }
    }

    /// Something went wrong while a change was taken in.
    pub(super) fn suspect(&mut self, kind: Kind) {
        self.kinds[kind.index()].suspect = true;
    }

    /// Takes over a complete list of a kind at once.
    pub(super) fn replace<K: Watched>(&mut self, objects: HashMap<Name, K>, observe: &dyn Observe, now: Timestamp) {
        let was_ready = self.is_ready();
        let suspect = std::mem::take(&mut self.kinds[K::KIND.index()].suspect);
        for name in K::names(self) {
            if !objects.contains_key(&name) {
                K::remove(&name, self, observe, now);
            }
        }
        for (name, object) in objects {
            let same = K::find(self, &name).is_some_and(|known| {
                known.uid() == object.uid() && known.version() == object.version() && !known.version().is_empty()
            });
            if suspect || !same {
                object.put(self, observe, now);
            }
        }
        let contact = &mut self.kinds[K::KIND.index()];
        let begun = contact.listing.take();
        contact.ready = true;
        if contact.lost.take().is_some() {
            tracing::info!(kind = K::KIND.plural(), "the watch is in touch again");
        }
        if let Some(begun) = begun.filter(|_| K::KIND == Kind::Deployment) {
            // The list shows every write that was finished before it was begun.
            self.writes.retain(|_, write| write.at >= begun);
        }
        if self.is_ready() && !was_ready {
            let names: Vec<Name> = self.deployments.keys().cloned().collect();
            for name in names {
                self.touch(&name, observe, now);
            }
        }
        if self.is_synced() {
            for subscriber in self.subscribers.values_mut().filter(|s| s.unsynced) {
                self.wake.extend(subscriber.waker.take());
            }
        }
    }

    // Joining.

    /// The pods and the claim of a deployment.
    fn parts(&self, entry: &Entry) -> (Vec<&PodView>, Option<&ClaimView>) {
        let pods = group_of(&entry.view)
            .and_then(|group| self.pods_by_group.get(group))
            .into_iter()
            .flatten()
            .filter_map(|name| self.pods.get(name))
            .filter(|pod| belongs(&entry.view, pod))
            .collect();
        let claim = entry.claim.as_ref().and_then(|claim| self.claims.get(claim));
        (pods, claim)
    }

    fn observe(&self, entry: &Entry, observe: &dyn Observe, now: Timestamp) -> Option<Instance> {
        let (pods, claim) = self.parts(entry);
        observe.observe(&entry.view, &pods, claim, now)
    }

    fn fingerprint(&self, entry: &Entry, instance: &Instance) -> u64 {
        let (pods, claim) = self.parts(entry);
        let view = &entry.view;
        let mut hasher = DefaultHasher::new();
        (view.uid(), view.version()).hash(&mut hasher);
        for pod in pods {
            (pod.uid(), pod.version()).hash(&mut hasher);
        }
        claim.map(|claim| (claim.uid(), claim.version())).hash(&mut hasher);
        instance.status.hash(&mut hasher);
        instance.cause.is_some().hash(&mut hasher);
        hasher.finish()
    }

    /// Looks at an instance again after one of its objects, or the time, has changed.
    fn touch(&mut self, name: &Name, observe: &dyn Observe, now: Timestamp) {
        if !self.is_ready() {
            return;
        }
        let Some(entry) = self.deployments.get(name) else {
            return;
        };
        let (print, due) = match self.observe(entry, observe, now) {
            Some(instance) => {
                let print = self.fingerprint(entry, &instance);
                let terminating = self.parts(entry).0.iter().any(|pod| pod.is_deleting());
                // One that does not end in time is lost; nothing else tells.
                let lost = terminating.then_some(Duration::from_secs(10));
                let soon = [ripens_in(&instance, now), lost].into_iter().flatten().min();
                (print, soon.map(|soon| Instant::now() + soon))
            }
            None => (0, None),
        };
        let Some(entry) = self.deployments.get_mut(name) else {
            return;
        };
        let old = std::mem::replace(&mut entry.due, due);
        let changed = std::mem::replace(&mut entry.print, print) != print;
        if let Some(old) = old {
            self.due.remove(&(old, name.clone()));
        }
        if let Some(due) = due {
            self.due.insert((due, name.clone()));
        }
        if changed {
            self.tell(name, None);
        }
    }

    /// Puts an instance on every subscriber's list.
    fn tell(&mut self, name: &Name, gone: Option<&Instance>) {
        for subscriber in self.subscribers.values_mut() {
            subscriber.mark(name, gone);
            self.wake.extend(subscriber.waker.take());
        }
    }

    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Looks again at the instances whose time has come.
    pub(super) fn ripen(&mut self, observe: &dyn Observe, now: Timestamp) {
        let instant = Instant::now();
        while let Some((_, name)) = self.due.first().filter(|(due, _)| *due <= instant).cloned() {
            self.due.pop_first();
            if let Some(entry) = self.deployments.get_mut(&name) {
                entry.due = None;
            }
            self.touch(&name, observe, now);
        }
    }

    // Reading.

    /// The instance, if the cache can answer for it.
    pub(super) fn fresh(&self, id: InstanceId, observe: &dyn Observe, now: Timestamp) -> Option<Instance> {
        if !self.is_synced() {
            return None;
        }
        let candidates = || {
            self.by_id
                .get(&id.short())
                .into_iter()
                .flatten()
                .filter_map(|name| self.deployments.get(name))
        };
        let mut exact = candidates().filter(|entry| entry.id == Some(id));
        let found = match (exact.next(), exact.next()) {
            (Some(entry), None) => entry,
            (Some(_), Some(_)) => return None,
            (None, _) => {
                let mut alike = candidates().filter(|entry| entry.id.is_some_and(|other| other.matches(id)));
                alike.next().filter(|_| alike.next().is_none())?
            }
        };
        let pending = self.writes.get(&found.id?).or_else(|| self.writes.get(&id));
        if pending
            .filter(|write| !write.is_over())
            .is_some_and(|write| !self.has_seen(found, *write))
        {
            return None;
        }
        // That a claim is not there is acted upon, so only the server itself may say it.
        if found.claim.as_ref().is_some_and(|name| !self.claims.contains_key(name)) {
            return None;
        }
        self.observe(found, observe, now)
    }

    fn has_seen(&self, entry: &Entry, write: Write) -> bool {
        let claim = entry.claim.as_ref().and_then(|name| self.claims.get(name));
        number(&entry.view) >= write.deployment
            && (write.claim == 0 || claim.is_some_and(|claim| number(claim) >= write.claim))
    }

    pub(super) fn wrote(&mut self, id: InstanceId, kind: Kind, version: u64) {
        if !self.started {
            return;
        }
        self.writes.retain(|_, write| !write.is_over());
        let at = Instant::now();
        let write = self.writes.entry(id).or_insert(Write {
            deployment: 0,
            claim: 0,
            at,
        });
        write.at = at;
        match kind {
            Kind::Deployment => write.deployment = write.deployment.max(version),
            Kind::Claim => write.claim = write.claim.max(version),
            Kind::Pod => {}
        }
    }

    /// Forgets writes that the cache has caught up with.
    fn settle_writes(&mut self, name: &str) {
        let Some(entry) = self.deployments.get(name) else {
            return;
        };
        let Some(id) = entry.id else { return };
        if self.writes.get(&id).is_some_and(|write| self.has_seen(entry, *write)) {
            self.writes.remove(&id);
        }
    }

    // Subscribers.

    pub(super) fn subscribe(&mut self, filter: InstanceFilter) -> u64 {
        let key = self.next_key;
        self.next_key += 1;
        let mut subscriber = Subscriber {
            filter,
            queue: VecDeque::new(),
            dirty: HashMap::new(),
            known: HashMap::new(),
            stale: self.staleness().cloned(),
            unsynced: true,
            waker: None,
        };
        if self.is_ready() {
            for name in self.deployments.keys() {
                subscriber.mark(name, None);
            }
        }
        self.subscribers.insert(key, subscriber);
        key
    }

    pub(super) fn unsubscribe(&mut self, key: u64) {
        self.subscribers.remove(&key);
    }

    /// What the subscriber is to be told next; when there is nothing, it is woken later.
    pub(super) fn next_event(
        &mut self,
        key: u64,
        observe: &dyn Observe,
        now: Timestamp,
        waker: &Waker,
    ) -> Option<InstanceEvent> {
        let synced = self.is_synced();
        // Taken out, so that the rest of the state can be read while it is changed.
        let mut subscriber = self.subscribers.remove(&key)?;
        let event = self.next_of(&mut subscriber, synced, observe, now);
        subscriber.waker = event.is_none().then(|| waker.clone());
        self.subscribers.insert(key, subscriber);
        event
    }

    fn next_of(
        &self,
        subscriber: &mut Subscriber,
        synced: bool,
        observe: &dyn Observe,
        now: Timestamp,
    ) -> Option<InstanceEvent> {
        if let Some(stale) = subscriber.stale.take() {
            return Some(InstanceEvent::Stale(stale));
        }
        while let Some(name) = subscriber.queue.pop_front() {
            let dirty = subscriber.dirty.remove(&name).unwrap_or_default();
            if let Some(gone) = dirty.gone
                && subscriber.known.remove(&name).is_some()
            {
                if self.deployments.contains_key(&name) {
                    subscriber.mark(&name, None);
                }
                return Some(InstanceEvent::Deleted(gone));
            }
            let Some(entry) = self.deployments.get(&name) else {
                continue;
            };
            let Some(instance) = self.observe(entry, observe, now) else {
                continue;
            };
            if subscriber.filter.matches(&instance) {
                let print = self.fingerprint(entry, &instance);
                if subscriber.known.insert(name, print) != Some(print) {
                    return Some(InstanceEvent::Applied(Box::new(self.marked(instance))));
                }
            } else if subscriber.known.remove(&name).is_some() {
                return Some(InstanceEvent::Deleted(Box::new(self.marked(instance))));
            }
        }
        if synced && subscriber.unsynced {
            subscriber.unsynced = false;
            return Some(InstanceEvent::Synced);
        }
        None
    }

    fn marked(&self, mut instance: Instance) -> Instance {
        instance.provenance.source = saasodoo_core::Source::Cache;
        instance.provenance.observed_at = self.heard();
        instance
    }
}

impl Subscriber {
    fn mark(&mut self, name: &Name, gone: Option<&Instance>) {
        let dirty = self.dirty.entry(name.clone()).or_insert_with(|| {
            self.queue.push_back(name.clone());
            Dirty::default()
        });
        if let Some(gone) = gone {
            // The first one is the one that the subscriber may know.
            dirty.gone.get_or_insert_with(|| Box::new(gone.clone()));
        }
    }
}

/// When to look again at an instance whose status would be another one later, with nothing else changed. Time counts
/// from the start of a process and from its end.
fn ripens_in(instance: &Instance, now: Timestamp) -> Option<Duration> {
    let units = instance.facts.units.iter();
    let moments = units.flat_map(|unit| [unit.started_at, unit.last_exit.as_ref().and_then(|exit| exit.at)]);
    let mut seconds: Vec<i64> = moments
        .flatten()
        .flat_map(|at| [SETTLED_AFTER_SECONDS, FORGIVEN_AFTER_SECONDS].map(|after| at.as_second() + after))
        .filter(|second| *second > now.as_second())
        .collect();
    seconds.sort_unstable();
    let mut later = instance.facts.clone();
    let at = seconds.into_iter().find_map(|second| {
        later.observed_at = Timestamp::from_second(second).ok()?;
        let (status, cause) = derive(&later);
        let changes = status != instance.status || cause.is_some() != instance.cause.is_some();
        changes.then_some(later.observed_at)
    })?;
    let wait = Duration::try_from(at.duration_since(now)).ok()?;
    // Not in one go: the time of day may be set meanwhile.
    Some(wait.clamp(Duration::from_millis(100), LONGEST_WAIT))
}

fn number(object: &impl View) -> u64 {
    object.version().parse().unwrap_or(0)
}

/// The text by which deployments and pods find each other quickly; the selector decides.
fn group_of(view: &DeploymentView) -> Option<&str> {
    view.spec
        .selector
        .match_labels
        .get(SHORT_ID)
        .map(String::as_str)
        .or_else(|| view.label(SHORT_ID))
}

fn index<K: Eq + Hash>(map: &mut HashMap<K, BTreeSet<Name>>, key: Option<K>, name: &Name) {
    if let Some(key) = key {
        map.entry(key).or_default().insert(name.clone());
    }
}

fn unindex<K: Eq + Hash>(map: &mut HashMap<K, BTreeSet<Name>>, key: Option<&K>, name: &str) {
    if let Some(key) = key
        && let Some(names) = map.get_mut(key)
    {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}

impl Watched for DeploymentView {
    const KIND: Kind = Kind::Deployment;

    fn find<'a>(state: &'a State, name: &str) -> Option<&'a Self> {
        state.deployments.get(name).map(|entry| &entry.view)
    }

    fn names(state: &State) -> Vec<Name> {
        state.deployments.keys().cloned().collect()
    }

    fn put(self, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        let replaced = Self::find(state, self.name()).is_some_and(|old| old.uid() != self.uid());
        if replaced {
            // Deleted and made again while nobody looked.
            Self::remove(self.name(), state, observe, now);
        } else {
            unlink(state, self.name());
        }
        let name: Name = self.name().into();
        let id = identity(&self);
        let claim: Option<Name> = observe.claim_of(&self).map(Name::from);
        index(&mut state.by_id, id.map(InstanceId::short), &name);
        index(&mut state.by_group, group_of(&self).map(str::to_owned), &name);
        index(&mut state.by_claim, claim.clone(), &name);
        let (print, due) = state
            .deployments
            .get(&name)
            .map_or((0, None), |old| (old.print, old.due));
        state.deployments.insert(
            name.clone(),
            Entry {
                view: self,
                id,
                claim,
                print,
                due,
            },
        );
        state.settle_writes(&name);
        state.touch(&name, observe, now);
    }

    fn remove(name: &str, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        let Some(entry) = state.deployments.get(name) else {
            return;
        };
        let last = state
            .observe(entry, observe, now)
            .map(|instance| state.marked(instance));
        unlink(state, name);
        let Some((name, entry)) = state.deployments.remove_entry(name) else {
            return;
        };
        if let Some(due) = entry.due {
            state.due.remove(&(due, name.clone()));
        }
        if let Some(id) = entry.id {
            state.writes.remove(&id);
        }
        if let Some(last) = last.filter(|_| state.is_ready()) {
            state.tell(&name, Some(&last));
        }
    }
}

/// Takes a deployment out of the indexes.
fn unlink(state: &mut State, name: &str) {
    let Some(entry) = state.deployments.get(name) else {
        return;
    };
    unindex(&mut state.by_id, entry.id.map(InstanceId::short).as_ref(), name);
    unindex(
        &mut state.by_group,
        group_of(&entry.view).map(str::to_owned).as_ref(),
        name,
    );
    unindex(&mut state.by_claim, entry.claim.as_ref(), name);
}

impl Watched for PodView {
    const KIND: Kind = Kind::Pod;

    fn find<'a>(state: &'a State, name: &str) -> Option<&'a Self> {
        state.pods.get(name)
    }

    fn names(state: &State) -> Vec<Name> {
        state.pods.keys().cloned().collect()
    }

    fn put(self, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        let name: Name = self.name().into();
        let group = self.label(SHORT_ID).map(str::to_owned);
        let before = state.pods.insert(name.clone(), self);
        let before = before.and_then(|pod| pod.label(SHORT_ID).map(str::to_owned));
        if before != group {
            unindex(&mut state.pods_by_group, before.as_ref(), &name);
        }
        index(&mut state.pods_by_group, group.clone(), &name);
        touch_groups(state, [before, group], observe, now);
    }

    fn remove(name: &str, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        let Some(pod) = state.pods.remove(name) else { return };
        let group = pod.label(SHORT_ID).map(str::to_owned);
        unindex(&mut state.pods_by_group, group.as_ref(), name);
        touch_groups(state, [group, None], observe, now);
    }
}

fn touch_groups(state: &mut State, groups: [Option<String>; 2], observe: &dyn Observe, now: Timestamp) {
    let names: HashSet<Name> = groups
        .iter()
        .flatten()
        .filter_map(|group| state.by_group.get(group))
        .flatten()
        .cloned()
        .collect();
    for name in names {
        state.touch(&name, observe, now);
    }
}

impl Watched for ClaimView {
    const KIND: Kind = Kind::Claim;

    fn find<'a>(state: &'a State, name: &str) -> Option<&'a Self> {
        state.claims.get(name)
    }

    fn names(state: &State) -> Vec<Name> {
        state.claims.keys().cloned().collect()
    }

    fn put(self, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        let name = self.name().to_owned();
        state.claims.insert(name.as_str().into(), self);
        touch_users(state, &name, observe, now);
    }

    fn remove(name: &str, state: &mut State, observe: &dyn Observe, now: Timestamp) {
        if state.claims.remove(name).is_some() {
            touch_users(state, name, observe, now);
        }
    }
}

fn touch_users(state: &mut State, claim: &str, observe: &dyn Observe, now: Timestamp) {
    for name in state.by_claim.get(claim).cloned().unwrap_or_default() {
        state.settle_writes(&name);
        state.touch(&name, observe, now);
    }
}
