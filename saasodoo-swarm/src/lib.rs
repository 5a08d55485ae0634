//! Per-tenant Odoo instances on Docker Swarm, behind the [`InstanceOrchestrator`](saasodoo_core::InstanceOrchestrator)
//! trait: the fleet as the system in production has it, on the same services, labels and CephFS directories.

#![forbid(unsafe_code)]

mod backend;
#[doc(hidden)]
pub mod bench;
mod builder;
mod change;
mod config;
mod convert;
#[cfg(test)]
mod convert_tests;
mod create;
mod delete;
mod directory;
mod error;
mod facts;
#[cfg(test)]
mod facts_tests;
mod fence;
mod health;
mod logs;
mod observe;
mod occupied;
mod patch;
mod plan;
mod power;
#[cfg(test)]
mod power_tests;
mod purge;
mod read;
mod retained;
mod storage;
#[cfg(test)]
mod storage_tests;
mod task;
mod traefik;
mod watch;
#[cfg(test)]
mod watch_tests;
mod wire;

pub use backend::SwarmOrchestrator;
pub use builder::SwarmBuilder;
pub use config::{Credentials, DockerHost, ImageResolution, Polling, QuotaPolicy, RegistryAuth, SwarmConfig};
