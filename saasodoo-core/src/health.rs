//! Whether a backend can do its work, and why not.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::BackendKind;

/// The health of a backend: one entry for each thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Health {
    /// The backend.
    pub backend: BackendKind,
    /// The server's version, when it could be asked.
    pub server_version: Option<String>,
    /// What was looked at.
    pub checks: Vec<HealthCheck>,
    /// When.
    pub checked_at: Timestamp,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HealthCheck {
    /// Its name, such as `reachable`, `permissions`, `storage_class`, `custom_resources`, `watch`.
    pub name: String,
    /// How it is.
    pub state: HealthState,
    /// What was found, and what to do about it.
    pub detail: String,
}

/// How something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// As it should be.
    Ok,
    /// It works, and somebody should look.
    Degraded,
    /// Operations will fail.
    Failed,
}

impl Health {
    /// Nothing looked at yet.
    #[must_use]
    pub fn new(backend: BackendKind, checked_at: Timestamp) -> Self {
        Self {
            backend,
            server_version: None,
            checks: Vec::new(),
            checked_at,
        }
    }

    /// Adds a finding.
    pub fn push(&mut self, name: impl Into<String>, state: HealthState, detail: impl Into<String>) {
        self.checks.push(HealthCheck {
            name: name.into(),
            state,
            detail: detail.into(),
        });
    }

    /// The worst of the findings; `Failed` when nothing was looked at.
    #[must_use]
    pub fn state(&self) -> HealthState {
        self.checks
            .iter()
            .map(|check| check.state)
            .max()
            .unwrap_or(HealthState::Failed)
    }

    /// True when nothing failed.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state() < HealthState::Failed
    }

    /// The finding of that name.
    #[must_use]
    pub fn check(&self, name: &str) -> Option<&HealthCheck> {
        self.checks.iter().find(|check| check.name == name)
    }
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.server_version.as_deref().unwrap_or("unknown version");
        writeln!(f, "{} ({version}):", self.backend)?;
        for HealthCheck { name, state, detail } in &self.checks {
            let mark = match state {
                HealthState::Ok => "ok",
                HealthState::Degraded => "degraded",
                HealthState::Failed => "FAILED",
            };
            writeln!(f, "  {mark:8} {name}: {detail}")?;
        }
        Ok(())
    }
}
