//! A mock, for tests that say which calls they expect and what each is answered.
//!
//! Use [`MemoryOrchestrator`](crate::MemoryOrchestrator) to test what a service achieves, and this to test how it deals
//! with one exact answer.
//!
//! ```
//! use mockall::predicate::eq;
//! use saasodoo_core::{DynOrchestrator, Error, ErrorKind, InstanceId, InstanceOrchestrator, Power};
//! use saasodoo_testkit::mock::MockOrchestrator;
//!
//! /// The service under test: a customer who has not paid is suspended, and the bell rings when that fails.
//! async fn suspend(orchestrator: DynOrchestrator, id: InstanceId) -> &'static str {
//!     match orchestrator.set_power(id, Power::Suspend).await {
//!         Ok(_) => "suspended",
//!         Err(error) if error.is_not_found() => "there is nothing to suspend",
//!         Err(_) => "ring the bell",
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let id = InstanceId::random();
//! let mut mock = MockOrchestrator::new();
//! mock.expect_set_power()
//!     .with(eq(id), eq(Power::Suspend))
//!     .once()
//!     .returning(|_, _| Err(Error::new(ErrorKind::Unavailable, "connection refused")));
//! assert_eq!(suspend(std::sync::Arc::new(mock), id).await, "ring the bell");
//! # }
//! ```

#![allow(missing_docs, reason = "mockall writes the methods")]

use std::fmt;

use async_trait::async_trait;
use futures::stream::BoxStream;
use mockall::mock;
use saasodoo_core::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, Ensured, Health, Instance, InstanceChange,
    InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator, InstanceSpec, LogLine, LogOptions, Operation,
    Plan, Power, Result, UpdateOptions,
};

mock! {
    /// An orchestrator that answers what a test told it to; see [`mockall`]. A call that nobody expected panics.
    #[derive(Debug)]
    pub Orchestrator {}

    #[async_trait]
    impl InstanceOrchestrator for Orchestrator {
        fn backend(&self) -> BackendKind;
        fn capabilities(&self) -> Capabilities;
        async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured>;
        async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured>;
        async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance>;
        async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted>;
        async fn get(&self, id: InstanceId) -> Result<Instance>;
        fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>>;
        fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent>;
        fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>>;
        async fn plan(&self, operation: &Operation) -> Result<Plan>;
        async fn health(&self) -> Health;
    }
}

impl fmt::Display for MockOrchestrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use futures::stream;
    use saasodoo_core::{InstanceOrchestratorExt, InstanceStatus, OperationKind};
    use std::sync::Arc;

    use crate::fixtures;

    #[tokio::test]
    async fn a_mock_answers_what_it_was_told() {
        let spec = fixtures::spec("acme");
        let id = spec.id;
        let mut mock = MockOrchestrator::new();
        mock.expect_get()
            .returning(|id| Err(saasodoo_core::Error::not_found(id).with_operation(OperationKind::Get)));
        mock.expect_watch()
            .returning(|_| stream::iter([InstanceEvent::Synced]).boxed());
        assert_eq!(format!("{mock} {mock:?}").split(' ').next(), Some("mock"));
        let orchestrator: saasodoo_core::DynOrchestrator = Arc::new(mock);
        assert_eq!(
            orchestrator.status(id).await.expect("a status"),
            InstanceStatus::ContainerMissing
        );
        let events: Vec<_> = orchestrator.watch(InstanceFilter::all()).collect().await;
        assert_eq!(events, [InstanceEvent::Synced]);
    }

    #[tokio::test]
    #[should_panic(expected = "MockOrchestrator::health")]
    async fn a_call_that_nobody_expected_panics() {
        let _ = MockOrchestrator::new().health().await;
    }
}
