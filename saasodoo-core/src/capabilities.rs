//! What a backend can and cannot do, said before it is asked.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// The kind of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BackendKind {
    /// The in-memory backend of `saasodoo-testkit`.
    Memory,
    /// Kubernetes.
    Kubernetes,
    /// Docker Swarm.
    Swarm,
    /// Two backends side by side.
    DualRun,
}

impl BackendKind {
    /// The kind's name, as errors, metrics and result files have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Kubernetes => "kubernetes",
            Self::Swarm => "swarm",
            Self::DualRun => "dual-run",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that not every backend can do. Asking a backend for what it cannot do is answered with
/// [`Unsupported`](crate::ErrorKind::Unsupported) and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Capability {
    /// Storage can grow: `update` takes a larger size.
    StorageGrowth,
    /// The storage size is enforced: writing beyond it fails.
    StorageQuota,
    /// Observations tell how much data there is.
    StorageUsage,
    /// An instance can be created on a directory that exists ([`DataPolicy::AdoptDirectory`]).
    ///
    /// [`DataPolicy::AdoptDirectory`]: crate::DataPolicy::AdoptDirectory
    AdoptDirectory,
    /// `logs` can give what the process before the present one wrote.
    PreviousLogs,
    /// A running process that does not answer is told from one that does.
    Readiness,
    /// A kill for memory is known for certain, not inferred from the exit code.
    OutOfMemoryCertain,
    /// `scheduling.tolerations` has a meaning.
    Tolerations,
    /// `scheduling.priority_class` has a meaning.
    PriorityClass,
    /// Changing the storage, the hosts or the addons does not restart the tenant's process.
    RouteChangeWithoutRestart,
    /// `get` can be answered from a watch without a request.
    CachedGet,
}

impl Capability {
    /// All capabilities.
    pub const ALL: [Self; 11] = [
        Self::StorageGrowth,
        Self::StorageQuota,
        Self::StorageUsage,
        Self::AdoptDirectory,
        Self::PreviousLogs,
        Self::Readiness,
        Self::OutOfMemoryCertain,
        Self::Tolerations,
        Self::PriorityClass,
        Self::RouteChangeWithoutRestart,
        Self::CachedGet,
    ];
}

/// The capabilities of one backend, as it is configured.
///
/// ```
/// use saasodoo_core::{Capabilities, Capability};
///
/// let capabilities = Capabilities::of([Capability::StorageGrowth]);
/// assert!(capabilities.supports(Capability::StorageGrowth));
/// assert!(!capabilities.supports(Capability::PreviousLogs));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(BTreeSet<Capability>);

impl Capabilities {
    /// Exactly these.
    #[must_use]
    pub fn of(capabilities: impl IntoIterator<Item = Capability>) -> Self {
        Self(capabilities.into_iter().collect())
    }

    /// All of them.
    #[must_use]
    pub fn all() -> Self {
        Self::of(Capability::ALL)
    }

    /// These without that one.
    #[must_use]
    pub fn without(mut self, capability: Capability) -> Self {
        self.0.remove(&capability);
        self
    }

    /// Whether the backend can do it.
    #[must_use]
    pub fn supports(&self, capability: Capability) -> bool {
        self.0.contains(&capability)
    }

    /// The capabilities that both have.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    /// Each of them, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = Capability> + '_ {
        self.0.iter().copied()
    }
}
