//! What the examples share: choosing a backend on the command line.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use saasodoo_core::{Config, DynOrchestrator, decor};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
use saasodoo_testkit::memory::MemoryOrchestrator;

/// The platforms that the examples run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A simulation in this process.
    Memory,
    /// The cluster that this process runs in, else that of the current kubeconfig.
    Kubernetes,
}

/// Command-line options that choose a platform. What they leave open comes from the environment
/// ([`Config::from_env`]).
#[derive(Debug, Clone, Args)]
pub struct BackendArgs {
    /// The platform.
    #[arg(long, value_enum, default_value = "memory")]
    pub backend: Backend,
    /// The image; default: SAASODOO_STUB_IMAGE, else ODOO_IMAGE, else the configuration's.
    #[arg(long)]
    pub image: Option<String>,
    /// The Kubernetes namespace; default: KUBERNETES_NAMESPACE, else the configuration's.
    #[arg(long)]
    pub namespace: Option<String>,
}

impl BackendArgs {
    /// The orchestrator, with deadlines, retries and traces, and the configuration it was made of.
    ///
    /// # Errors
    /// When the configuration is not usable or the platform cannot be connected to.
    pub async fn connect(&self) -> Result<(DynOrchestrator, Config)> {
        let config = self.config()?;
        let orchestrator = match self.backend {
            Backend::Memory => decor::standard(memory(&config), &config),
            Backend::Kubernetes => {
                let settings = KubernetesConfig::new(config.clone());
                let backend = KubernetesOrchestrator::builder(settings).build().await;
                decor::standard(backend.context("connecting to Kubernetes")?, &config)
            }
        };
        Ok((orchestrator, config))
    }

    /// The configuration from the environment and the command line.
    ///
    /// # Errors
    /// When a value is not acceptable.
    pub fn config(&self) -> Result<Config> {
        let mut config = Config::from_env().context("reading the configuration from the environment")?;
        let stub = std::env::var("SAASODOO_STUB_IMAGE")
            .ok()
            .filter(|image| !image.is_empty());
        if let Some(image) = self.image.clone().or(stub) {
            config.image = image.parse().with_context(|| format!("the image {image:?}"))?;
        }
        if let Some(namespace) = &self.namespace {
            let checked = Config::builder().namespace(namespace).context("--namespace")?;
            config.namespace = checked.build().namespace;
        }
        Ok(config)
    }
}

/// An in-memory platform that is quick enough to look at.
#[must_use]
pub fn memory(config: &Config) -> MemoryOrchestrator {
    MemoryOrchestrator::builder()
        .config(config.clone())
        .pull_time(Duration::from_millis(200))
        .start_time(Duration::from_millis(400))
        .stop_time(Duration::from_millis(200))
        .crash_back_off(Duration::from_millis(300))
        .build()
}

/// Prints traces as `RUST_LOG` asks for, such as `RUST_LOG=saasodoo_core=debug`; without it nothing.
pub fn init_tracing() {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
}
