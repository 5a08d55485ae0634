//! Test support for services that embed saasodoo, and for saasodoo's own backends. A dev-dependency, never a
//! dependency at run time.
//!
//! | to … | use |
//! |---|---|
//! | test what a service achieves | [`MemoryOrchestrator`], a platform in memory |
//! | test how it deals with one exact answer | [`mock::MockOrchestrator`] |
//! | have valid specs at hand | [`fixtures`], and [`strategies`] for property tests |
//! | prove that a backend of your own behaves | [`contract`] |
//! | let everything go wrong in a migration | [`explorer`] |
//! | talk to Kubernetes without a cluster | `fake_kubernetes`, with the feature `fake-kubernetes` |
//! | talk to Docker without Docker | `fake_docker`, with the feature `fake-docker` |
//!
//! # Testing a service
//!
//! With a paused clock minutes of the platform take no time, and every run is the same:
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//! use saasodoo_core::{DynOrchestrator, InstanceOrchestratorExt, InstanceSpec, InstanceStatus, OperationKind, Result};
//! use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator};
//! use saasodoo_testkit::fixtures;
//!
//! /// The service under test: signs a customer up, and asks once more when it does not know what became of it.
//! struct SignUp {
//!     orchestrator: DynOrchestrator,
//! }
//!
//! impl SignUp {
//!     async fn run(&self, spec: &InstanceSpec) -> Result<String> {
//!         let budget = Duration::from_secs(420);
//!         let instance = match self.orchestrator.create_and_wait(spec, budget).await {
//!             Err(error) if error.retry() == saasodoo_core::Retry::OutcomeUnknown => {
//!                 self.orchestrator.create_and_wait(spec, budget).await?
//!             }
//!             answer => answer?,
//!         };
//!         Ok(instance.endpoints.external.join(" "))
//!     }
//! }
//!
//! #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn main() -> Result<()> {
//!     let memory = MemoryOrchestrator::builder()
//!         .base_domain("tenants.example".parse()?)
//!         .start_time(Duration::from_secs(300))
//!         .faults(FaultPlan::new().on(OperationKind::Create, 1, Fault::LoseResponse))
//!         .build();
//!     let service = SignUp { orchestrator: Arc::new(memory.clone()) };
//!
//!     let spec = fixtures::spec("acme");
//!     assert_eq!(service.run(&spec).await?, "http://acme.tenants.example");
//!     assert_eq!(memory.status(spec.id).await?, InstanceStatus::Running);
//!     assert_eq!(memory.count_calls(OperationKind::Create), 2);
//!     Ok(())
//! }
//! ```

#![forbid(unsafe_code)]

#[cfg(feature = "fake-docker")]
pub mod fake_docker;

pub mod contract;
pub mod explorer;
pub mod fixtures;
pub mod memory;
pub mod mock;
#[cfg(feature = "proptest")]
pub mod strategies;

#[cfg(feature = "fake-kubernetes")]
pub mod fake_kubernetes;

pub use memory::MemoryOrchestrator;
