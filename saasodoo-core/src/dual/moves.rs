//! What becomes of a tenant's place while a call is under way.

use futures::StreamExt;
use futures::future::FutureExt;
use futures::stream::BoxStream;

use super::placement::{Place, Placement, PlacementStore};
use super::{DualRun, MOVING};
use crate::{BackendKind, Error, ErrorKind, InstanceId, OperationKind, Result, Retry};

/// What is recorded about places from one moment on.
pub(super) struct Moves(BoxStream<'static, (InstanceId, Placement)>);

impl Moves {
    pub(super) fn from_now(placement: &dyn PlacementStore) -> Self {
        Self(placement.changes())
    }

    /// What was recorded since. Never waits.
    pub(super) fn so_far(&mut self) -> Vec<(InstanceId, Placement)> {
        let mut changes = Vec::new();
        // Without tokio's budget, which would end this early.
        while let Some(Some(change)) = tokio::task::unconstrained(self.0.next()).now_or_never() {
            changes.push(change);
        }
        changes
    }
}

/// The right to change an instance on the side where it lives; a move may begin all the same.
pub(super) struct Writable {
    id: InstanceId,
    operation: OperationKind,
    pub(super) home: Place,
    moves: Moves,
}

impl DualRun {
    /// The side that is changed: none while the tenant is being moved.
    pub(super) async fn writable(&self, id: InstanceId, operation: OperationKind) -> Result<Writable> {
        let moves = Moves::from_now(&*self.sides.settings.placement);
        match self.placed(id).await? {
            Placement::At(home) => Ok(Writable {
                id,
                operation,
                home,
                moves,
            }),
            Placement::Moving { from } => Err(Error::new(
                ErrorKind::NotAllowed,
                format!("the instance is being migrated off the {from}; nothing else may change it now"),
            )
            .with_retry(Retry::After(Some(MOVING)))
            .with_operation(operation)
            .with_instance(id)
            .with_backend(BackendKind::DualRun)
            .with_advice("repeat it when the migration is over; its journal says how far it is")),
        }
    }

    /// Changes the side on which the tenant lives, and looks afterwards whether it lives there still: a move that began
    /// meanwhile may have read the tenant before the change, and the change may have been made to the side that the
    /// tenant has left. Then no answer of that side counts, an error neither.
    pub(super) async fn change<T>(
        &self,
        writable: Writable,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        let Writable {
            id,
            operation,
            home,
            mut moves,
        } = writable;
        let answer = self.at_home(home, operation, call).await;
        let stays = Placement::At(home);
        let now = match self.placed(id).await {
            Ok(now) => now,
            Err(error) => return Err(error.with_retry(Retry::OutcomeUnknown).with_operation(operation)),
        };
        let left = moves
            .so_far()
            .into_iter()
            .any(|(moved, placement)| moved.matches(id) && placement != stays);
        if now == stays && !left {
            return answer;
        }
        let place = match now {
            Placement::At(place) => format!("it lives on the {place} now"),
            Placement::Moving { from } => format!("it is being moved off the {from}"),
        };
        let error = Error::conflict(
            ["placement"],
            format!("the instance was moved while the change was made on the {home}; {place}"),
        )
        .with_retry(Retry::OutcomeUnknown)
        .with_operation(operation)
        .with_instance(id)
        .with_backend(BackendKind::DualRun)
        .with_advice("look at it where it lives, and ask again for what is missing");
        Err(match answer {
            Ok(_) => error,
            Err(source) => error.with_source(source),
        })
    }
}
