//! The contract suite: the behaviours that [`InstanceOrchestrator`](saasodoo_core::InstanceOrchestrator) promises, as
//! named clauses that run against any backend.
//!
//! A backend takes part by implementing [`Subject`]: where its orchestrator is, what a valid spec looks like there,
//! how long things may take, and how to look at an instance's data. Then, in a test:
//!
//! ```
//! use std::sync::Arc;
//! use saasodoo_testkit::contract::Runner;
//! use saasodoo_testkit::memory::{MemoryOrchestrator, MemorySubject};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! let subject = Arc::new(MemorySubject::new(MemoryOrchestrator::new()));
//! let report = Runner::new(subject).only(&["create.makes_an_instance"]).run().await;
//! report.assert_passed(1);
//! # }
//! ```
//!
//! Every clause ends with one of four [outcomes](Outcome): there is no early return that counts as passed. The results
//! are written to `target/contract/<subject>.json`, and [`side_by_side`] prints several of them in one table.
//! `SAASODOO_CLAUSE=create.,power.restart` runs only the clauses whose names contain one of the texts.

mod bad_input;
mod cancel;
mod clause;
mod create;
mod ctx;
mod delete;
mod ext;
mod faults;
mod get_list;
mod logs;
mod plan;
mod platform;
mod power;
mod report;
mod runner;
mod status;
mod subject;
mod update;
mod watch;

pub use clause::{Clause, Stop, Verdict, all};
pub use ctx::Ctx;
pub use report::{Outcome, Record, Report, side_by_side};
pub use runner::Runner;
pub use subject::{Budgets, FaultGuard, Subject};
