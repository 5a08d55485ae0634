//! Measures the Swarm backend against a real swarm: requests, latency and memory of create, get, list and watch, with
//! the naive way and the raw transfer of the same bytes beside it in the same run.
//!
//! ```sh
//! eval "$(.ci/testbed/testbed env)"
//! cargo run --release -p saasodoo-benches --bin swarm
//! ```
//!
//! No tasks are started: all services have no replicas. They carry a customer of their own and are deleted at the end.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use saasodoo_benches::{Results, Samples, Target, conclude, millis, per, renamed, synchronise, watch_in_children};
use saasodoo_core::{
    Bytes, Config, CreateOptions, CustomerId, InstanceEvent, InstanceFilter, InstanceId, InstanceOrchestrator as _,
    InstanceOrchestratorExt as _, InstanceSpec,
};
use saasodoo_swarm::{DockerHost, SwarmOrchestrator};
use saasodoo_testkit::fixtures;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

/// Measures the Swarm backend.
#[derive(Parser)]
struct Options {
    /// Numbers of instances to measure with, ascending.
    #[arg(long, value_delimiter = ',', default_value = "100,1000")]
    sizes: Vec<usize>,
    /// How many creations of each kind.
    #[arg(long, default_value_t = 25)]
    creations: usize,
    /// Exit with an error when a target does not hold.
    #[arg(long)]
    check: bool,
    /// Used by this program itself, to measure memory in a process of its own: synchronise a watch of this customer.
    #[arg(long, hide = true)]
    child: Option<CustomerId>,
}

/// The daemon without any client: one connection for each request, as bollard has it.
struct Raw {
    socket: PathBuf,
    count: AtomicU64,
}

impl Raw {
    async fn send(&self, method: &str, target: &str, body: Option<&Value>) -> anyhow::Result<Vec<u8>> {
        self.count.fetch_add(1, Ordering::Relaxed);
        let body = body.map(ToString::to_string).unwrap_or_default();
        let head = format!(
            "{method} {target} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(body.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .context("no end of the headers")?;
        let status = String::from_utf8_lossy(&answer[..end.min(12)]).into_owned();
        let body = answer.split_off(end + 4);
        ensure!(
            status.contains(" 2"),
            "{method} {target}: {status} {}",
            String::from_utf8_lossy(&body)
        );
        Ok(body)
    }

    async fn json(&self, method: &str, target: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        Ok(serde_json::from_slice(&self.send(method, target, body).await?)?)
    }

    fn requests(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// `filters={"<kind>":["<value>"]}`, encoded.
fn filter(kind: &str, value: &str) -> String {
    format!("filters=%7B%22{kind}%22%3A%5B%22{}%22%5D%7D", value.replace('=', "%3D"))
}

struct Bench {
    raw: Raw,
    swarm: SwarmOrchestrator,
    customer: CustomerId,
    root: PathBuf,
}

impl Bench {
    fn socket() -> anyhow::Result<PathBuf> {
        let host = std::env::var("DOCKER_HOST").context("DOCKER_HOST")?;
        let socket = host.strip_prefix("unix://").context("DOCKER_HOST is no Unix socket")?;
        Ok(PathBuf::from(socket))
    }

    fn orchestrator(socket: &Path, root: &Path) -> anyhow::Result<SwarmOrchestrator> {
        let common = Config::builder().base_domain("swbench.example".parse()?).build();
        let builder = SwarmOrchestrator::builder(common)
            .host(DockerHost::Unix(socket.to_owned()))
            .data_root(root);
        Ok(builder.build()?)
    }

    fn connect() -> anyhow::Result<Self> {
        let socket = Self::socket()?;
        let cephfs = std::env::var("SAASODOO_CEPHFS").context("SAASODOO_CEPHFS")?;
        let root = Path::new(&cephfs).join(format!("swbench-{}", InstanceId::random().short()));
        std::fs::create_dir(&root)?;
        let swarm = Self::orchestrator(&socket, &root)?;
        Ok(Self {
            raw: Raw {
                socket,
                count: AtomicU64::new(0),
            },
            swarm,
            customer: CustomerId::random(),
            root,
        })
    }

    fn spec(&self) -> InstanceSpec {
        let id = InstanceId::random();
        fixtures::spec_with_id(&format!("swb{}", id.short()), id)
            .with_storage(Bytes::from_mib(1))
            .with_customer(self.customer)
    }

    fn label(&self) -> String {
        format!("saasodoo.customer.id={}", self.customer)
    }

    fn mine(&self) -> InstanceFilter {
        InstanceFilter::all().with_customer(self.customer)
    }

    async fn services(&self) -> anyhow::Result<Vec<Value>> {
        let services = self
            .raw
            .json("GET", &format!("/services?{}", filter("label", &self.label())), None)
            .await?;
        Ok(services.as_array().cloned().unwrap_or_default())
    }

    /// Deletes the services, their secrets and the directories of this run.
    async fn clean(&self) -> anyhow::Result<()> {
        let mut secrets = Vec::new();
        let services = self.services().await?;
        for service in &services {
            for secret in service["Spec"]["TaskTemplate"]["ContainerSpec"]["Secrets"]
                .as_array()
                .into_iter()
                .flatten()
            {
                secrets.extend(secret["SecretID"].as_str().map(|id| format!("/secrets/{id}")));
            }
        }
        let services = services
            .iter()
            .filter_map(|service| Some(format!("/services/{}", service["ID"].as_str()?)));
        for targets in [services.collect::<Vec<_>>(), secrets] {
            stream::iter(targets)
                .map(|target| async move { self.raw.send("DELETE", &target, None).await })
                .buffer_unordered(8)
                .for_each(|_| async {})
                .await;
        }
        std::fs::remove_dir_all(&self.root)?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    if let Some(customer) = options.child {
        // It only reads: directories that nobody can see are as good as those of the services.
        let swarm = Bench::orchestrator(&Bench::socket()?, Path::new(&std::env::var("SAASODOO_CEPHFS")?))?;
        let filter = InstanceFilter::all().with_customer(customer);
        return synchronise(&swarm, filter, || swarm.requests()).await;
    }
    let bench = Bench::connect()?;
    let measured = measure(&bench, &options).await;
    conclude(measured, bench.clean(), options.check).await
}

async fn measure(bench: &Bench, options: &Options) -> anyhow::Result<Results> {
    let version = bench.raw.json("GET", "/version", None).await?;
    let mut results = Results::new("swarm", version["Version"].as_str().unwrap_or_default());
    let model = bench.spec();
    bench.swarm.create(&model, CreateOptions::new().stopped()).await?;
    creation(bench, options, &model, 0, &mut results).await?;
    for size in &options.sizes {
        populate(bench, &model, *size).await?;
        reading(bench, &model, *size, &mut results).await?;
        listing(bench, *size, &mut results).await?;
        let child = ["--child".to_owned(), bench.customer.to_string()];
        watch_in_children(&child, *size, &mut results).await?;
        resting(bench, *size, &mut results).await?;
        creation(bench, options, &model, *size, &mut results).await?;
    }
    targets(options, &mut results);
    Ok(results)
}

/// Ours in full, and beside it nothing but the last request of today's code.
async fn creation(
    bench: &Bench,
    options: &Options,
    model: &InstanceSpec,
    size: usize,
    results: &mut Results,
) -> anyhow::Result<()> {
    let (mut ours, mut raw) = (Samples::default(), Samples::default());
    let services = bench.services().await?;
    let mut of_model = services
        .iter()
        .filter(|service| service["Spec"]["Labels"]["saasodoo.instance.id"] == model.id.to_string());
    let body = of_model.next().context("the model's service")?["Spec"].clone();
    let (before, raw_before) = (bench.swarm.requests(), bench.raw.requests());
    for _ in 0..options.creations {
        let spec = bench.spec();
        let start = Instant::now();
        bench.swarm.create(&spec, CreateOptions::new().stopped()).await?;
        ours.push(start.elapsed());
        let copy = copied(&body, model);
        let start = Instant::now();
        bench.raw.send("POST", "/services/create", Some(&copy)).await?;
        raw.push(start.elapsed());
    }
    results.row(
        "create",
        "saasodoo",
        size,
        &ours,
        per(bench.swarm.requests() - before, ours.len()),
    );
    results.row(
        "create",
        "raw",
        size,
        &raw,
        per(bench.raw.requests() - raw_before, raw.len()),
    );
    Ok(())
}

/// The same service under a name and an id of its own, with the same secrets.
fn copied(body: &Value, model: &InstanceSpec) -> Value {
    let id = InstanceId::random();
    let copy = renamed(body, &model.id.to_string(), &id.to_string());
    let mut copy = renamed(&copy, &model.id.short().to_string(), &id.short().to_string());
    copy["TaskTemplate"]["ContainerSpec"]["Secrets"] = body["TaskTemplate"]["ContainerSpec"]["Secrets"].clone();
    copy
}

async fn populate(bench: &Bench, model: &InstanceSpec, size: usize) -> anyhow::Result<()> {
    let services = bench.services().await?;
    let body = services.first().context("a service to copy")?;
    let id = body["Spec"]["Labels"]["saasodoo.instance.id"]
        .as_str()
        .context("an id")?;
    let mut source = model.clone();
    source.id = id.parse()?;
    let body = &body["Spec"];
    stream::iter(services.len()..size)
        .map(|_| {
            let copy = copied(body, &source);
            async move { bench.raw.send("POST", "/services/create", Some(&copy)).await }
        })
        .buffer_unordered(8)
        .try_for_each(|_| async { Ok(()) })
        .await
}

async fn reading(bench: &Bench, model: &InstanceSpec, size: usize, results: &mut Results) -> anyhow::Result<()> {
    let (mut ours, mut naive) = (Samples::default(), Samples::default());
    let name = bench.swarm.get(model.id).await?.name;
    let (before, naive_before) = (bench.swarm.requests(), bench.raw.requests());
    for _ in 0..50 {
        let start = Instant::now();
        bench.swarm.get(model.id).await?;
        ours.push(start.elapsed());
        let start = Instant::now();
        bench.raw.json("GET", &format!("/services/{name}"), None).await?;
        bench
            .raw
            .json("GET", &format!("/tasks?{}", filter("service", name.as_str())), None)
            .await?;
        naive.push(start.elapsed());
    }
    results.row(
        "get",
        "saasodoo",
        size,
        &ours,
        per(bench.swarm.requests() - before, ours.len()),
    );
    results.row(
        "get",
        "naive",
        size,
        &naive,
        per(bench.raw.requests() - naive_before, naive.len()),
    );
    Ok(())
}

async fn listing(bench: &Bench, size: usize, results: &mut Results) -> anyhow::Result<()> {
    let (mut ours, mut raw, mut naive) = (Samples::default(), Samples::default(), Samples::default());
    let label = filter("label", &bench.label());
    let before = bench.swarm.requests();
    for _ in 0..10 {
        let start = Instant::now();
        let listed = bench.swarm.list_all(bench.mine()).await?;
        ours.push(start.elapsed());
        ensure!(listed.len() == size, "{} of {size} were listed", listed.len());
    }
    let requests = per(bench.swarm.requests() - before, ours.len());
    results.row("list", "saasodoo", size, &ours, requests);
    let before = bench.raw.requests();
    for _ in 0..10 {
        let start = Instant::now();
        let (services, tasks) = (format!("/services?{label}"), format!("/tasks?{label}"));
        futures::try_join!(
            bench.raw.send("GET", &services, None),
            bench.raw.send("GET", &tasks, None)
        )?;
        raw.push(start.elapsed());
    }
    results.row("list", "raw", size, &raw, per(bench.raw.requests() - before, raw.len()));
    let names: Vec<String> = bench
        .services()
        .await?
        .iter()
        .filter_map(|service| service["Spec"]["Name"].as_str().map(str::to_owned))
        .collect();
    let before = bench.raw.requests();
    for _ in 0..2 {
        let start = Instant::now();
        for name in &names {
            bench.raw.json("GET", &format!("/services/{name}"), None).await?;
            bench
                .raw
                .json("GET", &format!("/tasks?{}", filter("service", name)), None)
                .await?;
        }
        naive.push(start.elapsed());
    }
    results.row(
        "list",
        "naive",
        size,
        &naive,
        per(bench.raw.requests() - before, naive.len()),
    );
    Ok(())
}

/// At rest a watch asks at the slow interval only.
async fn resting(bench: &Bench, size: usize, results: &mut Results) -> anyhow::Result<()> {
    let mut events = bench.swarm.watch(bench.mine());
    while !matches!(events.next().await.context("the watch ended")?, InstanceEvent::Synced) {}
    let before = bench.swarm.requests();
    tokio::time::sleep(Duration::from_secs(10)).await;
    results.notes.push(format!(
        "a watch at rest over {size} instances made {} requests in 10 s",
        bench.swarm.requests() - before
    ));
    Ok(())
}

fn targets(options: &Options, results: &mut Results) {
    let largest = options.sizes.last().copied().unwrap_or_default();
    for size in &options.sizes {
        if let Some(row) = results.find("list", "saasodoo", *size) {
            let target = Target::at_most(format!("requests of a list of {size}"), row.requests, 2.0);
            results.targets.push(target);
        }
    }
    if let (Some(ours), Some(naive)) = (
        results.find("list", "saasodoo", largest),
        results.find("list", "naive", largest),
    ) {
        let target = Target::at_most(
            format!("a list of {largest} against the naive one"),
            ours.median_ms / naive.median_ms.max(0.001),
            0.1,
        );
        results.targets.push(target);
    }
    if let (Some(ours), Some(raw)) = (
        results.find("list", "saasodoo", largest),
        results.find("list", "raw", largest),
    ) {
        let overhead = Duration::from_secs_f64((ours.median_ms - raw.median_ms).max(0.0) / 1e3);
        results.notes.push(format!(
            "a list of {largest} takes {:.1} ms more than its transfer",
            millis(overhead)
        ));
    }
}
