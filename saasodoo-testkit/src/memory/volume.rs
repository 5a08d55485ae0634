//! The tenants' data: directories that outlive units, instances and backends, and who writes to them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use saasodoo_core::{BackendKind, Bytes, Error, ErrorKind, InstanceId, ObjectIdentity, Result};
use serde::{Deserialize, Serialize};

use super::clock::{Moment, stamp};

/// The file that every running process appends a line to each second, as the testbed's image does.
pub const HEARTBEAT_FILE: &str = "heartbeat.log";

/// A unit that has a directory open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Writer {
    /// The backend it runs on.
    pub backend: BackendKind,
    /// Its instance.
    pub instance: InstanceId,
    /// Its name, which is unique among all backends that share the data.
    pub unit: String,
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of instance {} on {}", self.unit, self.instance, self.backend)
    }
}

/// A line of the heartbeat file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Heartbeat {
    /// When it was written.
    pub at: Timestamp,
    /// The unit whose process wrote it.
    pub unit: String,
}

/// Something that must never happen to a tenant's data, and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Violation {
    /// Two units had the same directory open.
    TwoWriters {
        /// The directory.
        volume: String,
        /// When the second one opened it.
        at: Timestamp,
        /// All that had it open then, the newest last.
        writers: Vec<Writer>,
    },
    /// A directory was deleted while it was open, or while another backend has an instance on it.
    DeletedInUse {
        /// The directory.
        volume: String,
        /// When.
        at: Timestamp,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoWriters { volume, at, writers } => {
                write!(f, "{at}: {volume} has {} writers:", writers.len())?;
                for writer in writers {
                    write!(f, " [{writer}]")?;
                }
                Ok(())
            }
            Self::DeletedInUse { volume, at } => write!(f, "{at}: {volume} was deleted while in use"),
        }
    }
}

#[derive(Debug)]
struct Run {
    unit: String,
    from: Moment,
    to: Option<Moment>,
}

impl Run {
    /// A line at the start and one after each second.
    fn lines(&self, now: Moment) -> u64 {
        let to = self.to.unwrap_or(now);
        to.saturating_sub(self.from).as_secs() + 1
    }
}

#[derive(Debug)]
struct Volume {
    uid: String,
    quota: Option<Bytes>,
    files: BTreeMap<String, Vec<u8>>,
    runs: Vec<Run>,
    open: Vec<Writer>,
    /// How many instances, on any backend, are defined on it.
    users: u32,
}

/// All directories, shared by the backends that share their data.
#[derive(Debug)]
pub(super) struct Volumes {
    base: Timestamp,
    volumes: BTreeMap<String, Volume>,
    violations: Vec<Violation>,
    made: u64,
    seed: u64,
    units: u64,
}

impl Volumes {
    pub(super) fn new(base: Timestamp, seed: u64) -> Self {
        Self {
            base,
            volumes: BTreeMap::new(),
            violations: Vec::new(),
            made: 0,
            seed,
            units: 0,
        }
    }

    /// The end of a new unit's name, five characters as in a pod's: different for each of the first million units on
    /// all backends together, because multiplication by an odd number loses nothing.
    pub(super) fn suffix(&mut self) -> String {
        self.units += 1;
        let scrambled = self.units.wrapping_mul(0x9e37_79b9).wrapping_add(self.seed);
        format!("{:05x}", scrambled & 0xf_ffff)
    }

    pub(super) fn exists(&self, key: &str) -> bool {
        self.volumes.contains_key(key)
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.volumes.keys().cloned().collect()
    }

    /// Makes an empty directory, unless it is there.
    pub(super) fn make(&mut self, key: &str) {
        if self.exists(key) {
            return;
        }
        self.made += 1;
        self.volumes.insert(
            key.to_owned(),
            Volume {
                uid: format!("volume-{}", self.made),
                quota: None,
                files: BTreeMap::new(),
                runs: Vec::new(),
                open: Vec::new(),
                users: 0,
            },
        );
    }

    pub(super) fn set_quota(&mut self, key: &str, quota: Bytes) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.quota = Some(quota);
        }
    }

    pub(super) fn quota(&self, key: &str) -> Option<Bytes> {
        self.volumes.get(key)?.quota
    }

    pub(super) fn use_by_instance(&mut self, key: &str) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.users += 1;
        }
    }

    pub(super) fn release_by_instance(&mut self, key: &str) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.users = volume.users.saturating_sub(1);
        }
    }

    pub(super) fn identity(&self, key: &str) -> Option<ObjectIdentity> {
        let volume = self.volumes.get(key)?;
        Some(ObjectIdentity::new("Volume", key, &volume.uid))
    }

    /// Deletes a directory and notes it when somebody was using it.
    pub(super) fn delete(&mut self, key: &str, at: Moment) {
        if let Some(volume) = self.volumes.remove(key)
            && (!volume.open.is_empty() || volume.users > 0)
        {
            self.violations.push(Violation::DeletedInUse {
                volume: key.to_owned(),
                at: stamp(self.base, at),
            });
        }
    }

    pub(super) fn open(&mut self, key: &str, writer: Writer, at: Moment) {
        let Some(volume) = self.volumes.get_mut(key) else {
            return;
        };
        volume.open.push(writer);
        if volume.open.len() > 1 {
            self.violations.push(Violation::TwoWriters {
                volume: key.to_owned(),
                at: stamp(self.base, at),
                writers: volume.open.clone(),
            });
        }
    }

    pub(super) fn close(&mut self, key: &str, unit: &str) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.open.retain(|writer| writer.unit != unit);
        }
    }

    pub(super) fn process_started(&mut self, key: &str, unit: &str, at: Moment) {
        if let Some(volume) = self.volumes.get_mut(key) {
            volume.runs.push(Run {
                unit: unit.to_owned(),
                from: at,
                to: None,
            });
        }
    }

    pub(super) fn process_ended(&mut self, key: &str, unit: &str, at: Moment) {
        if let Some(volume) = self.volumes.get_mut(key) {
            for run in volume
                .runs
                .iter_mut()
                .filter(|run| run.unit == unit && run.to.is_none())
            {
                run.to = Some(at);
            }
        }
    }

    pub(super) fn writers(&self, key: &str) -> Vec<Writer> {
        self.volumes
            .get(key)
            .map(|volume| volume.open.clone())
            .unwrap_or_default()
    }

    pub(super) fn violations(&self) -> Vec<Violation> {
        self.violations.clone()
    }

    pub(super) fn write(&mut self, key: &str, name: &str, content: Vec<u8>, enforce: bool, now: Moment) -> Result<()> {
        if name == HEARTBEAT_FILE {
            return Err(Error::invalid(
                "name",
                format!("{HEARTBEAT_FILE} is written by the units"),
            ));
        }
        let used = self.used(key, now);
        let volume = self.volumes.get_mut(key).ok_or_else(|| missing(key))?;
        let before = volume.files.get(name).map_or(0, Vec::len);
        let after = used.map_or(0, Bytes::get).saturating_sub(size(before)) + size(content.len());
        if enforce && volume.quota.is_some_and(|quota| after > quota.get()) {
            return Err(Error::new(ErrorKind::QuotaExceeded, "the volume is full"));
        }
        volume.files.insert(name.to_owned(), content);
        Ok(())
    }

    pub(super) fn read(&self, key: &str, name: &str, now: Moment) -> Result<Option<Vec<u8>>> {
        let volume = self.volumes.get(key).ok_or_else(|| missing(key))?;
        if name == HEARTBEAT_FILE {
            let lines: String = self
                .heartbeats(key, now)?
                .iter()
                .map(|beat| format!("{} {}\n", beat.at.as_second(), beat.unit))
                .collect();
            return Ok((!lines.is_empty()).then(|| lines.into_bytes()));
        }
        Ok(volume.files.get(name).cloned())
    }

    pub(super) fn heartbeats(&self, key: &str, now: Moment) -> Result<Vec<Heartbeat>> {
        let volume = self.volumes.get(key).ok_or_else(|| missing(key))?;
        let mut beats: Vec<Heartbeat> = volume
            .runs
            .iter()
            .flat_map(|run| {
                (0..run.lines(now)).map(|second| Heartbeat {
                    at: stamp(self.base, run.from + Duration::from_secs(second)),
                    unit: run.unit.clone(),
                })
            })
            .collect();
        beats.sort_by_key(|beat| beat.at);
        Ok(beats)
    }

    pub(super) fn used(&self, key: &str, now: Moment) -> Option<Bytes> {
        let volume = self.volumes.get(key)?;
        let files: u64 = volume.files.values().map(|content| size(content.len())).sum();
        // Ten digits of seconds, a space, the unit, the line's end.
        let beats: u64 = volume
            .runs
            .iter()
            .map(|run| run.lines(now) * size(run.unit.len() + 12))
            .sum();
        Some(Bytes::new(files + beats))
    }
}

fn size(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

fn missing(key: &str) -> Error {
    Error::new(ErrorKind::StorageMissing, format!("there is no volume {key}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(unit: &str) -> Writer {
        Writer {
            backend: BackendKind::Memory,
            instance: InstanceId::random(),
            unit: unit.to_owned(),
        }
    }

    #[test]
    fn two_writers_are_noticed_and_one_after_another_are_not() {
        let mut volumes = Volumes::new(Timestamp::UNIX_EPOCH, 0);
        volumes.make("a");
        volumes.open("a", writer("one"), Duration::ZERO);
        volumes.close("a", "one");
        volumes.open("a", writer("two"), Duration::from_secs(1));
        assert_eq!(volumes.violations(), []);
        volumes.open("a", writer("three"), Duration::from_secs(2));
        let violations = volumes.violations();
        assert!(
            matches!(&violations[..], [Violation::TwoWriters { writers, .. }] if writers.len() == 2),
            "{violations:?}"
        );
    }

    #[test]
    fn the_heartbeat_shows_each_second_of_each_run() {
        let mut volumes = Volumes::new(Timestamp::UNIX_EPOCH, 0);
        volumes.make("a");
        volumes.process_started("a", "one", Duration::from_secs(10));
        volumes.process_ended("a", "one", Duration::from_secs(12));
        volumes.process_started("a", "two", Duration::from_secs(20));
        let read = volumes
            .read("a", HEARTBEAT_FILE, Duration::from_millis(21_500))
            .expect("there");
        let text = String::from_utf8(read.expect("lines")).expect("text");
        assert_eq!(text, "10 one\n11 one\n12 one\n20 two\n21 two\n");
    }

    #[test]
    fn a_full_volume_takes_no_more() {
        let mut volumes = Volumes::new(Timestamp::UNIX_EPOCH, 0);
        volumes.make("a");
        volumes.set_quota("a", Bytes::new(10));
        let mut write = |content: &[u8]| volumes.write("a", "f", content.to_vec(), true, Duration::ZERO);
        write(b"0123456789").expect("it fits");
        write(b"abcdefghij").expect("it replaces");
        assert_eq!(
            write(b"0123456789a").expect_err("full").kind(),
            ErrorKind::QuotaExceeded
        );
    }
}
