//! One watch over both sides: each instance from where it lives.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;

use super::Sides;
use super::by_id::ById;
use super::placement::{Place, PlacementStore};
use crate::{Instance, InstanceEvent, InstanceFilter, InstanceId, Staleness};

enum Item {
    Event(Place, InstanceEvent),
    Moved(InstanceId),
}

impl Item {
    /// The instance whose placement decides what becomes of it.
    fn instance(&self) -> Option<InstanceId> {
        match self {
            Self::Event(_, InstanceEvent::Applied(instance) | InstanceEvent::Deleted(instance)) => Some(instance.id),
            Self::Moved(id) => Some(*id),
            Self::Event(..) => None,
        }
    }
}

/// How soon a placement that could not be read is asked for again.
const AGAIN: Duration = Duration::from_secs(1);

/// What both sides have said last about one instance: when it moves, what the new side says is shown at once. It may
/// never be said again.
#[derive(Default)]
struct Tenant {
    sides: [Option<Box<Instance>>; 2],
    shown: Option<Place>,
}

struct Merge {
    placement: Arc<dyn PlacementStore>,
    items: BoxStream<'static, Item>,
    tenants: ById<Tenant>,
    in_step: [bool; 2],
    synced: bool,
    /// Waits for its placement, and all that comes after waits for it.
    waiting: Option<Item>,
    queue: std::collections::VecDeque<InstanceEvent>,
}

const fn index(place: Place) -> usize {
    match place {
        Place::Primary => 0,
        Place::Secondary => 1,
    }
}

pub(super) fn merged(sides: &Sides, filter: &InstanceFilter) -> BoxStream<'static, InstanceEvent> {
    let placement = Arc::clone(&sides.settings.placement);
    let moves = placement.changes().map(|(id, _)| Item::Moved(id)).boxed();
    let items = [
        side(sides, Place::Primary, filter),
        side(sides, Place::Secondary, filter),
        moves,
    ];
    let merge = Merge {
        placement,
        items: stream::select_all(items).boxed(),
        tenants: ById::default(),
        in_step: [false; 2],
        synced: false,
        waiting: None,
        queue: std::collections::VecDeque::new(),
    };
    stream::unfold(merge, |mut merge| async move {
        loop {
            if let Some(event) = merge.queue.pop_front() {
                return Some((event, merge));
            }
            if let Some(item) = merge.waiting.take() {
                tokio::time::sleep(AGAIN).await;
                merge.take(item).await;
                if merge.waiting.is_none() {
                    merge.catch_up().await;
                }
                continue;
            }
            match merge.items.next().await {
                Some(item) => merge.take(item).await,
                // A watch never ends, whatever becomes of the sides.
                None => std::future::pending::<()>().await,
            }
        }
    })
    .boxed()
}

/// One side's watch. The secondary's panic is the end of its watch, not of the caller.
fn side(sides: &Sides, place: Place, filter: &InstanceFilter) -> BoxStream<'static, Item> {
    let orchestrator = sides.at(place).clone();
    let filter = filter.clone();
    if place == Place::Primary {
        return orchestrator
            .watch(filter)
            .map(move |event| Item::Event(place, event))
            .boxed();
    }
    let watch = AssertUnwindSafe(async move { orchestrator.watch(filter) })
        .catch_unwind()
        .into_stream()
        .flat_map(|started| match started {
            Ok(events) => AssertUnwindSafe(events).catch_unwind().boxed(),
            Err(panic) => stream::iter([Err(panic)]).boxed(),
        });
    watch
        .map(move |event| {
            let event = event.unwrap_or_else(|_| {
                InstanceEvent::Stale(Staleness::new(Timestamp::now(), "the secondary's watch has panicked"))
            });
            Item::Event(place, event)
        })
        .boxed()
}

impl Merge {
    /// An error is not "on the primary": the event waits until it is known whose it is.
    async fn take(&mut self, item: Item) {
        let mut home = Place::Primary;
        if let Some(id) = item.instance() {
            match self.placement.get(id).await {
                Ok(placement) => home = placement.unwrap_or_default().read_from(),
                Err(error) => {
                    self.waiting = Some(item);
                    if std::mem::take(&mut self.synced) {
                        let why = format!("it is not known on which side {id} lives: {error}");
                        self.queue
                            .push_back(InstanceEvent::Stale(Staleness::new(Timestamp::now(), why)));
                    }
                    return;
                }
            }
        }
        match item {
            Item::Moved(id) => {
                if let Some(tenant) = self.tenants.get_mut(id)
                    && tenant.shown != Some(home)
                    && let Some(instance) = &tenant.sides[index(home)]
                {
                    tenant.shown = Some(home);
                    self.queue.push_back(InstanceEvent::Applied(instance.clone()));
                }
                let why = "the side that a tenant moves to is not in step";
                self.judge(Staleness::new(Timestamp::now(), why)).await;
            }
            Item::Event(place, InstanceEvent::Applied(instance)) => {
                let mut tenant = self.tenants.remove(instance.id).unwrap_or_default();
                tenant.sides[index(place)] = Some(instance.clone());
                if home == place {
                    tenant.shown = Some(place);
                }
                self.tenants.put(instance.id, tenant);
                if home == place {
                    self.queue.push_back(InstanceEvent::Applied(instance));
                }
            }
            Item::Event(place, InstanceEvent::Deleted(instance)) => {
                let mut tenant = self.tenants.remove(instance.id).unwrap_or_default();
                tenant.sides[index(place)] = None;
                if home == place {
                    tenant.shown = None;
                }
                if tenant.sides.iter().any(Option::is_some) {
                    self.tenants.put(instance.id, tenant);
                }
                if home == place {
                    self.queue.push_back(InstanceEvent::Deleted(instance));
                }
            }
            Item::Event(place, InstanceEvent::Synced) => {
                self.in_step[index(place)] = true;
                self.catch_up().await;
            }
            Item::Event(place, InstanceEvent::Stale(staleness)) => {
                self.in_step[index(place)] = false;
                self.judge(staleness).await;
            }
        }
    }

    /// Says so when the watch is no more in step, or is again.
    async fn judge(&mut self, why: Staleness) {
        if self.synced && !self.whole().await {
            self.synced = false;
            self.queue.push_back(InstanceEvent::Stale(why));
        }
        self.catch_up().await;
    }

    async fn catch_up(&mut self) {
        if !self.synced && self.whole().await {
            self.synced = true;
            self.queue.push_back(InstanceEvent::Synced);
        }
    }

    /// The secondary counts only while somebody lives there.
    async fn whole(&mut self) -> bool {
        let [primary, secondary] = self.in_step;
        primary && (secondary || !self.placement.secondary_is_used().await.unwrap_or(true))
    }
}
