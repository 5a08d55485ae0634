//! Moving instances from one platform to another on the same data, one writer at any time, with a way back.
//!
//! A [`Migrator`] takes an instance through the [steps](Step) of a [table](TRANSITIONS). Every change is in a
//! [`Journal`] before it is made, each step looks at both platforms before it acts, and before either side is started
//! the other one is seen, live, with nothing desired, held and nothing alive. A process that dies at any point leaves
//! a journal from which another goes on.

mod back;
mod builder;
mod downtimes;
mod engine;
mod force;
mod forward;
mod home;
mod hooks;
mod http_probe;
mod inventory;
mod journal;
mod journal_file;
mod journal_objects;
mod preflight;
mod record;
mod report;
mod report_html;
mod run;
mod table;
#[cfg(test)]
mod tests;
mod unchanged;
mod wave;

pub use builder::{MigrationConfig, MigratorBuilder};
pub use engine::{Control, Migrator, Progress};
pub use force::Force;
pub use home::Home;
pub use hooks::{
    Clock, DataLocator, KnownSecrets, NoProbe, NoRoute, NoSecrets, PlacementSwitch, PreflightCheck, Probe,
    RecordedData, RootedData, RouteSwitch, SecretSource,
};
pub use http_probe::HttpProbe;
pub use inventory::Inventory;
pub use journal::{Journal, MemoryJournal};
pub use journal_file::FileJournal;
pub use journal_objects::ObjectJournal;
pub use record::{Doubt, Entry, Event, Failure, FenceProof, Mutation, Outage, Record, Side, StepRun, Tenancy};
pub use report::{InstanceReport, LatencyRow, Report};
pub use table::{Guard, Signal, Step, TRANSITIONS, Transition, mermaid, transition};
pub use wave::{Clash, FleetPlan, InstancePlan, Wave, WaveOptions, WaveSummary};
