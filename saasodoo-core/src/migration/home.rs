//! Where a tenant lives by the migrations that are over.

use serde::{Deserialize, Serialize};

use super::{Record, Side, Step};
use crate::BackendKind;

/// Where a migration that is over has left a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Home {
    /// The kind of the platform.
    pub backend: BackendKind,
    /// Which side of that migration it was: between two platforms of one kind the kind does not tell.
    pub side: Side,
}

impl Record {
    /// The first record of a migration that follows another one of the same instance.
    pub(super) fn after(mut self, last: Option<&Self>) -> Self {
        if let Some(last) = last {
            self.lived_on = last.home();
            // What was asked then may still happen.
            let began = self.began;
            let open = last.doubts.iter().filter(|doubt| doubt.until > began);
            self.doubts = open.cloned().collect();
        }
        self
    }

    /// True from the end of the preflight on: the tenant was seen on the source, and not on the target. Before that a
    /// migration knows no better where it lives than the one before it did.
    #[must_use]
    pub fn passed_preflight(&self) -> bool {
        self.create_tried || self.history.iter().any(|run| run.step == Step::CreateTarget)
    }

    /// Where this migration, now over, has left the tenant; `None` when it has not even found it.
    fn home(&self) -> Option<Home> {
        let on = |side| {
            let backend = match side {
                Side::Source => self.source,
                Side::Target => self.target,
            };
            Some(Home { backend, side })
        };
        if self.is_committed() {
            return on(Side::Target);
        }
        if self.passed_preflight() {
            return on(Side::Source);
        }
        self.lived_on
            .or_else(|| self.inventory.is_some().then(|| on(Side::Source)).flatten())
    }
}
