//! How an orchestrator is put together.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use saasodoo_core::{Config, Result};

use crate::backend::SwarmOrchestrator;
use crate::config::{Credentials, DockerHost, ImageResolution, Polling, QuotaPolicy, RegistryAuth, SwarmConfig};

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
    client: Option<bollard::Docker>,
    clock: Clock,
}

/// Who tells the time.
#[derive(Clone)]
pub(crate) struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self(Arc::new(Timestamp::now))
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

impl SwarmBuilder {
    pub(crate) fn new(config: SwarmConfig) -> Self {
        Self {
            config,
            client: None,
            clock: Clock::default(),
        }
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

    /// This client, over whatever transport it has, in place of a connection to the host: for a simulated daemon.
    #[must_use]
    pub fn client(mut self, client: bollard::Docker) -> Self {
        self.client = Some(client);
        self
    }

    /// This clock in place of the system's: for a simulated daemon, whose time passes at another pace.
    #[must_use]
    pub fn clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.clock = Clock(Arc::new(now));
        self
    }

    /// The orchestrator. Makes no request.
    ///
    /// # Errors
    /// `Configuration` for settings or certificates that cannot be used; `Unavailable` when there is no socket.
    pub fn build(self) -> Result<SwarmOrchestrator> {
        SwarmOrchestrator::assemble(self.config, self.client, self.clock)
    }
}
