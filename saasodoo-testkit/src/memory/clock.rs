//! The simulation's clock: tokio's, so that a paused runtime makes everything instant and exact.

use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// A point in the simulation: how long it has been going on.
pub(super) type Moment = Duration;

/// Starts at the first question, so that an orchestrator can be made outside of the runtime it is used in.
#[derive(Debug)]
pub(super) struct Clock {
    start: OnceLock<Instant>,
    base: Timestamp,
}

impl Clock {
    /// `base` is cut to whole seconds: the rules of a status count seconds, and a fraction would shift them from run to
    /// run.
    pub(super) fn starting_at(base: Timestamp) -> Self {
        Self {
            start: OnceLock::new(),
            base: Timestamp::from_second(base.as_second()).unwrap_or(base),
        }
    }

    pub(super) fn now(&self) -> Moment {
        let start = *self.start.get_or_init(Instant::now);
        Instant::now().saturating_duration_since(start)
    }

    /// The instant at which tokio's timer has to fire for this moment.
    pub(super) fn instant(&self, at: Moment) -> Instant {
        *self.start.get_or_init(Instant::now) + at
    }

    pub(super) fn base(&self) -> Timestamp {
        self.base
    }
}

/// The time of day at a moment.
pub(super) fn stamp(base: Timestamp, at: Moment) -> Timestamp {
    base.checked_add(at).unwrap_or(Timestamp::MAX)
}
