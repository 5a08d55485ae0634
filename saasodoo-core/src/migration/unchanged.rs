//! Whether the source is still what it was when the migration began: what somebody changed meanwhile must not be lost.

use super::forward::{brief, inventory_of, tenancy_of};
use super::inventory::digest;
use super::run::{Presence, Run, StepResult, Stop};
use super::{Inventory, Side, Tenancy};
use crate::{Hold, Instance};

impl Run<'_> {
    /// What was read at the beginning must still be so: somebody who has stopped, suspended, changed or deleted the
    /// instance since then would find that undone on the target.
    pub(super) async fn same_as_inventoried(&self) -> StepResult<()> {
        let source = self.look_present(Side::Source).await?;
        let inventory = self.inventory()?;
        let now = inventory_of(&source, self.id(), self.m)?;
        if now.tenancy != inventory.tenancy || source.facts.hold != inventory.observed.facts.hold {
            return Err(Stop::Fail(
                self.interference(Side::Source, "has changed the power state"),
            ));
        }
        self.same_spec(&inventory, &now, &now.digest())
    }

    /// The very last look before the source is stopped: what somebody orders after the comparison is not undone either.
    pub(super) fn same_power_as_inventoried(&self, source: &Instance) -> StepResult<()> {
        if tenancy_of(source) != self.inventory()?.tenancy {
            return Err(Stop::Fail(
                self.interference(Side::Source, "has changed the power state"),
            ));
        }
        Ok(())
    }

    fn same_spec(&self, inventory: &Inventory, now: &Inventory, digest: &str) -> StepResult<()> {
        let changes = changes(inventory, now, digest);
        if !changes.is_empty() {
            let what = format!("has changed the instance ({})", changes.join(", "));
            return Err(Stop::Fail(self.interference(Side::Source, &what)));
        }
        Ok(())
    }

    /// A change that was under way when the move was announced may have been made since the last look: it was answered as
    /// made, and would be lost on the target.
    pub(super) async fn same_spec_behind_the_fence(&self) -> StepResult<()> {
        let Presence::Present(source) = self.look(Side::Source).await? else {
            return Ok(());
        };
        let now = inventory_of(&source, self.id(), self.m)?;
        let inventory = self.inventory()?;
        self.same_spec(&inventory, &now, &as_before(&inventory, &now))
    }

    /// The same at the commit. The tenant is up on the target and is not taken down for it: what is not so there is written
    /// down, for somebody to make the same change. What comes after the commit is the source's own, as well.
    pub(super) async fn note_what_changed_behind_the_fence(&mut self, target: &Instance) -> StepResult<()> {
        let Presence::Present(source) = self.look(Side::Source).await? else {
            return Ok(());
        };
        let inventory = self.inventory()?;
        let now = match inventory_of(&source, self.id(), self.m) {
            Ok(now) => now,
            Err(error) => {
                return self
                    .note(format!("the source cannot be compared: {}", brief(&error)))
                    .await;
            }
        };
        let not_there = target.spec.diff(&now.spec);
        let known = !inventory.spec.diff(&now.spec).is_empty();
        let mut lost = changes(&inventory, &now, &as_before(&inventory, &now));
        lost.retain(|field| !known || not_there.iter().any(|change| change.field == *field));
        if lost.is_empty() {
            return Ok(());
        }
        self.note(format!(
            "changed on the source since the move began, and not so on the target: {}; make the same changes there",
            lost.join(", ")
        ))
        .await
    }
}

/// The digest of what is there now, with the hold that it had before this migration suspended it.
fn as_before(inventory: &Inventory, now: &Inventory) -> String {
    let hold = (inventory.tenancy == Tenancy::Suspended).then_some(Hold::Suspended);
    digest(&(&now.spec, &now.data, hold))
}

/// The fields in which an instance is not what it was when it was read first.
fn changes(inventory: &Inventory, now: &Inventory, digest: &str) -> Vec<String> {
    let mut changes: Vec<String> = inventory.spec.diff(&now.spec).into_iter().map(|c| c.field).collect();
    if now.data != inventory.data {
        changes.push("data".to_owned());
    }
    if changes.is_empty() && digest != inventory.digest() {
        changes.push("this journal does not keep what".to_owned());
    }
    changes
}
