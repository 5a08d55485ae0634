//! Where divergences go.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::placement::Place;
use crate::{Error, ErrorKind, InstanceId, OperationKind, Result};

/// A difference between the two sides that did not go away by itself, or a write that did not reach the secondary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Divergence {
    /// The instance.
    pub instance: InstanceId,
    /// Where it lives.
    #[serde(default = "on_the_primary")]
    pub home: Place,
    /// The call after which it was found.
    pub operation: OperationKind,
    /// What it is.
    pub kind: DivergenceKind,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// When it was reported.
    pub reported: Timestamp,
    /// In how many consecutive samples it was seen.
    pub samples: u32,
}

/// Where everybody lived about whom this was not written down.
const fn on_the_primary() -> Place {
    Place::Primary
}

/// What kind of difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum DivergenceKind {
    /// A field has two values.
    Field {
        /// Which.
        field: String,
        /// On the side where the instance lives, which is the divergence's [`home`](Divergence::home).
        primary: Option<String>,
        /// On the other side.
        secondary: Option<String>,
    },
    /// A write was not repeated on the secondary.
    NotMirrored {
        /// Why.
        reason: String,
    },
    /// The other side could not be asked, before a creation, whether it has the id or the host.
    NotChecked {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} after {}: ", self.instance, self.operation)?;
        match &self.kind {
            DivergenceKind::Field {
                field,
                primary,
                secondary,
            } => {
                let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "(none)".to_owned());
                write!(
                    f,
                    "{field} is {} on the {}, where it lives, and {} on the {}",
                    show(primary),
                    self.home,
                    show(secondary),
                    self.home.other()
                )
            }
            DivergenceKind::NotMirrored { reason } => write!(f, "not mirrored: {reason}"),
            DivergenceKind::NotChecked { reason } => write!(f, "the other side was not checked: {reason}"),
        }
    }
}

/// Receives divergences. A sink that panics, fails or is slow delays no call of the dual run; what it does not take
/// within the dual run's [`deadline`](super::DualRunBuilder::deadline) is logged and lost.
#[async_trait]
pub trait DivergenceSink: fmt::Debug + Send + Sync + 'static {
    /// Takes one.
    async fn record(&self, divergence: Divergence);
}

/// Hands a divergence to a sink whose panic or silence must not take the worker with it that serves all tenants.
pub(super) async fn hand_over(sink: &dyn DivergenceSink, budget: Duration, divergence: Divergence) {
    let what = divergence.to_string();
    let recorded = AssertUnwindSafe(async { sink.record(divergence).await }).catch_unwind();
    match tokio::time::timeout(budget, recorded).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => tracing::warn!(divergence = what, "the sink has panicked; the divergence is lost"),
        Err(_) => tracing::warn!(
            divergence = what,
            ?budget,
            "the sink does not take the divergence; it is lost"
        ),
    }
}

/// Keeps the last divergences in memory.
#[derive(Debug)]
pub struct MemorySink {
    kept: Mutex<Vec<Divergence>>,
    most: usize,
}

impl Default for MemorySink {
    fn default() -> Self {
        Self::keeping(10_000)
    }
}

impl MemorySink {
    /// Keeps the last 10,000.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps the last `most`.
    #[must_use]
    pub fn keeping(most: usize) -> Self {
        Self {
            kept: Mutex::default(),
            most,
        }
    }

    /// What was recorded, oldest first.
    #[must_use]
    pub fn divergences(&self) -> Vec<Divergence> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl DivergenceSink for MemorySink {
    async fn record(&self, divergence: Divergence) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= self.most && !kept.is_empty() {
            kept.remove(0);
        }
        kept.push(divergence);
    }
}

/// Appends divergences to a file, one JSON object a line. A line that cannot be written is logged and lost.
#[derive(Debug)]
pub struct JsonLinesSink {
    file: Arc<Mutex<File>>,
}

impl JsonLinesSink {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// `Configuration` when that is not possible.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map_err(|error| Error::new(ErrorKind::Configuration, format!("{}: {error}", path.display())))?;
        Ok(Self {
            file: Arc::new(Mutex::new(file)),
        })
    }
}

#[async_trait]
impl DivergenceSink for JsonLinesSink {
    async fn record(&self, divergence: Divergence) {
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || {
            let mut line = serde_json::to_vec(&divergence)?;
            line.push(b'\n');
            file.lock().unwrap_or_else(PoisonError::into_inner).write_all(&line)
        })
        .await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "a divergence could not be written"),
            Err(error) => tracing::warn!(%error, "a divergence could not be written"),
        }
    }
}
