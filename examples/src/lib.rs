//! What the examples share: choosing a backend on the command line.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use saasodoo_core::{Config, DynOrchestrator, decor};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};
use saasodoo_swarm::{SwarmConfig, SwarmOrchestrator};
use saasodoo_testkit::memory::MemoryOrchestrator;

/// The platforms that the examples run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// A simulation in this process.
    Memory,
    /// The cluster that this process runs in, else that of the current kubeconfig.
    Kubernetes,
    /// The swarm manager of DOCKER_HOST.
    Swarm,
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
    /// Where the CephFS is mounted, for Swarm: data is in `odoo_instances` below it; default: SAASODOO_CEPHFS, else
    /// SAASODOO_DATA_ROOT as it is, else the configuration's.
    #[arg(long, value_name = "PATH")]
    pub cephfs: Option<PathBuf>,
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
            Backend::Swarm => {
                let mut settings = SwarmConfig::from_env().context("reading Swarm's settings from the environment")?;
                settings.common = config.clone();
                let mount = self
                    .cephfs
                    .clone()
                    .or_else(|| env("SAASODOO_CEPHFS").map(PathBuf::from));
                if let Some(mount) = mount {
                    settings.data_root = mount.join("odoo_instances");
                }
                let backend = SwarmOrchestrator::connect(settings).context("connecting to Docker Swarm")?;
                decor::standard(backend, &config)
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
        if let Some(image) = self.image.clone().or_else(|| env("SAASODOO_STUB_IMAGE")) {
            config.image = image.parse().with_context(|| format!("the image {image:?}"))?;
        }
        if let Some(namespace) = &self.namespace {
            let checked = Config::builder().namespace(namespace).context("--namespace")?;
            config.namespace = checked.build().namespace;
        }
        Ok(config)
    }
}

/// A variable that is set and not empty.
fn env(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
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

/// The code in the README and the book compiles.
#[cfg(doctest)]
mod book {
    macro_rules! page {
        ($name:ident, $file:literal) => {
            #[doc = include_str!(concat!("../../", $file))]
            mod $name {}
        };
    }
    page!(readme, "README.md");
    page!(contract, "docs/src/contract.md");
    page!(dual_run, "docs/src/dual-run.md");
    page!(guide, "docs/src/guide.md");
    page!(kubernetes, "docs/src/kubernetes.md");
    page!(testing, "docs/src/testing.md");
}
