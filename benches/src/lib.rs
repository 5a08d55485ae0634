//! What the harnesses share: samples, memory, requests, and the file of results.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use futures::StreamExt as _;
use saasodoo_core::{InstanceEvent, InstanceFilter, InstanceOrchestrator};
use serde::Serialize;
use serde_json::{Value, json};

/// Durations of repetitions of one thing.
#[derive(Debug, Default, Clone)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds one.
    pub fn push(&mut self, sample: Duration) {
        self.0.push(sample);
    }

    fn at(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let place = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(place).copied().unwrap_or_default()
    }

    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.at(50)
    }

    /// Ninety-five of a hundred are shorter.
    #[must_use]
    pub fn p95(&self) -> Duration {
        self.at(95)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Milliseconds with three decimals.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// One measurement.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// What was done, such as `list`.
    pub operation: String,
    /// How: `saasodoo`, `naive`, `raw`.
    pub way: String,
    /// With how many instances there.
    pub instances: usize,
    /// How often.
    pub samples: usize,
    /// The median latency in milliseconds.
    pub median_ms: f64,
    /// The 95th percentile in milliseconds.
    pub p95_ms: f64,
    /// Requests to the server for one repetition.
    pub requests: f64,
    /// Bytes of memory that it added, where that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// What must hold.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// What it is about.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// The most that it may be.
    pub limit: f64,
    /// Whether it is.
    pub holds: bool,
}

impl Target {
    /// A value that must not be above a limit.
    #[must_use]
    pub fn at_most(name: impl Into<String>, value: f64, limit: f64) -> Self {
        let value = (value * 1000.0).round() / 1000.0;
        Self {
            name: name.into(),
            value,
            limit,
            holds: value <= limit,
        }
    }
}

/// Everything that a harness found out.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// The platform: `kubernetes`, `swarm`, `memory`.
    pub platform: String,
    /// The server's version.
    pub server: String,
    /// Measurements.
    pub rows: Vec<Row>,
    /// Whether the targets hold.
    pub targets: Vec<Target>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Results {
    /// Nothing yet.
    #[must_use]
    pub fn new(platform: &str, server: impl Into<String>) -> Self {
        Self {
            platform: platform.to_owned(),
            server: server.into(),
            rows: Vec::new(),
            targets: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Adds a measurement.
    pub fn row(&mut self, operation: &str, way: &str, instances: usize, samples: &Samples, requests: f64) -> &mut Row {
        let row = Row {
            operation: operation.to_owned(),
            way: way.to_owned(),
            instances,
            samples: samples.len(),
            median_ms: millis(samples.median()),
            p95_ms: millis(samples.p95()),
            requests,
            memory_bytes: None,
        };
        eprintln!("{}", line(&row));
        self.rows.push(row);
        let last = self.rows.len() - 1;
        &mut self.rows[last]
    }

    /// The measurement of that operation, way and size.
    #[must_use]
    pub fn find(&self, operation: &str, way: &str, instances: usize) -> Option<&Row> {
        self.rows
            .iter()
            .find(|row| row.operation == operation && row.way == way && row.instances == instances)
    }

    /// Whether all targets hold.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.targets.iter().all(|target| target.holds)
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!("{} {}\n", self.platform, self.server);
        for row in &self.rows {
            let _ = writeln!(text, "{}", line(row));
        }
        for target in &self.targets {
            let mark = if target.holds { "ok  " } else { "MISS" };
            let _ = writeln!(
                text,
                "{mark} {}: {} (at most {})",
                target.name, target.value, target.limit
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "     {note}");
        }
        text
    }

    /// Writes `bench/<platform>.json` in cargo's target directory.
    ///
    /// # Errors
    /// When that fails.
    pub fn write(&self) -> std::io::Result<PathBuf> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"),
            PathBuf::from,
        );
        let directory = target.join("bench");
        std::fs::create_dir_all(&directory)?;
        let path = directory.join(format!("{}.json", self.platform));
        std::fs::write(&path, serde_json::to_string_pretty(self)?)?;
        Ok(path)
    }
}

fn line(row: &Row) -> String {
    let memory = row
        .memory_bytes
        .map(|bytes| format!("{:.1} MiB", bytes_to_mib(bytes)))
        .unwrap_or_default();
    format!(
        "{:<12} {:<9} {:>5} instances {:>9.2} ms median {:>9.2} ms p95 {:>7.1} requests {memory}",
        row.operation, row.way, row.instances, row.median_ms, row.p95_ms, row.requests
    )
}

#[allow(clippy::cast_precision_loss, reason = "sizes for people")]
fn bytes_to_mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A field of `/proc/self/status` in bytes, such as `VmRSS` or `VmHWM`.
#[must_use]
pub fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .trim()
                .strip_suffix("kB")?
                .trim()
                .parse::<u64>()
                .ok()
        })
        .unwrap_or(0)
        * 1024
}

/// Requests for one repetition.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "small numbers")]
pub fn per(requests: u64, repetitions: usize) -> f64 {
    requests as f64 / repetitions.max(1) as f64
}

/// Prints and writes what was measured, before anything else can go wrong; then fails if the clean-up did, or if a target
/// does not hold and that was asked.
///
/// # Errors
/// Those, and when the file cannot be written.
pub async fn conclude(
    measured: anyhow::Result<Results>,
    clean: impl Future<Output = anyhow::Result<()>>,
    check: bool,
) -> anyhow::Result<()> {
    if let Ok(results) = &measured {
        println!("{}", results.table());
        println!("{}", results.write()?.display());
    }
    let cleaned = clean.await;
    let results = measured?;
    cleaned?;
    if check && !results.hold() {
        bail!("a target does not hold");
    }
    Ok(())
}

/// Synchronises a watch in this process and prints what it took, for [`watch_in_children`].
///
/// # Errors
/// When the watch answers anything but its snapshot.
pub async fn synchronise(
    orchestrator: &dyn InstanceOrchestrator,
    filter: InstanceFilter,
    requests: impl Fn() -> u64,
) -> anyhow::Result<()> {
    // The connection and its certificates are there before.
    let _ = orchestrator.health().await;
    let (count, resident) = (requests(), memory("VmRSS"));
    let start = Instant::now();
    let mut events = orchestrator.watch(filter);
    let mut instances = 0;
    loop {
        match events.next().await {
            Some(InstanceEvent::Applied(_)) => instances += 1,
            Some(InstanceEvent::Synced) => break,
            other => bail!("the watch said {other:?}"),
        }
    }
    let millis = millis(start.elapsed());
    let seen = json!({
        "instances": instances, "millis": millis, "requests": requests() - count,
        "added": memory("VmRSS").saturating_sub(resident),
    });
    println!("{seen}");
    Ok(())
}

/// From nothing to a synchronised watch, five times, in processes of their own, which have no memory of anything before:
/// this program is called with these arguments and is to call [`synchronise`].
///
/// # Errors
/// When a child fails or sees fewer instances than there are.
pub async fn watch_in_children(arguments: &[String], size: usize, results: &mut Results) -> anyhow::Result<()> {
    let (mut samples, mut requests, mut added) = (Samples::default(), 0, Vec::new());
    for _ in 0..5 {
        let (program, arguments) = (std::env::current_exe()?, arguments.to_vec());
        let output = tokio::task::spawn_blocking(move || Command::new(program).args(arguments).output());
        let output = output.await??;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let seen: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(
            seen["instances"].as_u64() >= u64::try_from(size).ok(),
            "{seen} of {size}"
        );
        samples.push(Duration::from_secs_f64(
            seen["millis"].as_f64().unwrap_or_default() / 1000.0,
        ));
        requests += seen["requests"].as_u64().unwrap_or_default();
        added.push(seen["added"].as_u64().unwrap_or_default());
    }
    added.sort_unstable();
    let median = added[added.len() / 2];
    results
        .row("watch sync", "saasodoo", size, &samples, per(requests, samples.len()))
        .memory_bytes = Some(median);
    results.notes.push(format!(
        "a synchronised watch of {size} instances takes {} bytes of memory for each",
        median / u64::try_from(size.max(1))?
    ));
    Ok(())
}

/// A JSON value with every text that contains `from` changed.
#[must_use]
pub fn renamed(value: &Value, from: &str, to: &str) -> Value {
    match value {
        Value::String(text) => Value::String(text.replace(from, to)),
        Value::Array(items) => items.iter().map(|item| renamed(item, from, to)).collect(),
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, value)| (key.replace(from, to), renamed(value, from, to)))
                .collect(),
        ),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_samples() {
        let mut samples = Samples::default();
        for ms in (1..=100).rev() {
            samples.push(Duration::from_millis(ms));
        }
        assert_eq!((samples.median().as_millis(), samples.p95().as_millis()), (51, 96));
        assert_eq!(Samples::default().median(), Duration::ZERO);
    }

    #[test]
    fn targets_are_inclusive() {
        assert!(Target::at_most("x", 0.5, 0.5).holds);
        assert!(!Target::at_most("x", 0.502, 0.5).holds);
    }
}
