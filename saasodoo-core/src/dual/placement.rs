//! Where each tenant lives now.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{PoisonError, RwLock};

use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

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

/// Remembers which instances do not live where the default says. A service keeps this where it keeps its instances;
/// answers come from memory, because every call of a dual run asks.
#[async_trait]
pub trait PlacementStore: fmt::Debug + Send + Sync + 'static {
    /// Where the instance lives; `None` when nothing was recorded, which means the primary.
    ///
    /// # Errors
    /// When it cannot be read; the call that asked fails then.
    async fn get(&self, id: InstanceId) -> Result<Option<Place>>;

    /// Records where the instance lives from now on.
    ///
    /// # Errors
    /// When it was not recorded.
    async fn set(&self, id: InstanceId, place: Place) -> Result<()>;

    /// Whether any instance lives on the secondary. While none does, nothing waits for the secondary.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn secondary_is_used(&self) -> Result<bool>;

    /// What is recorded from now on, for those who watch. Never ends.
    fn changes(&self) -> BoxStream<'static, (InstanceId, Place)> {
        stream::pending().boxed()
    }
}

/// Placements in memory.
#[derive(Debug)]
pub struct MemoryPlacement {
    places: RwLock<BTreeMap<InstanceId, Place>>,
    changes: broadcast::Sender<(InstanceId, Place)>,
}

impl Default for MemoryPlacement {
    fn default() -> Self {
        Self {
            places: RwLock::default(),
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
        Self {
            places: RwLock::new(places.into_iter().collect()),
            ..Self::default()
        }
    }
}

#[async_trait]
impl PlacementStore for MemoryPlacement {
    async fn get(&self, id: InstanceId) -> Result<Option<Place>> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        Ok(match places.get(&id) {
            Some(place) => Some(*place),
            // The same instance under its other id: eight digits, or the whole UUID.
            None => places
                .iter()
                .find(|(other, _)| other.matches(id))
                .map(|(_, place)| *place),
        })
    }

    async fn set(&self, id: InstanceId, place: Place) -> Result<()> {
        self.places
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, place);
        let _ = self.changes.send((id, place));
        Ok(())
    }

    async fn secondary_is_used(&self) -> Result<bool> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        Ok(places.values().any(|place| *place == Place::Secondary))
    }

    fn changes(&self) -> BoxStream<'static, (InstanceId, Place)> {
        let receiver = self.changes.subscribe();
        stream::unfold(receiver, |mut receiver| async move {
            loop {
                match receiver.recv().await {
                    Ok(change) => return Some((change, receiver)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    // The store is gone and nothing changes any more; the stream goes on all the same.
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        })
        .boxed()
    }
}
