//! How an orchestrator is put together.

use std::path::PathBuf;

use saasodoo_core::{Config, Result};

use crate::backend::SwarmOrchestrator;
use crate::config::{
    Credentials, DockerHost, ImageResolution, Polling, QuotaPolicy, RegistryAuth, SwarmConfig,
};

/// Builds a [`SwarmOrchestrator`].
///
/// ```no_run
/// use saasodoo_core::{Config, Result};
/// use saasodoo_swarm::{Credentials, DockerHost, SwarmOrchestrator};
///
/// # fn main() -> Result<()> {
/// let orchestrator = SwarmOrchestrator::builder(Config::from_env()?)
///     .host(DockerHost::Unix("/var/run/docker.sock".into()))
///     .credentials(Credentials::Environment)
///     .build()?;
/// # drop(orchestrator);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct SwarmBuilder {
    config: SwarmConfig,
}

impl SwarmBuilder {
    pub(crate) fn new(config: SwarmConfig) -> Self {
        Self { config }
    }

    /// Replaces what all backends share.
    #[must_use]
    pub fn common(mut self, common: Config) -> Self {
        self.config.common = common;
        self
    }

    /// The daemon of a swarm manager.
    #[must_use]
    pub fn host(mut self, host: DockerHost) -> Self {
        self.config.host = host;
        self
    }

    /// The overlay network of all instances and of Traefik.
    #[must_use]
    pub fn network(mut self, network: impl Into<String>) -> Self {
        self.config.network = network.into();
        self
    }

    /// The directory under which each instance has its data directory.
    #[must_use]
    pub fn data_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.config.data_root = root.into();
        self
    }

    /// Whether a file system that enforces no quotas will do.
    #[must_use]
    pub fn quota(mut self, quota: QuotaPolicy) -> Self {
        self.config.quota = quota;
        self
    }

    /// How passwords reach a new instance.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.config.credentials = credentials;
        self
    }

    /// What a new instance's service names its image by.
    #[must_use]
    pub fn image_resolution(mut self, resolution: ImageResolution) -> Self {
        self.config.image_resolution = resolution;
        self
    }

    /// Credentials for the registry of the images.
    #[must_use]
    pub fn registry(mut self, auth: RegistryAuth) -> Self {
        self.config.registry = Some(auth);
        self
    }

    /// Traefik's entry points and certificate resolver for new instances.
    #[must_use]
    pub fn traefik(mut self, entry_points: Vec<String>, cert_resolver: Option<String>) -> Self {
        self.config.entry_points = entry_points;
        self.config.cert_resolver = cert_resolver;
        self
    }

    /// How often a watch looks at tasks.
    #[must_use]
    pub fn polling(mut self, polling: Polling) -> Self {
        self.config.polling = polling;
        self
    }

    /// The orchestrator. Makes no request.
    ///
    /// # Errors
    /// `Configuration` for settings or certificates that cannot be used; `Unavailable` when there is no socket.
    pub fn build(self) -> Result<SwarmOrchestrator> {
        SwarmOrchestrator::connect(self.config)
    }
}
