//! The two platforms: real ones, or a simulation that remembers through the journal.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use saasodoo_core::migration::{Mutation, Record, Side, Step};
use saasodoo_core::{
    BackendKind, Config, CreateOptions, DataPath, DataPolicy, DynOrchestrator, InstanceOrchestrator, InstanceSpec,
    Power,
};
use saasodoo_k8s::{AdoptionSource, KubernetesConfig, KubernetesOrchestrator};
use saasodoo_swarm::{DockerHost, SwarmConfig, SwarmOrchestrator};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

use super::guard::{Identities, Identity, SIMULATION};

const SIMULATED_ROOT: &str = "/mnt/cephfs/odoo_instances";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A simulation in this process.
    Memory,
    /// The swarm manager of DOCKER_HOST.
    Swarm,
    /// The cluster that this process runs in, else that of the current kubeconfig.
    Kubernetes,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct PlatformArgs {
    /// Where the tenants are.
    #[arg(long, value_enum, default_value = "memory", global = true)]
    pub(crate) source: Kind,
    /// Where they go.
    #[arg(long, value_enum, default_value = "memory", global = true)]
    pub(crate) target: Kind,
    /// The directory that both platforms see, with one directory of each tenant in it; default: SAASODOO_DATA_ROOT,
    /// else `odoo_instances` below SAASODOO_CEPHFS, else /mnt/cephfs/odoo_instances.
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) data_root: Option<PathBuf>,
    /// The Kubernetes namespace; default: KUBERNETES_NAMESPACE, else the configuration's.
    #[arg(long, global = true)]
    pub(crate) namespace: Option<String>,
    /// How many tenants the simulation has.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=100_000), value_name = "N", global = true)]
    pub(crate) fleet: u32,
}

/// Both sides.
pub(crate) struct Platforms {
    pub(crate) source: DynOrchestrator,
    pub(crate) target: DynOrchestrator,
    pub(crate) data_root: String,
    /// What the simulation knows about its own tenants; real ones' secrets come from elsewhere.
    pub(crate) specs: Vec<InstanceSpec>,
    pub(crate) simulated: bool,
}

impl PlatformArgs {
    /// Why these are no two platforms between which a tenant could move.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        match (self.source, self.target) {
            (Kind::Memory, Kind::Memory) => None,
            (Kind::Memory, _) | (_, Kind::Memory) => {
                Some("a simulated platform has no data in common with a real one: give both --source and --target")
            }
            (source, target) => (source == target).then_some("--source and --target are the same"),
        }
    }

    /// Which platforms these are, before anything is asked of them.
    pub(crate) async fn identify(&self) -> Result<Identities> {
        if let Some(why) = self.contradiction() {
            bail!(why);
        }
        let (source, target) = match (self.source, self.target) {
            (Kind::Memory, Kind::Memory) => (
                Identity::new(BackendKind::Swarm, SIMULATION),
                Identity::new(BackendKind::Kubernetes, SIMULATION),
            ),
            (source, target) => (self.identity(source).await?, self.identity(target).await?),
        };
        Ok(Identities { source, target })
    }

    /// Connects to both sides. A simulation is put into the state that the journal tells of.
    pub(crate) async fn connect(&self, records: &[Record], deadline: Duration) -> Result<Platforms> {
        if self.source == Kind::Memory {
            return self.simulate(records).await;
        }
        let data_root = self.data_root();
        Ok(Platforms {
            source: self.real(self.source, &data_root, deadline).await?,
            target: self.real(self.target, &data_root, deadline).await?,
            data_root: data_root.display().to_string(),
            specs: Vec::new(),
            simulated: false,
        })
    }

    fn data_root(&self) -> PathBuf {
        let variable = |name: &str| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        self.data_root
            .clone()
            .or_else(|| variable("SAASODOO_DATA_ROOT"))
            .or_else(|| variable("SAASODOO_CEPHFS").map(|mount| mount.join("odoo_instances")))
            .unwrap_or_else(|| PathBuf::from(SIMULATED_ROOT))
    }

    /// The daemon's address, or the API server of the current context with the namespace.
    async fn identity(&self, kind: Kind) -> Result<Identity> {
        if kind != Kind::Kubernetes {
            let settings = SwarmConfig::from_env().context("reading Swarm's settings from the environment")?;
            let address = match settings.host {
                DockerHost::Unix(socket) => socket.display().to_string(),
                DockerHost::Tcp(address) | DockerHost::Tls { address, .. } => address,
                other => format!("{other:?}"),
            };
            return Ok(Identity::new(BackendKind::Swarm, format!("swarm manager {address}")));
        }
        let namespace = match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => KubernetesConfig::from_env()?.common.namespace,
        };
        let server = match std::env::var("KUBERNETES_SERVICE_HOST") {
            Ok(host) => host,
            Err(_) => {
                let kubeconfig = kube::Config::from_kubeconfig(&kube::config::KubeConfigOptions::default()).await;
                let kubeconfig = kubeconfig.context("reading the kubeconfig")?;
                kubeconfig.cluster_url.to_string()
            }
        };
        let name = format!("kubernetes {server}, namespace {namespace}");
        Ok(Identity::new(BackendKind::Kubernetes, name))
    }

    /// A real platform, without a watch cache: every read of a migration is live.
    async fn real(&self, kind: Kind, data_root: &Path, deadline: Duration) -> Result<DynOrchestrator> {
        if kind == Kind::Swarm {
            let mut settings = SwarmConfig::from_env().context("reading Swarm's settings from the environment")?;
            settings.data_root = data_root.to_path_buf();
            bound(&mut settings.common, deadline);
            let swarm = SwarmOrchestrator::connect(settings).context("connecting to Docker Swarm")?;
            return Ok(Arc::new(swarm));
        }
        let mut settings = KubernetesConfig::from_env().context("reading the settings from the environment")?;
        bound(&mut settings.common, deadline);
        if let Some(namespace) = &self.namespace {
            settings.common.namespace = Config::builder().namespace(namespace)?.build().namespace;
        }
        if settings.adoption.is_none() {
            let root = data_root.display().to_string();
            settings = settings.with_adoption(AdoptionSource::HostPath { root });
        }
        let kubernetes = KubernetesOrchestrator::builder(settings).build().await;
        Ok(Arc::new(kubernetes.context("connecting to Kubernetes")?))
    }

    async fn simulate(&self, records: &[Record]) -> Result<Platforms> {
        let quick = MemoryOrchestrator::builder()
            .data_root(SIMULATED_ROOT)
            .latency(Duration::from_millis(15))
            .pull_time(Duration::from_millis(100))
            .stop_time(Duration::from_millis(300));
        let source = quick
            .clone()
            .posing_as(BackendKind::Swarm)
            .start_time(Duration::from_millis(500))
            .build();
        let target = quick
            .posing_as(BackendKind::Kubernetes)
            .latency(Duration::from_millis(25))
            .start_time(Duration::from_millis(700))
            .sharing_data_with(&source)
            .build();
        let specs = fixtures::fleet(self.fleet);
        for spec in &specs {
            let record = records.iter().find(|record| record.instance == spec.id);
            restore(&source, &target, spec, record).await?;
        }
        // The fleet has been running for a while.
        tokio::time::sleep(Duration::from_millis(1200)).await;
        Ok(Platforms {
            source: Arc::new(source),
            target: Arc::new(target),
            data_root: SIMULATED_ROOT.to_owned(),
            specs,
            simulated: true,
        })
    }
}

/// No operation, nor undoing it, takes longer than this; what ends a process has its grace beside it.
fn bound(common: &mut Config, deadline: Duration) {
    let deadlines = &mut common.deadlines;
    deadlines.operation = deadline;
    // Never shorter than the grace that instances have by default, and what a node takes to tell.
    deadlines.termination = deadline.max(Duration::from_secs(75));
    deadlines.write = deadlines.write.min(deadline);
    deadlines.cleanup = deadlines.cleanup.min(deadline);
}

/// The simulation ends with the process, real platforms do not: puts one tenant where its last run left it.
async fn restore(
    source: &MemoryOrchestrator,
    target: &MemoryOrchestrator,
    spec: &InstanceSpec,
    record: Option<&Record>,
) -> Result<()> {
    let path: DataPath = format!("odoo_data_{}_{}", spec.database_name, spec.id.short()).parse()?;
    source.make_directory(&path);
    let adopted = || CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path.clone()));
    let step = record.map(|record| record.step);
    let was = |side: Side, mutation: Mutation| {
        record.is_some_and(|record| {
            record
                .doubts
                .iter()
                .any(|doubt| (doubt.side, doubt.mutation) == (side, mutation))
        })
    };
    let touched = record.is_some_and(|record| record.source_touched);
    let home = !touched
        || matches!(
            step,
            Some(Step::AwaitSource | Step::RestoreRoute | Step::RemoveTarget | Step::RolledBack)
        );
    if step != Some(Step::Finished) {
        if home {
            source.create(spec, adopted()).await?;
        } else {
            source.create(spec, adopted().stopped()).await?;
            source.set_power(spec.id, Power::Suspend).await?;
        }
    }
    let created = record.is_some_and(|record| record.create_tried && step != Some(Step::RolledBack));
    if created && !was(Side::Target, Mutation::Create) {
        target.create(spec, adopted().stopped()).await?;
        let up = record.is_some_and(|record| record.target_started) && step.is_some_and(|step| !step.is_back());
        let power = if up && !was(Side::Target, Mutation::Start) {
            Power::Start
        } else {
            Power::Suspend
        };
        target.set_power(spec.id, power).await?;
    }
    Ok(())
}
