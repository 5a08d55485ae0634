//! What somebody else has ordered, and what the tenant is owed at the end.

use saasodoo_core::migration::{Entry, Event, Mutation, Record, Side, Step};
use saasodoo_core::{ImageRef, Instance, InstanceStatus};

use super::schedule::Deed;

/// The name of what somebody else makes.
pub(super) const THEIRS: &str = "somebody else's";

/// What an instance shall be, by those who give it orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) status: InstanceStatus,
    pub(super) image: ImageRef,
}

impl Wanted {
    pub(super) fn of(instance: &Instance) -> Self {
        let status = if instance.facts.desired > 0 {
            InstanceStatus::Running
        } else if instance.facts.hold.is_some() {
            InstanceStatus::Paused
        } else {
            InstanceStatus::Stopped
        };
        Self {
            status,
            image: instance.spec.image.clone(),
        }
    }
}

/// The orders of somebody else that the migration can know.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// The last one on the source before the migration stopped it, and when.
    on_source: Option<(u64, Wanted)>,
    /// The same, when the migration must know it and stops the source in spite of it.
    passed_over: Option<Wanted>,
    /// The migration has asked the source to stop.
    source_stopped: bool,
    /// The tenant lives on the target, and whoever gives it orders gives them there.
    lives_on_target: bool,
    /// The last one there.
    on_target: Option<InstanceStatus>,
    /// The same, when the way back began after it: the source must obey it.
    owed: Option<InstanceStatus>,
    /// Somebody has had their hands on the target.
    target_touched: bool,
}

impl Orders {
    /// Somebody has done something. `left` is what the instance is after it.
    pub(super) fn given(&mut self, side: Side, deed: Deed, left: Option<&Instance>, tick: u64) {
        let power = matches!(
            deed,
            Deed::Start | Deed::Resume | Deed::ForceStart | Deed::Stop | Deed::Suspend
        );
        match side {
            Side::Source => {
                self.on_source = match deed {
                    Deed::Delete | Deed::CreateOther => None,
                    // Of the migration's own suspension. An order to stop changes nothing then, and nobody can know of it.
                    Deed::Resume | Deed::Stop | Deed::Suspend if self.source_stopped => None,
                    _ => left.map(|left| (tick, Wanted::of(left))),
                };
                // Whoever orders something there while it lives on the target takes it back by hand.
                self.forget_target();
            }
            Side::Target => {
                self.target_touched = true;
                if deed == Deed::Delete || deed == Deed::CreateOther {
                    self.forget_target();
                } else if power {
                    self.owed = None;
                    let order = left.map(|left| Wanted::of(left).status);
                    self.on_target = order.filter(|_| self.lives_on_target);
                }
            }
        }
    }

    /// What the target is cannot be known.
    pub(super) fn forget_target(&mut self) {
        self.on_target = None;
        self.owed = None;
    }

    /// The migration stops the source, and knows what was ordered there before that time.
    pub(super) fn source_is_stopped(&mut self, seen: u64) {
        if let Some((_, wanted)) = self.on_source.take_if(|(at, _)| *at < seen) {
            self.passed_over = Some(wanted);
        }
        self.on_source = None;
        self.source_stopped = true;
    }

    /// The migration has written an entry.
    pub(super) fn written(&mut self, entry: &Entry, after: &Record) {
        match &entry.event {
            Event::Inventoried(_) => self.on_source = None,
            Event::Up if after.routed => self.lives_on_target = true,
            Event::StepBegan { step: Step::StopTarget } if self.lives_on_target => self.owed = self.on_target,
            Event::Intends {
                side: Side::Target,
                mutation: Mutation::Suspend,
                ..
            } if after.step.is_back() => self.lives_on_target = false,
            _ => {}
        }
    }

    /// What was ordered on the source, was seen, and is not so on the target that is committed now.
    pub(super) fn lost_by_commit(&self, target: &Instance) -> Option<&Wanted> {
        let wanted = self.passed_over.as_ref().filter(|_| !self.target_touched)?;
        (*wanted != Wanted::of(target)).then_some(wanted)
    }

    /// What the tenant must be on the source that it has come back to.
    pub(super) fn owed(&self) -> Option<InstanceStatus> {
        self.owed
    }
}
