//! What can go wrong with a migration, and when.

use std::fmt;
use std::time::Duration;

use saasodoo_core::ErrorKind;
use saasodoo_core::migration::Side;

/// What somebody else does, who knows nothing of the migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Deed {
    /// Starts the instance; a hold refuses that.
    Start,
    /// Takes the hold away.
    Resume,
    /// Takes the hold away and starts the instance: on purpose.
    ForceStart,
    /// Stops the instance.
    Stop,
    /// Suspends the instance.
    Suspend,
    /// Deletes the instance's objects.
    Delete,
    /// Creates an instance of the same id with another spec, where there is none.
    CreateOther,
    /// Gives the instance another image.
    Change,
}

impl Deed {
    const ALL: [Self; 8] = [
        Self::Start,
        Self::Resume,
        Self::ForceStart,
        Self::Stop,
        Self::Suspend,
        Self::Delete,
        Self::CreateOther,
        Self::Change,
    ];
}

/// One thing that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mishap {
    /// The process dies before the call leaves it.
    CrashBefore,
    /// The process dies when the call has had its effect.
    CrashAfter,
    /// The process dies, and the call, which is on its way, has its effect so much later.
    CrashAndLate(Duration),
    /// The call fails, for a reason that passes, without an effect.
    Fails,
    /// The call is refused for good.
    Refused,
    /// The call has its effect, and its answer is lost.
    LostAnswer,
    /// The answer is lost, and the call has its effect so much later.
    Late(Duration),
    /// The answer takes so long.
    Slow(Duration),
    /// That platform cannot be reached for so long.
    Outage(Duration),
    /// Somebody else does something right before the call.
    Competitor(Side, Deed),
    /// From then on the instance's node does not answer; what runs there goes on running.
    NodeLost(Side),
    /// From then on the instance does not become ready on that side, or stops being so.
    Unready(Side),
    /// From then on the instance's process ends as soon as it starts.
    CrashLoop(Side),
    /// From then on until the operator has looked the instance is not found on that side, and goes on running: what
    /// answers is another cluster, namespace or daemon.
    NotFound(Side),
}

impl Mishap {
    /// Everything that is explored.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let secs = Duration::from_secs;
        let mut all = vec![
            Self::CrashBefore,
            Self::CrashAfter,
            Self::CrashAndLate(secs(5)),
            Self::CrashAndLate(secs(90)),
            Self::Fails,
            Self::Refused,
            Self::LostAnswer,
            Self::Late(secs(3)),
            Self::Late(secs(100)),
            Self::Slow(secs(10)),
            Self::Slow(secs(150)),
            Self::Outage(secs(20)),
            Self::Outage(secs(300)),
        ];
        for side in [Side::Source, Side::Target] {
            all.extend(Deed::ALL.map(|deed| Self::Competitor(side, deed)));
            all.extend([
                Self::NodeLost(side),
                Self::Unready(side),
                Self::CrashLoop(side),
                Self::NotFound(side),
            ]);
        }
        all
    }

    pub(super) fn error_kind(self) -> ErrorKind {
        match self {
            Self::Refused => ErrorKind::Forbidden,
            _ => ErrorKind::Unavailable,
        }
    }
}

/// A mishap at a point. Points are counted from 1: each call that the migration makes on a platform or a hook and each
/// entry that it appends to its journal, in the order in which they begin, over all resumptions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Planned {
    /// Where.
    pub point: u32,
    /// What.
    pub mishap: Mishap,
}

/// What the operator of the migration wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Story {
    /// A running tenant moves.
    Moves,
    /// A running tenant does not come up on the target, and goes back.
    GoesBack,
    /// A running tenant moves, is committed, and is taken back within the window.
    TakenBack,
    /// A running tenant moves, gets another image on the target, and is taken back.
    ChangedAndTakenBack,
    /// A running tenant moves, is stopped on the target, and is taken back.
    StoppedAndTakenBack,
    /// A running tenant moves, is suspended by billing on the target, and is taken back.
    SuspendedAndTakenBack,
    /// A running tenant moves, its objects on the target are deleted, and it is taken back.
    DeletedAndTakenBack,
    /// A running tenant moves, and the source is removed.
    Finishes,
    /// A tenant that is stopped moves.
    Stopped,
    /// A tenant that billing has suspended moves.
    Suspended,
    /// The operator gives up after some steps.
    Aborted,
}

impl Story {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Moves,
        Self::GoesBack,
        Self::TakenBack,
        Self::ChangedAndTakenBack,
        Self::StoppedAndTakenBack,
        Self::SuspendedAndTakenBack,
        Self::DeletedAndTakenBack,
        Self::Finishes,
        Self::Stopped,
        Self::Suspended,
        Self::Aborted,
    ];

    /// What happens on the target between the commit and the way back.
    pub(super) fn after_commit(self) -> Option<Deed> {
        match self {
            Self::ChangedAndTakenBack => Some(Deed::Change),
            Self::StoppedAndTakenBack => Some(Deed::Stop),
            Self::SuspendedAndTakenBack => Some(Deed::Suspend),
            Self::DeletedAndTakenBack => Some(Deed::Delete),
            _ => None,
        }
    }

    pub(super) fn is_taken_back(self) -> bool {
        self == Self::TakenBack || self.after_commit().is_some()
    }
}

/// A story and what goes wrong in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Schedule {
    /// The story.
    pub story: Story,
    /// What goes wrong, in the order of its points.
    pub mishaps: Vec<Planned>,
}

impl Schedule {
    /// A story in which nothing goes wrong.
    #[must_use]
    pub fn of(story: Story) -> Self {
        Self {
            story,
            mishaps: Vec::new(),
        }
    }

    /// And then this happens.
    #[must_use]
    pub fn with(mut self, point: u32, mishap: Mishap) -> Self {
        self.mishaps.push(Planned { point, mishap });
        self.mishaps.sort_by_key(|planned| planned.point);
        self
    }

    /// True when somebody else has their hands in it.
    #[must_use]
    pub fn has_competitor(&self) -> bool {
        self.mishaps
            .iter()
            .any(|planned| matches!(planned.mishap, Mishap::Competitor(..)))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.story)?;
        for Planned { point, mishap } in &self.mishaps {
            write!(f, ", {mishap:?} at {point}")?;
        }
        Ok(())
    }
}

/// Numbers that look random and are the same in every run (SplitMix64).
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound.max(1)
    }
}
