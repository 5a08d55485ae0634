//! Test support for services that embed saasodoo, and for saasodoo's own backends. A dev-dependency, never a
//! dependency at run time.

#![forbid(unsafe_code)]

pub mod contract;
pub mod fixtures;
pub mod memory;

pub use memory::MemoryOrchestrator;
