//! Following all instances: one picture for all subscribers.
//!
//! Swarm sends events about services and none about tasks. So the daemon is asked: about one service when an event
//! names it, about those on their way to another status at the fast interval, and about everything at the slow one and
//! after every gap. What comes of it is a picture of all instances; a subscriber is told how the newest picture differs
//! from what it was told before. However slow it is, it misses no change that lasts, and needs no memory for more than
//! one picture.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use jiff::Timestamp;
use saasodoo_core::{
    Error, HealthState, Instance, InstanceEvent, InstanceFilter, InstanceId, InstanceStatus, Result, Staleness,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::backend::Inner;
use crate::convert::label;
use crate::facts;
use crate::read::{All, ambiguous};
use crate::wire::{filters, segment};

/// How many instances are asked about one by one; more are cheaper to ask about all at once.
const FEW: usize = 16;
/// An instance that has been on its way for longer than this is looked at no more often than the others.
const RESTLESS_FOR: Duration = Duration::from_secs(300);
/// Events come in bursts.
const BURST: Duration = Duration::from_millis(50);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LAST_BACKOFF: Duration = Duration::from_secs(10);

/// All instances at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Picture {
    pub(crate) instances: Arc<BTreeMap<InstanceId, Arc<Instance>>>,
    /// The last time that it was out of touch.
    pub(crate) stale: Option<Staleness>,
    /// How often it has been out of touch.
    pub(crate) lost: u64,
    /// How often it has become whole: `lost` times, and once more unless it is out of touch now.
    pub(crate) synced: u64,
    /// The last look at everything that it contains.
    pub(crate) look: u64,
}

impl Picture {
    fn out_of_touch(&self) -> Option<&Staleness> {
        self.stale.as_ref().filter(|_| self.synced <= self.lost)
    }
}

/// Where subscribers find the one task that asks the daemon.
#[derive(Default)]
pub(crate) struct Hub(Mutex<Option<Running>>);

struct Running {
    pictures: Weak<watch::Sender<Picture>>,
    hints: mpsc::UnboundedSender<Hint>,
    /// How many looks at everything have begun.
    looks: Arc<AtomicU64>,
}

/// What is worth looking at now.
enum Hint {
    Service(String),
    Everything,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hub")
    }
}

impl Hub {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pictures(&self) -> Option<Arc<watch::Sender<Picture>>> {
        self.lock().as_ref()?.pictures.upgrade()
    }

    /// A service that this process has just changed.
    pub(crate) fn hint(&self, service: &str) {
        if let Some(running) = self.lock().as_ref() {
            let _ = running.hints.send(Hint::Service(service.to_owned()));
        }
    }

    /// For the health of the backend.
    pub(crate) fn check(&self) -> (HealthState, String) {
        match self.pictures() {
            None => (HealthState::Ok, "nobody watches".to_owned()),
            Some(pictures) => {
                let picture = pictures.borrow();
                match picture.out_of_touch() {
                    Some(stale) => (
                        HealthState::Degraded,
                        format!("out of touch since {}: {}", stale.since, stale.reason),
                    ),
                    None => (
                        HealthState::Ok,
                        format!("{} instances in view", picture.instances.len()),
                    ),
                }
            }
        }
    }

    /// The pictures, and the first look at everything that begins after this moment: what a subscriber is told first
    /// must not be older than its subscription.
    fn subscribe(inner: &Arc<Inner>) -> (watch::Receiver<Picture>, u64) {
        let mut running = inner.hub.lock();
        if let Some(running) = running.as_ref()
            && let Some(pictures) = running.pictures.upgrade()
        {
            let look = running.looks.load(Ordering::SeqCst) + 1;
            let _ = running.hints.send(Hint::Everything);
            return (pictures.subscribe(), look);
        }
        let (sender, receiver) = watch::channel(Picture::default());
        let (hints, hinted) = mpsc::unbounded_channel();
        let sender = Arc::new(sender);
        let looks = Arc::new(AtomicU64::new(0));
        *running = Some(Running {
            pictures: Arc::downgrade(&sender),
            hints,
            looks: Arc::clone(&looks),
        });
        tokio::spawn(Follower::new(Arc::clone(inner), sender, hinted, looks).run());
        (receiver, 1)
    }
}

/// The task that asks the daemon, as long as anybody watches.
struct Follower {
    inner: Arc<Inner>,
    pictures: Arc<watch::Sender<Picture>>,
    hints: mpsc::UnboundedReceiver<Hint>,
    looks: Arc<AtomicU64>,
    /// Instances by the id of their service.
    services: HashMap<String, InstanceId>,
    /// Since when an instance is as it is.
    changed: HashMap<InstanceId, Instant>,
    /// When the daemon was last heard of, and the time of its last event.
    heard: Timestamp,
    event: Option<String>,
}

/// What a look at one instance came to.
enum Glance {
    Seen(String, Box<Instance>),
    Gone,
    /// The daemon has answered, and what it says makes no instance.
    Unreadable(Error),
}

/// Why a connection ended.
struct Lost(String);

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

impl Follower {
    fn new(
        inner: Arc<Inner>,
        pictures: Arc<watch::Sender<Picture>>,
        hints: mpsc::UnboundedReceiver<Hint>,
        looks: Arc<AtomicU64>,
    ) -> Self {
        Self {
            inner,
            pictures,
            hints,
            looks,
            services: HashMap::new(),
            changed: HashMap::new(),
            heard: Timestamp::now(),
            event: None,
        }
    }

    async fn run(mut self) {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let pictures = Arc::clone(&self.pictures);
            let connected = Instant::now();
            let lost = tokio::select! {
                lost = self.connected() => lost,
                () = pictures.closed() => {
                    if self.retire() {
                        return;
                    }
                    continue;
                }
            };
            tracing::warn!(reason = %lost.0, "the watch has lost its connection");
            let stale = Staleness::new(self.heard, lost.0);
            self.pictures.send_modify(|picture| {
                // Trying again and failing is the same absence.
                if picture.out_of_touch().is_none() {
                    picture.lost += 1;
                }
                picture.synced = picture.synced.min(picture.lost);
                picture.stale = Some(stale);
            });
            if connected.elapsed() > LAST_BACKOFF {
                backoff = FIRST_BACKOFF;
            }
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(LAST_BACKOFF);
        }
    }

    /// Ends the task unless somebody has subscribed in the meantime.
    fn retire(&self) -> bool {
        let mut running = self.inner.hub.lock();
        if self.pictures.receiver_count() > 0 {
            return false;
        }
        *running = None;
        true
    }

    /// Follows over one connection for events, until it or a request fails.
    async fn connected(&mut self) -> Lost {
        let mut events = self.events();
        let polling = self.inner.config.polling;
        if let Err(error) = self.look_at_everything().await {
            return error.into();
        }
        self.pictures.send_modify(|picture| picture.synced = picture.lost + 1);
        let mut whole = Instant::now() + polling.slow;
        let mut fast = Instant::now() + polling.fast;
        loop {
            let restless = self.restless();
            let next = if restless.is_empty() { whole } else { whole.min(fast) };
            let mut named = BTreeSet::new();
            let mut everything = false;
            tokio::select! {
                event = events.recv() => match event {
                    Some(Ok(event)) => {
                        named.insert(self.take(event));
                        // The others of the burst.
                        tokio::time::sleep(BURST).await;
                        while let Ok(Ok(event)) = events.try_recv() {
                            named.insert(self.take(event));
                        }
                    }
                    Some(Err(lost)) => return lost,
                    None => return Lost("the stream of events has ended".to_owned()),
                },
                Some(hint) = self.hints.recv() => {
                    let mut next = Some(hint);
                    while let Some(hint) = next {
                        match hint {
                            Hint::Service(service) => drop(named.insert(service)),
                            Hint::Everything => everything = true,
                        }
                        next = self.hints.try_recv().ok();
                    }
                }
                () = tokio::time::sleep_until(next) => {}
            }
            // From the end of a look to the next one: a slow daemon is not asked without a pause.
            let looked = if everything || Instant::now() >= whole || named.len() > FEW {
                let looked = self.look_at_everything().await;
                whole = Instant::now() + polling.slow;
                fast = Instant::now() + polling.fast;
                looked
            } else if named.is_empty() {
                let looked = self.look_at(restless).await;
                fast = Instant::now() + polling.fast;
                looked
            } else {
                self.look_at_services(named).await
            };
            if let Err(error) = looked {
                return error.into();
            }
        }
    }

    /// The stream of events, read by a task of its own so that it is not lost while requests are made.
    fn events(&self) -> mpsc::Receiver<std::result::Result<Event, Lost>> {
        let (sender, receiver) = mpsc::channel(1024);
        // The daemon's own time of the last event; the first connection starts now, and a full look follows.
        let since = self.event.clone().unwrap_or_else(|| seconds(self.inner.clock.now()));
        let filter = filters(&[("type", &["service".to_owned()])]);
        let stream = self
            .inner
            .wire
            .follow("/events", &[("since", &since), ("filters", &filter)]);
        tokio::spawn(async move {
            let read = async {
                let mut stream = stream.map_err(|failure| Lost(Error::from(failure).to_string()))?;
                let mut buffer = Vec::new();
                while let Some(part) = stream.next().await {
                    buffer.extend_from_slice(&part.map_err(|failure| Lost(Error::from(failure).to_string()))?);
                    while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                        let line: Vec<u8> = buffer.drain(..=end).collect();
                        // An event that cannot be read is no reason to stop: the next full look makes up for it.
                        if let Some(event) = Event::read(&line) {
                            let _ = sender.send(Ok(event)).await;
                        }
                    }
                }
                Err(Lost("the daemon has closed the stream of events".to_owned()))
            };
            tokio::select! {
                ended = read => {
                    let ended: std::result::Result<(), Lost> = ended;
                    if let Err(lost) = ended {
                        let _ = sender.send(Err(lost)).await;
                    }
                }
                () = sender.closed() => {}
            }
        });
        receiver
    }

    fn take(&mut self, event: Event) -> String {
        self.heard = Timestamp::now();
        self.event = event.time.or(self.event.take());
        event.service
    }

    /// The instances on their way to another status.
    fn restless(&self) -> Vec<InstanceId> {
        let picture = self.pictures.borrow();
        picture
            .instances
            .values()
            .filter(|instance| instance.status.is_transitional() || instance.status == InstanceStatus::Unknown)
            .filter(|instance| {
                self.changed
                    .get(&instance.id)
                    .is_none_or(|since| since.elapsed() < RESTLESS_FOR)
            })
            .map(|instance| instance.id)
            .collect()
    }

    async fn look_at_everything(&mut self) -> Result<()> {
        let look = self.looks.fetch_add(1, Ordering::SeqCst) + 1;
        let All {
            instances,
            errors,
            services,
        } = self.inner.see_all(label::ID).await?;
        for error in errors {
            tracing::warn!(%error, "a service cannot be watched");
        }
        self.heard = Timestamp::now();
        let mut all: BTreeMap<InstanceId, Arc<Instance>> = BTreeMap::new();
        let before = Arc::clone(&self.pictures.borrow().instances);
        for instance in instances {
            let kept = self.kept(&before, instance);
            all.insert(kept.id, kept);
        }
        self.changed.retain(|id, _| all.contains_key(id));
        // By these a deletion is understood, whose event names a service that is gone.
        self.services = services;
        let same = before.len() == all.len() && before.iter().zip(&all).all(|((_, a), (_, b))| Arc::ptr_eq(a, b));
        self.pictures.send_modify(|picture| {
            picture.look = look;
            if !same {
                picture.instances = Arc::new(all);
            }
        });
        Ok(())
    }

    async fn look_at(&mut self, ids: Vec<InstanceId>) -> Result<()> {
        if ids.len() > FEW {
            return self.look_at_everything().await;
        }
        let inner = Arc::clone(&self.inner);
        let looks = ids.into_iter().map(|id| {
            let inner = Arc::clone(&inner);
            async move { (id, inner.glance(id).await) }
        });
        let looked: Vec<_> = stream::iter(looks).buffer_unordered(8).collect().await;
        self.heard = Timestamp::now();
        let before = Arc::clone(&self.pictures.borrow().instances);
        let mut after = (*before).clone();
        for (id, instance) in looked {
            match instance? {
                Glance::Seen(service, instance) => {
                    self.services.insert(service, id);
                    after.insert(id, self.kept(&before, *instance));
                }
                Glance::Gone => {
                    after.remove(&id);
                    self.services.retain(|_, other| *other != id);
                }
                // It is no reason to leave the others: they see it again with everything else.
                Glance::Unreadable(error) => tracing::warn!(instance = %id, %error, "an instance cannot be watched"),
            }
        }
        let same = before.len() == after.len() && before.iter().zip(&after).all(|((_, a), (_, b))| Arc::ptr_eq(a, b));
        if !same {
            self.pictures.send_modify(|picture| picture.instances = Arc::new(after));
        }
        Ok(())
    }

    async fn look_at_services(&mut self, services: BTreeSet<String>) -> Result<()> {
        let mut ids = Vec::new();
        for service in services {
            match self.services.get(&service) {
                Some(id) => ids.push(*id),
                None => {
                    let Some(id) = self.inner.whose(&service).await? else {
                        continue;
                    };
                    self.services.insert(service, id);
                    ids.push(id);
                }
            }
        }
        self.look_at(ids).await
    }

    /// The instance as it was, when nothing but the time of the look is new.
    fn kept(&mut self, before: &BTreeMap<InstanceId, Arc<Instance>>, instance: Instance) -> Arc<Instance> {
        match before.get(&instance.id) {
            Some(old) if same(old, &instance) => Arc::clone(old),
            old => {
                if old.is_none_or(|old| old.status != instance.status) {
                    self.changed.insert(instance.id, Instant::now());
                }
                Arc::new(instance)
            }
        }
    }
}

impl Inner {
    /// An instance as a list shows it. Fails only where the daemon cannot be asked.
    async fn glance(&self, id: InstanceId) -> Result<Glance> {
        let mut services = self.services_of(id).await?;
        if services.len() > 1 {
            return Ok(Glance::Unreadable(ambiguous(id, &services)));
        }
        let Some(service) = services.pop() else {
            return Ok(Glance::Gone);
        };
        let Some(seen) = self.with_tasks(service).await? else {
            return Ok(Glance::Gone);
        };
        let mut disk = facts::Disk::default();
        if facts::label_of(&seen.service, label::STORAGE).is_none() {
            let path = facts::data_source(&seen.service).unwrap_or_default().to_owned();
            disk = self
                .storage
                .quotas(vec![path])
                .await
                .into_iter()
                .next()
                .unwrap_or_default();
        }
        Ok(match self.observe_with(&seen, disk) {
            Ok(instance) => Glance::Seen(seen.service_id().to_owned(), Box::new(instance)),
            Err(error) => Glance::Unreadable(error),
        })
    }

    /// The instance of a service. `None`: the service is gone, or no instance's.
    async fn whose(&self, service: &str) -> Result<Option<InstanceId>> {
        let Ok(name) = segment(service) else { return Ok(None) };
        match self.wire.get_json(&format!("/services/{name}"), &[]).await {
            Ok(service) => Ok(facts::id_of(&service).ok()),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }
}

/// What an event of the daemon is worth: which service, and when.
struct Event {
    service: String,
    time: Option<String>,
}

impl Event {
    fn read(line: &[u8]) -> Option<Self> {
        let event: Value = serde_json::from_slice(line).ok()?;
        let nanos = event.get("timeNano").and_then(Value::as_i64);
        Some(Self {
            service: event.pointer("/Actor/ID")?.as_str()?.to_owned(),
            time: nanos
                .and_then(|nanos| Timestamp::from_nanosecond(i128::from(nanos)).ok())
                .map(seconds),
        })
    }
}

/// A time as the API takes it: seconds with nine decimals.
pub(crate) fn seconds(time: Timestamp) -> String {
    format!("{}.{:09}", time.as_second(), time.subsec_nanosecond())
}

/// Equal but for when it was seen.
fn same(a: &Instance, b: &Instance) -> bool {
    let mut b = b.clone();
    b.facts.observed_at = a.facts.observed_at;
    b.provenance.observed_at = a.provenance.observed_at;
    *a == b
}

/// What one subscriber was told.
pub(crate) struct Compared {
    filter: InstanceFilter,
    delivered: BTreeMap<InstanceId, Arc<Instance>>,
    lost: u64,
    synced: u64,
    /// Pictures from before this look are older than the subscription.
    look: u64,
}

impl Compared {
    pub(crate) fn new(filter: InstanceFilter) -> Self {
        Self {
            filter,
            delivered: BTreeMap::new(),
            lost: 0,
            synced: 0,
            look: 0,
        }
    }

    /// Begins with the picture of another follower: its earlier losses are not this subscriber's, and neither is what it
    /// saw before this look.
    pub(crate) fn restart(&mut self, picture: &Picture, look: u64) {
        (self.synced, self.look) = (0, look);
        self.lost = if picture.out_of_touch().is_none() {
            picture.lost
        } else {
            0
        };
    }

    #[cfg(test)]
    pub(crate) fn delivered_now(&self) -> Arc<BTreeMap<InstanceId, Arc<Instance>>> {
        Arc::new(self.delivered.clone())
    }

    /// How a picture differs from what was told.
    pub(crate) fn with(&mut self, picture: &Picture) -> VecDeque<InstanceEvent> {
        let mut events = VecDeque::new();
        // Whoever did not look in the meantime is told of an absence that is over, too.
        if picture.lost > self.lost
            && let Some(stale) = &picture.stale
        {
            events.push_back(InstanceEvent::Stale(stale.clone()));
            self.lost = picture.lost;
        }
        if picture.look < self.look {
            return events;
        }
        // A picture that was never whole says nothing about absence.
        if picture.synced > 0 {
            self.differences(picture, &mut events);
        }
        if picture.synced > self.synced && picture.out_of_touch().is_none() {
            events.push_back(InstanceEvent::Synced);
            self.synced = picture.synced;
        }
        events
    }

    fn differences(&mut self, picture: &Picture, events: &mut VecDeque<InstanceEvent>) {
        for (id, instance) in picture.instances.iter() {
            let known = self.delivered.get(id);
            if known.is_some_and(|known| Arc::ptr_eq(known, instance)) {
                continue;
            }
            if self.filter.matches(instance) {
                self.delivered.insert(*id, Arc::clone(instance));
                events.push_back(InstanceEvent::Applied(Box::new((**instance).clone())));
            } else if known.is_some() {
                self.delivered.remove(id);
                events.push_back(InstanceEvent::Deleted(Box::new((**instance).clone())));
            }
        }
        let gone: Vec<InstanceId> = self
            .delivered
            .keys()
            .filter(|id| !picture.instances.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            if let Some(last) = self.delivered.remove(&id) {
                events.push_back(InstanceEvent::Deleted(Box::new((*last).clone())));
            }
        }
    }
}

/// One subscriber.
struct Subscriber {
    inner: Arc<Inner>,
    pictures: Option<watch::Receiver<Picture>>,
    compared: Compared,
    queue: VecDeque<InstanceEvent>,
}

impl Subscriber {
    async fn next(mut self) -> Option<(InstanceEvent, Self)> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Some((event, self));
            }
            let picture = match &mut self.pictures {
                None => {
                    let (mut pictures, look) = Hub::subscribe(&self.inner);
                    let picture = pictures.borrow_and_update().clone();
                    self.compared.restart(&picture, look);
                    self.pictures = Some(pictures);
                    picture
                }
                Some(pictures) => match pictures.changed().await {
                    Ok(()) => pictures.borrow_and_update().clone(),
                    // The task that asks has gone with its runtime: start another.
                    Err(_) => {
                        self.pictures = None;
                        let reason = "the watch was interrupted".to_owned();
                        self.queue
                            .push_back(InstanceEvent::Stale(Staleness::new(Timestamp::now(), reason)));
                        continue;
                    }
                },
            };
            self.queue = self.compared.with(&picture);
        }
    }
}

pub(crate) fn watch(inner: Arc<Inner>, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
    let subscriber = Subscriber {
        inner,
        pictures: None,
        compared: Compared::new(filter),
        queue: VecDeque::new(),
    };
    stream::unfold(subscriber, Subscriber::next).boxed()
}
