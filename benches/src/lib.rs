//! What the harnesses share: samples, memory, requests, and the file of results.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

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
