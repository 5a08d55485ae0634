//! The trait that every backend implements.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;

use crate::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Health, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceSpec, LogLine, LogOptions, Operation, Plan, Power, Result,
    UpdateOptions,
};

/// A shared orchestrator, as a service keeps it in its state.
pub type DynOrchestrator = Arc<dyn InstanceOrchestrator>;

/// Provisions and operates per-tenant Odoo instances on one platform.
///
/// The `# Behavior` bullets of each method are the contract: every backend passes the clause of the same name in
/// `saasodoo_testkit::contract`. What a backend cannot do is told by [`capabilities`](Self::capabilities) and answered
/// with [`Unsupported`](crate::ErrorKind::Unsupported), never by a different meaning. Sugar is in
/// [`InstanceOrchestratorExt`](crate::InstanceOrchestratorExt).
///
/// # Cancellation
///
/// Dropping the future of a mutation does not stop it half-way: it goes on by itself under its own deadline until
/// everything it does is done or undone. Dropping a stream ends it.
///
/// # Retries
///
/// Every mutation looks before it acts, so calling it again with the same arguments after an error of
/// [`Retry::OutcomeUnknown`](crate::Retry::OutcomeUnknown) is safe, and is how one finds out.
///
/// # Reads
///
/// An error is never turned into absence: `get` answers [`NotFound`](crate::ErrorKind::NotFound) only when the server
/// said so, and `list` never leaves out what it could not read.
#[async_trait]
pub trait InstanceOrchestrator: fmt::Debug + fmt::Display + Send + Sync + 'static {
    /// The kind of the backend, for errors, logs and metrics.
    fn backend(&self) -> BackendKind;

    /// What this backend can do as it is configured. Constant for its lifetime.
    fn capabilities(&self) -> Capabilities;

    /// Makes the instance exist as the spec says.
    ///
    /// # Behavior
    /// - `create.makes_an_instance`: the answer is `Created`, and `get` finds the instance with the spec that was given.
    /// - `create.becomes_running`: an instance that was not created stopped becomes `running` by itself.
    /// - `create.stopped_stays_stopped`: created stopped, nothing of it runs until it is started.
    /// - `create.second_with_equal_spec_is_unchanged`: nothing is written and the running process goes on.
    /// - `create.second_with_other_spec_is_conflict`: the error names the fields, and nothing is written.
    /// - `create.taken_host_is_conflict`: a host that another instance has is refused, and nothing stays behind.
    /// - `create.over_retained_data_needs_adopt`: data that a deleted instance left behind is a conflict and untouched.
    /// - `create.adopts_retained_data`: with [`AdoptRetained`](crate::DataPolicy::AdoptRetained) the answer is `Adopted`.
    /// - `create.adopt_without_data_is_refused`: with nothing to adopt, nothing is created.
    /// - `create.rolls_back_exactly`: a failure leaves nothing of what this call made, and everything else as it was.
    /// - `create.bad_input_changes_nothing`: an invalid spec is refused before any request.
    ///
    /// # Errors
    /// `InvalidInput`, `Conflict`, `MissingPrerequisite`, `QuotaExceeded`, `Unsupported`, and those of any call to a
    /// server: `Unauthorized`, `Forbidden`, `Throttled`, `Unavailable`, `Timeout`, `Unexpected`.
    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured>;

    /// Changes an instance. What is not in the change stays as it is, also what others set on its objects.
    ///
    /// # Behavior
    /// - `update.applies_and_is_observed`: the answer is `Updated`, and `get` shows the new values.
    /// - `update.same_values_are_unchanged`: nothing is written and the process goes on.
    /// - `update.while_stopped_stays_stopped`: the change is kept for the next start.
    /// - `update.storage_grows`: to a larger size; a smaller one is refused and nothing is written.
    /// - `update.absent_is_not_found`.
    /// - `update.stale_revision_is_conflict`: with [`if_revision`](crate::UpdateOptions::if_revision).
    ///
    /// # Errors
    /// As `create`, and `NotFound`.
    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured>;

    /// Starts, stops, restarts, suspends or resumes an instance. Answers as soon as the platform has accepted it; wait
    /// with [`wait_until`](crate::InstanceOrchestratorExt::wait_until).
    ///
    /// # Behavior
    /// - `power.stop_then_start`: a stopped instance becomes `stopped`, a started one `running`, with the same data.
    /// - `power.repeated_is_harmless`: stopping a stopped or starting a running instance changes nothing.
    /// - `power.restart_replaces_the_process`: another unit or process answers afterwards.
    /// - `power.restart_of_stopped_is_refused`: `NotAllowed`.
    /// - `power.suspend_refuses_start`: `NotAllowed`, the status is `paused`, and a resume makes it `stopped`.
    /// - `power.absent_is_not_found`.
    ///
    /// # Errors
    /// `NotFound`, `NotAllowed`, and those of any call to a server.
    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance>;

    /// Deletes an instance; its data only with a [`PurgeToken`](crate::PurgeToken). Answers when nothing of it runs any
    /// more and its objects are gone.
    ///
    /// # Behavior
    /// - `delete.retains_data`: the answer names where the data is, and the data is there.
    /// - `delete.twice_is_already_gone`: the second answer is not an error.
    /// - `delete.purge_removes_the_data`: with a token from `plan`, exactly what it lists.
    /// - `delete.foreign_token_is_refused`: a token of another instance or backend deletes nothing.
    /// - `delete.outdated_token_is_refused`: when the data has been replaced since the plan.
    ///
    /// # Errors
    /// `Conflict` for a token that does not fit, and those of any call to a server.
    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted>;

    /// Observes one instance.
    ///
    /// # Behavior
    /// - `get.shows_the_spec`: as the objects have it, with secrets withheld.
    /// - `get.absent_is_not_found`: confirmed by the server.
    /// - `get.sees_own_writes`: never older than the last mutation through this orchestrator.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when a legacy id means several instances; those of any call to a server.
    async fn get(&self, id: InstanceId) -> Result<Instance>;

    /// Observes all instances that match, in a constant number of requests per page. Lazy: the first request is made
    /// when the stream is polled. Ends after the first error.
    ///
    /// # Behavior
    /// - `list.contains_what_exists`: each instance once.
    /// - `list.filters`: by id, customer, status and label.
    /// - `list.one_bad_object_does_not_hide_the_rest`: what cannot be understood is in `unparsed`.
    ///
    /// # Errors
    /// As items of the stream: those of any call to a server. An instance that does not exist is left out.
    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>>;

    /// Follows all instances that match. Never ends and never fails: a lost connection is reported as
    /// [`Stale`](InstanceEvent::Stale) and made up for.
    ///
    /// # Behavior
    /// - `watch.snapshot_then_synced`: first what exists, then `Synced` once.
    /// - `watch.reports_changes`: create, power, update and delete, in an order that is possible.
    /// - `watch.filters`.
    /// - `watch.every_subscriber_gets_everything`.
    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent>;

    /// Reads an instance's log. Ends after the first error, and at the end of the log unless it follows.
    ///
    /// # Behavior
    /// - `logs.tail`: at most so many lines, the last ones.
    /// - `logs.follow`: lines written later arrive.
    /// - `logs.previous`: what the process wrote that ended before the present one.
    /// - `logs.absent_is_not_found`.
    ///
    /// # Errors
    /// As items of the stream: `NotFound`; `Conflict` when a legacy id means several instances; `Unsupported` for lines of
    /// the process before where the backend does not have them; those of any call to a server.
    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>>;

    /// Says what an operation would do, with the errors it would give, and does nothing.
    ///
    /// # Behavior
    /// - `plan.has_no_side_effects`.
    /// - `plan.names_the_fields`: those that `update` would change, and whether the tenant's process is replaced.
    /// - `plan.purge_lists_what_dies`: and carries the token.
    /// - `plan.of_nothing_is_empty`: an operation that would answer `Unchanged` has an empty plan.
    ///
    /// # Errors
    /// As the operation.
    async fn plan(&self, operation: &Operation) -> Result<Plan>;

    /// Looks at the platform: whether it is reachable, allows what this library does, and has what it needs. What it
    /// finds wrong is in the answer, so this never fails.
    ///
    /// # Behavior
    /// - `health.is_ready`: on a platform that passes the other clauses.
    async fn health(&self) -> Health;
}

/// Forwards every method to the value behind a pointer; the lint makes a forgotten method an error.
macro_rules! forward {
    ($type:ty) => {
        #[async_trait]
        #[deny(clippy::missing_trait_methods)]
        impl<O: InstanceOrchestrator + ?Sized> InstanceOrchestrator for $type {
            fn backend(&self) -> BackendKind {
                (**self).backend()
            }

            fn capabilities(&self) -> Capabilities {
                (**self).capabilities()
            }

            async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
                (**self).create(spec, options).await
            }

            async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
                (**self).update(id, change, options).await
            }

            async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
                (**self).set_power(id, power).await
            }

            async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
                (**self).delete(id, options).await
            }

            async fn get(&self, id: InstanceId) -> Result<Instance> {
                (**self).get(id).await
            }

            fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
                (**self).list(filter)
            }

            fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
                (**self).watch(filter)
            }

            fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
                (**self).logs(id, options)
            }

            async fn plan(&self, operation: &Operation) -> Result<Plan> {
                (**self).plan(operation).await
            }

            async fn health(&self) -> Health {
                (**self).health().await
            }
        }
    };
}

forward!(Arc<O>);
forward!(Box<O>);
