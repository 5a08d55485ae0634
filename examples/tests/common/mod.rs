//! What the tests of `migrate` share: the process, a directory for each test, and journals.

// Each test uses a part of it.
#![allow(dead_code)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use saasodoo_core::migration::{
    Control, FileJournal, Force, Journal, KnownSecrets, MigrationConfig, Migrator, Record, Step,
};
use saasodoo_core::{BackendKind, CreateOptions, DataPolicy, InstanceOrchestrator, InstanceSpec};
use saasodoo_testkit::fixtures;
use saasodoo_testkit::memory::MemoryOrchestrator;

/// The example, built when it is not as new as its sources: a test of a package does not build its examples.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // Beside this test: target/debug/deps/… and target/debug/examples/migrate.
        let here = std::env::current_exe().expect("this test");
        let profile = here.parent().and_then(Path::parent).expect("a target directory");
        let binary = profile.join("examples").join("migrate");
        if !is_fresh(&binary) {
            let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
            let mut build = Command::new(env!("CARGO"));
            build.args(["build", "--quiet", "--manifest-path", manifest, "--example", "migrate"]);
            assert!(build.status().expect("cargo").success());
        }
        binary
    })
}

/// Whether the binary is newer than everything it was made of, which cargo lists beside it.
pub(crate) fn is_fresh(binary: &Path) -> bool {
    let changed = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    let Some(built) = changed(binary) else { return false };
    let Ok(made_of) = std::fs::read_to_string(binary.with_extension("d")) else {
        return false;
    };
    let sources = made_of.split_once(':').map_or("", |(_, sources)| sources);
    let old = |source: &str| changed(Path::new(source)).is_some_and(|at: SystemTime| at <= built);
    !sources.trim().is_empty() && sources.split_ascii_whitespace().all(old)
}

/// A directory of one test, with the state of a wave in it.
pub(crate) struct Bed(pub(crate) PathBuf);

impl Bed {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("saasodoo-migrate-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.0.join("wave")
    }

    pub(crate) fn script(&self, name: &str) -> Script {
        Script(self.0.join(name))
    }

    pub(crate) fn journal(&self) -> PathBuf {
        self.state().join("journal.jsonl")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .arg("--state")
            .arg(self.state())
            .args(["--fleet", "3"])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn call(&self, arguments: &[&str]) -> Answer {
        Answer::of(self.command(arguments).output().expect("a process"))
    }

    pub(crate) fn begin(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process")
    }

    pub(crate) fn records(&self) -> Vec<Record> {
        match FileJournal::open_read_only(self.journal()) {
            Ok(journal) => futures::executor::block_on(journal.load_all()).expect("read"),
            // Not made yet.
            Err(_) => Vec::new(),
        }
    }

    /// Until the journal is so.
    pub(crate) async fn wait_for(&self, what: &str, holds: impl Fn(&[Record]) -> bool) {
        let began = Instant::now();
        while !holds(&self.records()) {
            assert!(began.elapsed() < Duration::from_secs(60), "never {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A program of a test.
pub(crate) struct Script(PathBuf);

impl Script {
    pub(crate) fn write(&self, text: &str) {
        std::fs::write(&self.0, text).expect("written");
        std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o755)).expect("executable");
    }

    pub(crate) fn path(&self) -> String {
        self.0.display().to_string()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Answer {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Self {
            code: output.status.code(),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }
}

pub(crate) fn id(number: u32) -> String {
    format!("{number:08}-0000-0000-0000-{number:012}")
}

pub(crate) fn send(signal: &str, child: &Child) {
    let mut kill = Command::new("kill");
    kill.arg(format!("-{signal}")).arg(child.id().to_string());
    assert!(kill.status().expect("kill").success());
}

/// A journal of one tenant that was moved between platforms of these names.
pub(crate) async fn moved_between(journal: &Path, source: &str, target: &str) {
    moved(journal, (source, target), fixtures::fleet(1).remove(0)).await;
}

/// A journal, or one more tenant in it, that was moved between platforms of these names.
pub(crate) async fn moved(journal: &Path, (source, target): (&str, &str), spec: InstanceSpec) {
    let quick = MemoryOrchestrator::builder().data_root("/data");
    let from = quick.clone().posing_as(BackendKind::Swarm).build();
    let to = quick
        .posing_as(BackendKind::Kubernetes)
        .sharing_data_with(&from)
        .build();
    let path = "odoo_data_one".parse().expect("a path");
    from.make_directory(&path);
    let adopted = CreateOptions::new().with_data(DataPolicy::AdoptDirectory(path));
    from.create(&spec, adopted).await.expect("created");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut config = MigrationConfig::default();
    config.bake = Duration::from_secs(1);
    let id = spec.id;
    let migrator = Migrator::builder(Arc::new(from), Arc::new(to))
        .journal(Arc::new(FileJournal::open(journal).expect("a journal")))
        .identities(source, target)
        .data_root("/data")
        .secrets(Arc::new(KnownSecrets::of(vec![spec])))
        .config(config)
        .build();
    let moved = migrator.migrate(id, Force::none(), &Control::new()).await;
    assert_eq!(moved.expect("moved").step, Step::Committed);
}
