//! What an operator accepts.

use serde::{Deserialize, Serialize};

use super::Side;

/// Which obstacles of the preflight the operator accepts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Force {
    /// The instance is not well on the source.
    pub unhealthy_source: bool,
    /// Parts of the source's objects could not be read into the spec and will be lost.
    pub unparsed: bool,
    /// The source does not have the instance any more, and this migration has not deleted it there. Holds for the call
    /// that it is given to, and is not kept.
    pub absent_source: bool,
    /// The target does not have the instance any more, and this migration has not deleted it there. Holds for the call
    /// that it is given to, and is not kept.
    pub absent_target: bool,
    /// The source is the platform that it was when the migration began, under another name. Holds for the call that it
    /// is given to, and is not kept.
    pub renamed_source: bool,
    /// The target is the platform that it was when the migration began, under another name. Holds for the call that it
    /// is given to, and is not kept.
    pub renamed_target: bool,
    /// What was changed on the target since the commit is lost on the way back. Holds for the call that it is given to,
    /// and is not kept.
    pub lose_changes: bool,
}

impl Force {
    /// Accepts nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Accepts an instance that is not well.
    #[must_use]
    pub fn unhealthy_source(mut self) -> Self {
        self.unhealthy_source = true;
        self
    }

    /// Accepts that what could not be parsed is lost.
    #[must_use]
    pub fn unparsed(mut self) -> Self {
        self.unparsed = true;
        self
    }

    /// Accepts that an instance is gone from a side where it was, after the time that its process may take to end. Given
    /// before it was there it means nothing. Only for an operator who has seen, on that very platform, that nothing of
    /// it is left.
    #[must_use]
    pub fn accept_absent(mut self, side: Side) -> Self {
        match side {
            Side::Source => self.absent_source = true,
            Side::Target => self.absent_target = true,
        }
        self
    }

    pub(super) fn accepts_absent(self, side: Side) -> bool {
        match side {
            Side::Source => self.absent_source,
            Side::Target => self.absent_target,
        }
    }

    /// Accepts that a side has another [identity](super::MigratorBuilder::identities) than when the migration began. Only
    /// for an operator who knows that it is the same platform: another manager of the same swarm, another address of the
    /// same API server.
    #[must_use]
    pub fn accept_platform(mut self, side: Side) -> Self {
        match side {
            Side::Source => self.renamed_source = true,
            Side::Target => self.renamed_target = true,
        }
        self
    }

    pub(super) fn accepts_platform(self, side: Side) -> bool {
        match side {
            Side::Source => self.renamed_source,
            Side::Target => self.renamed_target,
        }
    }

    /// Accepts that changes made on the target since the commit are lost.
    #[must_use]
    pub fn lose_changes(mut self) -> Self {
        self.lose_changes = true;
        self
    }

    /// What is kept for later calls.
    pub(super) fn lasting(mut self) -> Self {
        self.absent_source = false;
        self.absent_target = false;
        self.renamed_source = false;
        self.renamed_target = false;
        self.lose_changes = false;
        self
    }
}
