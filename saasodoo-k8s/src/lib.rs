//! Per-tenant Odoo instances on Kubernetes, behind the orchestrator trait of `saasodoo-core`.
//!
//! ```no_run
//! use std::sync::Arc;
//! use saasodoo_core::{DynOrchestrator, Result};
//! use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
//!
//! async fn connect() -> Result<DynOrchestrator> {
//!     let orchestrator = KubernetesOrchestrator::builder(KubernetesConfig::from_env()?).build().await?;
//!     Ok(Arc::new(orchestrator))
//! }
//! ```
//!
//! Each instance is a Deployment, which is also the claim on its name, with a Service, a Secret, a route and optionally
//! a NetworkPolicy that it owns, and a PersistentVolumeClaim that nothing owns: data outlives the instance until a purge
//! token says otherwise. Objects made by the migration guide's Python client are observed and operated too.
//!
//! A binary that embeds this crate enables one version feature of `k8s-openapi` (`latest`, or `v1_33`…).

#![forbid(unsafe_code)]

mod adopt;
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
mod error;
mod facts;
#[cfg(test)]
mod facts_tests;
mod health;
mod ledger;
mod logs;
mod names;
mod observe;
mod occupied;
mod pages;
mod patch;
mod plan;
mod power;
mod rbac;
mod read;
mod route;
mod until;
mod views;
#[cfg(test)]
mod views_tests;
mod watch;
mod wire;

pub use backend::KubernetesOrchestrator;
pub use builder::KubernetesOrchestratorBuilder;
pub use config::{
    AdoptionSource, ImagePullPolicy, KubernetesConfig, NetworkPolicy, ObjectHook, PodSecurity, RequestRatio, Routing,
    RoutingTls, SecretRef,
};
pub use rbac::{Permission, permissions, rbac_yaml};
