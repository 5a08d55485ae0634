//! One listing over both sides: each instance once, from where it lives.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};

use super::Sides;
use super::by_id::ById;
use super::moves::Moves;
use super::placement::Place;
use crate::{Instance, InstanceFilter, InstanceId, Result};

/// How often those are listed again who have moved meanwhile.
const AGAIN: usize = 3;

struct Listing {
    sides: Arc<Sides>,
    filter: InstanceFilter,
    moves: Moves,
    /// True when nobody lived on the secondary at first.
    primary_only: bool,
    now: Option<(Place, BoxStream<'static, Result<Instance>>)>,
    next: VecDeque<(Place, InstanceFilter)>,
    given: ById<()>,
    /// On which side an instance was met that lived on the other.
    elsewhere: ById<Place>,
    /// Those that have certainly moved.
    moved: ById<()>,
    again: usize,
}

pub(super) fn listed(sides: Arc<Sides>, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
    stream::once(async move {
        match Listing::begun(sides, filter).await {
            Ok(listing) => listing.into_stream(),
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    })
    .flatten()
    .boxed()
}

async fn home(sides: &Sides, id: InstanceId) -> Result<Place> {
    let placement = sides.settings.placement.get(id).await?;
    Ok(placement.unwrap_or_default().read_from())
}

impl Listing {
    async fn begun(sides: Arc<Sides>, filter: InstanceFilter) -> Result<Self> {
        let placement = &sides.settings.placement;
        let moves = Moves::from_now(&**placement);
        let primary_only = !placement.secondary_is_used().await?;
        let mut next = VecDeque::from([(Place::Primary, filter.clone())]);
        if !primary_only {
            next.push_back((Place::Secondary, filter.clone()));
        }
        Ok(Self {
            sides,
            filter,
            moves,
            primary_only,
            now: None,
            next,
            given: ById::default(),
            elsewhere: ById::default(),
            moved: ById::default(),
            again: AGAIN,
        })
    }

    /// Ends after the first error, as the trait says.
    fn into_stream(self) -> BoxStream<'static, Result<Instance>> {
        stream::unfold(Some(self), |listing| async move {
            let mut listing = listing?;
            match listing.next().await {
                Ok(Some(instance)) => Some((Ok(instance), Some(listing))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn next(&mut self) -> Result<Option<Instance>> {
        loop {
            if let Some((place, items)) = &mut self.now {
                let place = *place;
                match items.next().await {
                    Some(item) => {
                        let instance = item?;
                        if self.is_due(place, instance.id).await? {
                            return Ok(Some(instance));
                        }
                    }
                    None => self.now = None,
                }
                continue;
            }
            if self.next.is_empty() {
                self.look_for_the_moved().await?;
            }
            let Some((place, filter)) = self.next.pop_front() else {
                return Ok(None);
            };
            self.now = Some((place, self.sides.at(place).list(filter)));
        }
    }

    /// Whether this instance, met on that side, is to be given.
    async fn is_due(&mut self, place: Place, id: InstanceId) -> Result<bool> {
        if home(&self.sides, id).await? == place {
            let first = self.given.get(id).is_none();
            self.given.put(id, ());
            return Ok(first);
        }
        // It lived here when this began, or it lives on neither side.
        if self.primary_only || self.elsewhere.get(id).is_some_and(|before| *before != place) {
            self.moved.put(id, ());
        }
        self.elsewhere.put(id, place);
        Ok(false)
    }

    /// Who moved to a side after it was listed, and off the other before, was met on neither.
    async fn look_for_the_moved(&mut self) -> Result<()> {
        let mut moved = std::mem::take(&mut self.moved);
        for (id, _) in self.moves.so_far() {
            moved.put(id, ());
        }
        if self.again == 0 {
            return Ok(());
        }
        self.again -= 1;
        self.elsewhere = ById::default();
        let wanted =
            |id: InstanceId| self.filter.ids.is_empty() || self.filter.ids.iter().any(|known| known.matches(id));
        let (mut primary, mut secondary) = (Vec::new(), Vec::new());
        for &(id, ()) in moved.iter() {
            if self.given.get(id).is_some() || !wanted(id) {
                continue;
            }
            match home(&self.sides, id).await? {
                Place::Primary => primary.push(id),
                Place::Secondary => secondary.push(id),
            }
        }
        for (place, ids) in [(Place::Primary, primary), (Place::Secondary, secondary)] {
            if !ids.is_empty() {
                let mut filter = self.filter.clone();
                filter.ids = ids;
                self.next.push_back((place, filter));
            }
        }
        Ok(())
    }
}
