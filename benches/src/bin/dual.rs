//! Measures what a dual run costs its caller while the secondary is healthy, hangs, fails or panics: the same calls to
//! the primary directly and through the dual run, by turns in one run.
//!
//! ```sh
//! cargo run --release -p saasodoo-benches --bin dual -- --check
//! ```
//!
//! Both sides are in memory, on the running clock. Each call of the primary takes a fixed time, as a platform's does.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use async_trait::async_trait;
use clap::Parser;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use saasodoo_benches::{Results, Samples, Target};
use saasodoo_core::dual::{DualRun, Policy};
use saasodoo_core::migration::RootedData;
use saasodoo_core::{
    BackendKind, Capabilities, CreateOptions, DeleteOptions, Deleted, DynOrchestrator, Ensured, ErrorKind, Health,
    Instance, InstanceChange, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator,
    InstanceOrchestratorExt as _, InstanceSpec, LogLine, LogOptions, Operation, Plan, Power, Result, UpdateOptions,
};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::{Fault, FaultPlan, MemoryOrchestrator, PlannedFault};

/// The most that the dual run may take, as a multiple of the direct call.
const LIMIT: f64 = 1.05;
const OPERATIONS: [&str; 3] = ["get", "list", "set_power"];

/// Measures the dual run.
#[derive(Parser)]
struct Options {
    /// How many calls of each kind, each way.
    #[arg(long, default_value_t = 400)]
    calls: usize,
    /// How many creations, each way.
    #[arg(long, default_value_t = 50)]
    creations: usize,
    /// How many instances a listing has.
    #[arg(long, default_value_t = 20)]
    instances: u32,
    /// How long a call of the primary takes, in microseconds.
    #[arg(long, default_value_t = 2000)]
    service_us: u64,
    /// How long a creation waits for the secondary, in milliseconds.
    #[arg(long, default_value_t = 50)]
    budget_ms: u64,
    /// How many threads the runtime has; 0: the caller's only, on which all work beside its way then competes with it.
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Exit with an error when a target does not hold.
    #[arg(long)]
    check: bool,
}

/// A primary whose calls take a fixed time. The runtime's timers are too coarse for a difference of five in a hundred,
/// so the time passes in yields, in which others run as they do while a server is awaited.
#[derive(Debug, Clone)]
struct Served {
    inner: MemoryOrchestrator,
    time: Duration,
}

impl Served {
    async fn serve(&self) {
        let end = Instant::now() + self.time;
        while Instant::now() < end {
            tokio::task::yield_now().await;
        }
    }
}

impl fmt::Display for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl InstanceOrchestrator for Served {
    fn backend(&self) -> BackendKind {
        self.inner.backend()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn create(&self, spec: &InstanceSpec, options: CreateOptions) -> Result<Ensured> {
        self.serve().await;
        self.inner.create(spec, options).await
    }

    async fn update(&self, id: InstanceId, change: &InstanceChange, options: UpdateOptions) -> Result<Ensured> {
        self.serve().await;
        self.inner.update(id, change, options).await
    }

    async fn set_power(&self, id: InstanceId, power: Power) -> Result<Instance> {
        self.serve().await;
        self.inner.set_power(id, power).await
    }

    async fn delete(&self, id: InstanceId, options: DeleteOptions) -> Result<Deleted> {
        self.serve().await;
        self.inner.delete(id, options).await
    }

    async fn get(&self, id: InstanceId) -> Result<Instance> {
        self.serve().await;
        self.inner.get(id).await
    }

    fn list(&self, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        let this = self.clone();
        stream::once(async move {
            this.serve().await;
            this.inner.list(filter)
        })
        .flatten()
        .boxed()
    }

    fn watch(&self, filter: InstanceFilter) -> BoxStream<'static, InstanceEvent> {
        self.inner.watch(filter)
    }

    fn logs(&self, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
        self.inner.logs(id, options)
    }

    async fn plan(&self, operation: &Operation) -> Result<Plan> {
        self.serve().await;
        self.inner.plan(operation).await
    }

    async fn health(&self) -> Health {
        self.serve().await;
        self.inner.health().await
    }
}

/// The same calls, one way and the other.
#[derive(Default)]
struct Pair {
    direct: Samples,
    dual: Samples,
}

impl Pair {
    /// Both ways, the first one first every other time.
    async fn measure<F: Future<Output = Result<()>>>(
        &mut self,
        round: usize,
        ways: [&DynOrchestrator; 2],
        call: impl Fn(DynOrchestrator) -> F,
    ) -> Result<()> {
        for way in [round % 2, 1 - round % 2] {
            let orchestrator = Arc::clone(ways[way]);
            let began = Instant::now();
            call(orchestrator).await?;
            let took = began.elapsed();
            if way == 0 {
                self.direct.push(took);
            } else {
                self.dual.push(took);
            }
        }
        Ok(())
    }

    fn ratio(&self) -> f64 {
        self.dual.median().as_secs_f64() / self.direct.median().as_secs_f64()
    }
}

struct Bench {
    primary: DynOrchestrator,
    dual: DynOrchestrator,
    one: InstanceId,
}

impl Bench {
    async fn with(options: &Options, fault: Option<Fault>) -> Result<Self> {
        let inner = MemoryOrchestrator::builder().posing_as(BackendKind::Swarm).build();
        let secondary = MemoryOrchestrator::builder()
            .posing_as(BackendKind::Kubernetes)
            .sharing_data_with(&inner)
            .build();
        if let Some(fault) = fault {
            secondary.plan_faults(FaultPlan::new().with(PlannedFault {
                operation: None,
                instance: None,
                first: 1,
                last: None,
                fault,
            }));
        }
        let fleet = fixtures::fleet(options.instances);
        for spec in &fleet {
            inner.create(spec, CreateOptions::new()).await?;
        }
        let time = Duration::from_micros(options.service_us);
        let primary: DynOrchestrator = Arc::new(Served { inner, time });
        let dual = DualRun::builder(Arc::clone(&primary), Arc::new(secondary))
            .policy(Policy::Mirror)
            .data_locator(Arc::new(RootedData::under("/mnt/cephfs/odoo_instances")))
            .create_budget(Duration::from_millis(options.budget_ms))
            .build();
        Ok(Self {
            primary,
            dual: Arc::new(dual),
            one: fleet[0].id,
        })
    }

    async fn run(&self, operation: &str, calls: usize) -> Result<Pair> {
        let (ways, id) = ([&self.primary, &self.dual], self.one);
        let mut pair = Pair::default();
        for round in 0..calls {
            match operation {
                "get" => {
                    pair.measure(round, ways, |o| async move { o.get(id).await.map(drop) })
                        .await?
                }
                "list" => {
                    pair.measure(round, ways, |o| async move {
                        o.list_all(InstanceFilter::all()).await.map(drop)
                    })
                    .await?;
                }
                "set_power" => {
                    let power = if round % 2 == 0 { Power::Stop } else { Power::Start };
                    pair.measure(round, ways, |o| async move { o.set_power(id, power).await.map(drop) })
                        .await?;
                }
                _ => {
                    pair.measure(round, ways, |o| async move {
                        let spec = fixtures::spec(&format!("new-{}", InstanceId::random().short()));
                        o.create(&spec, CreateOptions::new().stopped()).await.map(drop)
                    })
                    .await?;
                }
            }
        }
        Ok(pair)
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut runtime = match options.workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if options.workers > 0 {
        runtime.worker_threads(options.workers);
    }
    runtime.enable_all().build()?.block_on(measure(&options))
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    // The planned panics are caught; what they say is in the way of the table.
    std::panic::set_hook(Box::new(|_| {}));
    let mut results = Results::new("dual", "in memory");
    let secondaries = [
        ("healthy", None),
        ("hanging", Some(Fault::Hang)),
        ("failing", Some(Fault::Fail(ErrorKind::Unavailable))),
        ("panicking", Some(Fault::Panic)),
    ];
    let size = usize::try_from(options.instances)?;
    for (name, fault) in secondaries {
        let bench = Bench::with(options, fault).await?;
        for operation in OPERATIONS {
            let pair = bench.run(operation, options.calls).await?;
            let label = format!("{operation}, secondary {name}");
            results.row(&label, "direct", size, &pair.direct, 1.0);
            results.row(&label, "dual", size, &pair.dual, 1.0);
            let what = format!("{label}: median as a multiple of the direct call's");
            results.targets.push(Target::at_most(what, pair.ratio(), LIMIT));
        }
        let pair = bench.run("create", options.creations).await?;
        let label = format!("create, secondary {name}");
        results.row(&label, "direct", size, &pair.direct, 1.0);
        results.row(&label, "dual", size, &pair.dual, 1.0);
        // It asks the secondary for the id and the hosts, and waits for the answer as long as it was told to.
        let most = pair.direct.median().mul_f64(LIMIT) + Duration::from_millis(options.budget_ms + 2);
        results.targets.push(Target::at_most(
            format!("{label}: median in milliseconds, the budget included"),
            pair.dual.median().as_secs_f64() * 1e3,
            most.as_secs_f64() * 1e3,
        ));
    }
    results.notes.push(format!(
        "A call of the primary takes {} us by a wait that yields to the runtime; the in-memory work comes on top. The policy is Mirror; {} worker threads beside the caller's.",
        options.service_us, options.workers
    ));
    results.notes.push(format!(
        "A creation waits for the secondary's answer, at most {} ms here; nothing else does.",
        options.budget_ms
    ));
    println!("{}", results.table());
    println!("{}", results.write()?.display());
    ensure!(!options.check || results.hold(), "a target does not hold");
    Ok(())
}
