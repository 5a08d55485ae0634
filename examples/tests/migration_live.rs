//! The `migrate` example on a real Swarm and a real Kubernetes with one CephFS: tenants made by docker-py as the system
//! in production makes them, moved, killed half-way, and taken back.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use saasodoo_core::migration::{FileJournal, Journal, Report, Step};
use saasodoo_core::{Config, InstanceId, InstanceOrchestratorExt, InstanceStatus};
use saasodoo_k8s::{KubernetesConfig, KubernetesOrchestrator};

const DOMAIN: &str = "migrate.example";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: eval \"$(.ci/testbed/testbed env)\""))
}

fn run(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        status.success(),
        "{shown}: {status}\n{}\n{}",
        text(&stdout),
        text(&stderr)
    );
    text(&stdout)
}

/// A namespace, a data root and a state directory of one test. What is in them goes away with it.
struct Bed {
    name: &'static str,
    root: PathBuf,
    state: PathBuf,
    binary: PathBuf,
    tenants: Vec<(InstanceId, String)>,
}

impl Bed {
    async fn new(name: &'static str, size: u32) -> Self {
        let root = PathBuf::from(variable("SAASODOO_CEPHFS")).join(format!("instances-{name}"));
        let state = std::env::temp_dir().join(format!("saasodoo-{name}-{}", std::process::id()));
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        run(Command::new(env!("CARGO")).args([
            "build",
            "--quiet",
            "--manifest-path",
            manifest,
            "--example",
            "migrate",
        ]));
        // Beside this test: target/debug/deps/… and target/debug/examples/migrate.
        let here = std::env::current_exe().expect("this test");
        let profile = here.parent().and_then(Path::parent).expect("a target directory");
        let binary = profile.join("examples").join("migrate");
        let mut bed = Self {
            name,
            root,
            state,
            binary,
            tenants: Vec::new(),
        };
        bed.clean();
        std::fs::create_dir_all(&bed.root).expect("a directory on the CephFS");
        run(Command::new("kubectl").args(["create", "namespace", name]));
        for number in 1..=size {
            bed.tenant(&format!("{name}{number}"));
        }
        bed.wait_for_services(size).await;
        bed
    }

    /// A tenant as the system in production has it: directory, quota, service.
    fn tenant(&mut self, slug: &str) {
        let id = InstanceId::random();
        let data = self.root.join(format!("odoo_data_{slug}_{}", id.short()));
        std::fs::create_dir(&data).expect("a directory");
        let quota = format!("import os; os.setxattr({data:?}, 'ceph.quota.max_bytes', b'33554432')");
        run(Command::new("python3").args(["-c", &quota]));
        std::fs::write(data.join("before.txt"), "before").expect("written");
        let python = std::env::var("SAASODOO_PYTHON").unwrap_or_else(|_| "python3".to_owned());
        run(Command::new(python)
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/../saasodoo-swarm/tests/legacy_create.py"
            ))
            .args([slug, &id.to_string(), DOMAIN, &variable("SAASODOO_STUB_IMAGE")])
            .args([data.to_str().expect("UTF-8"), "saasodoo-network"]));
        self.tenants.push((id, format!("odoo-{slug}-{}", id.short())));
    }

    async fn wait_for_services(&self, size: u32) {
        let deadline = Instant::now() + Duration::from_secs(240);
        loop {
            let up = self.services().iter().filter(|line| line.ends_with(" 1/1")).count();
            if up == usize::try_from(size).expect("small") {
                return;
            }
            assert!(Instant::now() < deadline, "{:?}", self.services());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Each service with its replicas.
    fn services(&self) -> Vec<String> {
        let filter = format!("name=odoo-{}", self.name);
        run(Command::new("docker").args([
            "service",
            "ls",
            "--filter",
            &filter,
            "--format",
            "{{.Name}} {{.Replicas}}",
        ]))
        .lines()
        .map(ToOwned::to_owned)
        .collect()
    }

    fn data(&self, index: usize) -> PathBuf {
        let (_, name) = &self.tenants[index];
        let (slug, short) = name["odoo-".len()..].rsplit_once('-').expect("a name");
        self.root.join(format!("odoo_data_{slug}_{short}"))
    }

    fn migrate(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .env("BASE_DOMAIN", DOMAIN)
            .args(["--source", "swarm", "--target", "kubernetes", "--bake", "3"])
            // A killed process leaves changes behind whose outcome is not known. They are waited for.
            .args(["--deadline", "30"])
            .args(["--namespace", self.name])
            .arg("--state")
            .arg(&self.state)
            .arg("--data-root")
            .arg(&self.root)
            .args(arguments);
        command
    }

    fn wave(&self, concurrency: &str) -> Command {
        let ids = self.tenants.iter().map(|(id, _)| id.to_string());
        let mut command = self.migrate(&["run", "--concurrency", concurrency]);
        command.args(ids);
        command
    }

    fn report(&self) -> Report {
        serde_json::from_str(&run(&mut self.migrate(&["report"]))).expect("a report")
    }

    /// Waits until so many are committed and another one is in that step.
    async fn wait_for(&self, step: Step, done: usize) {
        let journal = self.state.join("journal.jsonl");
        let deadline = Instant::now() + Duration::from_secs(240);
        loop {
            let records = match FileJournal::open_read_only(&journal) {
                Ok(journal) => journal.load_all().await.expect("read"),
                // Not made yet.
                Err(_) => Vec::new(),
            };
            let committed = records.iter().filter(|record| record.is_committed()).count();
            if committed >= done && records.iter().any(|record| record.step == step) {
                return;
            }
            assert!(Instant::now() < deadline, "never at {step} with {done} committed");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn kubernetes(&self) -> KubernetesOrchestrator {
        let common = Config::builder().namespace(self.name).expect("a name").build();
        KubernetesOrchestrator::builder(KubernetesConfig::new(common))
            .build()
            .await
            .expect("a cluster")
    }

    fn clean(&self) {
        let quiet = |command: &mut Command| drop(command.stdout(Stdio::null()).stderr(Stdio::null()).status());
        for line in self.services() {
            let name = line.split(' ').next().unwrap_or_default();
            quiet(Command::new("docker").args(["service", "rm", name]));
        }
        quiet(Command::new("kubectl").args(["delete", "namespace", self.name, "--wait=true", "--timeout=120s"]));
        // Volumes that stood for these directories.
        let format = "jsonpath={range .items[*]}{.metadata.name} {.spec.claimRef.namespace}{\"\\n\"}{end}";
        let volumes = run(Command::new("kubectl").args(["get", "persistentvolumes", "-o", format]));
        for volume in volumes
            .lines()
            .filter_map(|line| line.strip_suffix(&format!(" {}", self.name)))
        {
            quiet(Command::new("kubectl").args(["delete", "persistentvolume", volume, "--wait=false"]));
        }
        let _ = std::fs::remove_dir_all(&self.root);
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() || std::env::var_os("SAASODOO_KEEP").is_none() {
            self.clean();
        }
    }
}

/// Each second and who wrote it.
fn heartbeats(data: &Path) -> Vec<(u64, String)> {
    let text = std::fs::read_to_string(data.join("heartbeat.log")).expect("heartbeats");
    text.lines()
        .filter_map(|line| {
            let (at, host) = line.split_once(' ')?;
            Some((at.parse().ok()?, host.to_owned()))
        })
        .collect()
}

/// Fails when a writer comes back after another one has begun.
fn assert_one_writer_at_a_time(data: &Path) -> usize {
    let mut writers: Vec<String> = Vec::new();
    for (at, host) in heartbeats(data) {
        if writers.last() != Some(&host) {
            assert!(!writers.contains(&host), "{host} writes again at {at}: {writers:?}");
            writers.push(host);
        }
    }
    writers.len()
}

#[tokio::test]
#[ignore = "needs Docker Swarm, Kubernetes, CephFS and docker-py (creates services and a namespace)"]
async fn a_tenant_moves_with_its_data_and_comes_back() {
    let bed = Bed::new("mig-one", 1).await;
    let (id, name) = bed.tenants[0].clone();
    let data = bed.data(0);
    let id_text = id.to_string();
    let plan = run(&mut bed.migrate(&["plan", &id_text]));
    assert!(
        plan.contains("PersistentVolume ") && plan.contains("1 of 1 can move"),
        "{plan}"
    );
    run(&mut bed.wave("1"));
    assert_eq!(bed.services(), [format!("{name} 0/0")]);
    let before = heartbeats(&data).len();
    std::fs::write(data.join("after.txt"), "after").expect("written");
    let kubernetes = bed.kubernetes().await;
    assert_eq!(kubernetes.status(id).await.expect("read"), InstanceStatus::Running);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let beats = heartbeats(&data);
    assert!(beats.len() > before, "it goes on writing");
    assert!(
        beats.last().is_some_and(|(_, host)| host.starts_with(&name)),
        "a pod writes: {:?}",
        beats.last()
    );
    assert_eq!(
        std::fs::read_to_string(data.join("before.txt")).expect("there"),
        "before"
    );

    run(&mut bed.migrate(&["rollback", &id_text]));
    assert_eq!(bed.services(), [format!("{name} 1/1")]);
    assert!(!kubernetes.exists(id).await.expect("read"));
    for file in ["before.txt", "after.txt"] {
        assert!(data.join(file).exists(), "{file}");
    }
    assert_eq!(assert_one_writer_at_a_time(&data), 3, "Swarm, Kubernetes, Swarm");
    let report = bed.report();
    assert_eq!(report.instances[0].step, Step::RolledBack);
    println!("down for {} ms there and back", report.instances[0].downtime_ms);
}

#[tokio::test]
#[ignore = "needs Docker Swarm, Kubernetes, CephFS and docker-py (creates services and a namespace)"]
async fn a_wave_that_is_killed_three_times_ends_well() {
    let began = Instant::now();
    let bed = Bed::new("mig-wave", 20).await;
    println!("20 tenants after {:.0?}", began.elapsed());
    // Where the wave has come to, by its journal, and not by the clock of a machine that may be slow.
    for (step, done) in [(Step::AwaitTarget, 0), (Step::StopSource, 4), (Step::Bake, 8)] {
        let mut child = bed
            .wave("4")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("started");
        bed.wait_for(step, done).await;
        // SIGKILL: nothing is cleaned up.
        child.kill().expect("killed");
        child.wait().expect("gone");
        let open = bed
            .report()
            .instances
            .iter()
            .filter(|instance| !instance.step.is_rest())
            .count();
        println!("killed at {step} with {open} under way after {:.0?}", began.elapsed());
        assert!(open > 0, "killed with nothing under way");
    }
    println!("{}", run(&mut bed.wave("4")));
    let report = bed.report();
    assert_eq!(report.instances.len(), 20);
    for instance in &report.instances {
        assert_eq!(
            instance.step,
            Step::Committed,
            "{}: {:?}",
            instance.name,
            instance.failure
        );
    }
    assert!(
        bed.services().iter().all(|line| line.ends_with(" 0/0")),
        "{:?}",
        bed.services()
    );
    let kubernetes = bed.kubernetes().await;
    for (index, (id, _)) in bed.tenants.iter().enumerate() {
        assert_eq!(kubernetes.status(*id).await.expect("read"), InstanceStatus::Running);
        assert_eq!(
            assert_one_writer_at_a_time(&bed.data(index)),
            2,
            "Swarm, then Kubernetes"
        );
    }
    let downtime = report.median_downtime().expect("measured");
    println!("median downtime {downtime:.1?}, {:.0?} in all", began.elapsed());
}

/// How many tenants are moved at once, and restarted at once.
const AT_ONCE: u32 = 4;
/// How often. The kubelet asks for readiness, and takes an ended pod away, in rounds of ten seconds, for a move as for a
/// restart: a few measurements say little.
const ROUNDS: u32 = 3;

fn median<T: Ord + Copy>(mut of: Vec<T>) -> T {
    of.sort_unstable();
    of[of.len() / 2]
}

/// How long the tenants were in each step in which they were down, by the journal.
fn print_steps(report: &Report) {
    for step in [
        Step::StopSource,
        Step::Fence,
        Step::StartTarget,
        Step::AwaitTarget,
        Step::ProbeTarget,
        Step::SwitchRoute,
    ] {
        let runs = report.instances.iter().flat_map(|instance| &instance.timeline);
        let took: Vec<i128> = runs
            .filter(|run| run.step == step)
            .filter_map(|run| Some(run.ended?.duration_since(run.began).as_millis()))
            .collect();
        println!("  {step}: median {} ms of {took:?}", median(took.clone()));
    }
}

/// From the order to stop the source until visitors are sent to the target, by the journal, against a restart of the same
/// tenants on the target, from the order until it is seen running, as many at once.
#[tokio::test]
#[ignore = "needs Docker Swarm, Kubernetes, CephFS and docker-py (creates services and a namespace)"]
async fn the_downtime_of_a_move_is_measured_beside_a_restart() {
    let mut bed = Bed::new("mig-down", 0).await;
    let kubernetes = bed.kubernetes().await;
    let mut restarts = Vec::new();
    for round in 0..ROUNDS {
        let before = bed.tenants.len();
        for number in 1..=AT_ONCE {
            bed.tenant(&format!("{}{}", bed.name, round * AT_ONCE + number));
        }
        bed.wait_for_services(AT_ONCE).await;
        run(&mut bed.wave(&AT_ONCE.to_string()));
        let restarted = bed.tenants[before..].iter().map(|(id, _)| async {
            let began = Instant::now();
            kubernetes.restart(*id).await.expect("restarted");
            let budget = Duration::from_secs(120);
            kubernetes
                .wait_until(*id, InstanceStatus::Running, budget)
                .await
                .expect("running");
            began.elapsed()
        });
        restarts.extend(futures::future::join_all(restarted).await);
    }
    let report = bed.report();
    let all: Vec<u64> = report.instances.iter().map(|instance| instance.downtime_ms).collect();
    let (restart, moved) = (median(restarts.clone()), report.median_downtime().expect("measured"));
    println!("median downtime {moved:.1?} ({all:?} ms), median restart {restart:.1?} ({restarts:.1?})");
    print_steps(&report);
    assert_eq!(all.len(), restarts.len());
    assert!(all.iter().all(|downtime| *downtime > 0), "{all:?}");
    // A clock fails no test: the line above is to be read.
    println!(
        "a move is down for {:.2} times a restart",
        moved.as_secs_f64() / restart.as_secs_f64()
    );
}
