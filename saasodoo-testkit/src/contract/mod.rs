//! The contract suite: the behaviours that [`InstanceOrchestrator`](saasodoo_core::InstanceOrchestrator) promises, as
//! named clauses that run against any backend.
//!
//! A backend takes part by implementing [`Subject`]: where its orchestrator is, what a valid spec looks like there,
//! how long things may take, and how to look at an instance's data. Then, in a test:
//!
//! ```ignore
//! let report = Runner::new(Arc::new(MySubject::new())).concurrency(8).run().await;
//! report.write().expect("the result file");
//! report.assert_passed(60);
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
