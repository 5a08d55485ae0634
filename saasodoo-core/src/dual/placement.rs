//! Where each tenant lives now.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use super::by_id::ById;
use crate::{InstanceId, Result};

/// One of the two platforms of a [`DualRun`](super::DualRun).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The primary.
    Primary,
    /// The secondary.
    Secondary,
}

impl Place {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Primary => Self::Secondary,
            Self::Secondary => Self::Primary,
        }
    }

    /// The place's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Secondary => "secondary",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is recorded about where an instance lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// It lives there.
    At(Place),
    /// It is on its way from there to the other one. A dual run reads it where it came from, and changes nothing about
    /// it: only the migration knows which side may write.
    Moving {
        /// Where it lived.
        from: Place,
    },
}

impl Placement {
    /// The side that is asked about it.
    #[must_use]
    pub const fn read_from(self) -> Place {
        match self {
            Self::At(place) | Self::Moving { from: place } => place,
        }
    }

    /// True on its way.
    #[must_use]
    pub const fn is_moving(self) -> bool {
        matches!(self, Self::Moving { .. })
    }
}

impl Default for Placement {
    /// On the primary: where everybody lives about whom nothing is recorded.
    fn default() -> Self {
        Self::At(Place::Primary)
    }
}

/// Remembers which instances do not live where the default says. A service keeps this where it keeps its instances;
/// answers come from memory, because every call of a dual run asks.
///
/// It must outlive the process: after a restart that forgets it, a tenant that was moved is taken for one that lives
/// on the primary, and can be started there while it runs on the secondary.
#[async_trait]
pub trait PlacementStore: fmt::Debug + Send + Sync + 'static {
    /// What is recorded about the instance; `None` when nothing is, which means that it lives on the primary.
    ///
    /// # Errors
    /// When it cannot be read; the call that asked fails then.
    async fn get(&self, id: InstanceId) -> Result<Option<Placement>>;

    /// Records where the instance lives from now on; ends a move.
    ///
    /// # Errors
    /// When it was not recorded.
    async fn set(&self, id: InstanceId, place: Place) -> Result<()>;

    /// Records that the instance is about to be stopped in order to be moved off this side. Called again after a crash.
    ///
    /// # Errors
    /// When it was not recorded; the migration does not go on then.
    async fn begin_move(&self, id: InstanceId, from: Place) -> Result<()>;

    /// Whether any instance lives on the secondary, or is on its way to it or from it. While none does, nothing waits
    /// for the secondary.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn secondary_is_used(&self) -> Result<bool>;

    /// What is recorded from now on, in order, for those who watch and for changes under way. Never ends.
    ///
    /// Who reads it too slowly may miss what was recorded in between, but never what is recorded last about an instance:
    /// a store that has dropped changes gives what it knows about all instead.
    fn changes(&self) -> BoxStream<'static, (InstanceId, Placement)> {
        stream::pending().boxed()
    }
}

/// Placements in memory: for tests, and for a service that fills it from its database when it starts. The process
/// forgets them; see [`JournalPlacement`](super::JournalPlacement).
#[derive(Debug)]
pub struct MemoryPlacement {
    places: Arc<RwLock<ById<Placement>>>,
    changes: broadcast::Sender<(InstanceId, Placement)>,
}

impl Default for MemoryPlacement {
    fn default() -> Self {
        Self {
            places: Arc::default(),
            changes: broadcast::Sender::new(1024),
        }
    }
}

impl MemoryPlacement {
    /// Everybody lives on the primary.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// These live there, the rest on the primary.
    #[must_use]
    pub fn of(places: impl IntoIterator<Item = (InstanceId, Place)>) -> Self {
        let new = Self::default();
        for (id, place) in places {
            new.put(id, Placement::At(place));
        }
        new
    }

    pub(super) fn find(&self, id: InstanceId) -> Option<Placement> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.get(id).copied()
    }

    pub(super) fn put(&self, id: InstanceId, placement: Placement) {
        self.places
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .put(id, placement);
        let _ = self.changes.send((id, placement));
    }
}

#[async_trait]
impl PlacementStore for MemoryPlacement {
    async fn get(&self, id: InstanceId) -> Result<Option<Placement>> {
        Ok(self.find(id))
    }

    async fn set(&self, id: InstanceId, place: Place) -> Result<()> {
        self.put(id, Placement::At(place));
        Ok(())
    }

    async fn begin_move(&self, id: InstanceId, from: Place) -> Result<()> {
        self.put(id, Placement::Moving { from });
        Ok(())
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        Ok(places
            .iter()
            .any(|(_, placement)| *placement != Placement::At(Place::Primary)))
    }

    fn changes(&self) -> BoxStream<'static, (InstanceId, Placement)> {
        let (receiver, places) = (self.changes.subscribe(), Arc::clone(&self.places));
        let behind = VecDeque::new();
        stream::unfold(
            (receiver, places, behind),
            |(mut receiver, places, mut behind)| async move {
                loop {
                    if let Some(change) = behind.pop_front() {
                        return Some((change, (receiver, places, behind)));
                    }
                    match receiver.recv().await {
                        Ok(change) => return Some((change, (receiver, places, behind))),
                        // Nobody knows whose changes were missed.
                        Err(broadcast::error::RecvError::Lagged(_)) => {
                            let places = places.read().unwrap_or_else(PoisonError::into_inner);
                            behind.extend(places.iter().copied());
                        }
                        // The store is gone and nothing changes any more; the stream goes on all the same.
                        Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                    }
                }
            },
        )
        .boxed()
    }
}
