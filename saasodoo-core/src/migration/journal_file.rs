//! The journal as a file of JSON lines.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sha2::Digest;

use super::journal::{Journal, fold};
use super::{Entry, Record};
use crate::{Error, ErrorKind, InstanceId, OperationKind, Result};

/// A journal in a file: one [`Entry`] a line, appended and synced to the disk before a step goes on.
///
/// The file is locked for as long as the journal is open, so that a second process is refused instead of moving the
/// same tenants. Each line carries a checksum of itself. A last line that was cut off or only partly written when the
/// machine died is dropped when the file is opened: nothing was done on the strength of it. Any other line that cannot
/// be read is an error, because something else has written to the file.
///
/// ```no_run
/// use saasodoo_core::migration::FileJournal;
///
/// let journal = FileJournal::open("state/journal.jsonl")?;
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Debug)]
pub struct FileJournal {
    path: PathBuf,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    /// Holds the lock. `None` in a journal that is only read.
    file: Option<File>,
    records: BTreeMap<InstanceId, Record>,
    /// How long the file is up to the end of its last whole line.
    len: u64,
    /// An append failed half-way: what the file ends with is not known until it has been cut back.
    dirty: bool,
}

impl FileJournal {
    /// Opens the file, or makes it with its directory, and locks it.
    ///
    /// # Errors
    /// `Conflict` when another process has it open; `Configuration` when it cannot be opened; `Unexpected` when a line
    /// other than a cut-off last one cannot be read.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let io = |error: std::io::Error| unusable(&path, &error);
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let is_new = !path.exists();
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        // The entries hold what tenants set as environment, and people put secrets there.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(
                    Error::conflict(["journal"], format!("{} is in use by another process", path.display()))
                        .with_operation(OperationKind::Migrate)
                        .with_advice("wait for it or end it; its journal can be resumed at any point"),
                );
            }
            Err(TryLockError::Error(error)) => return Err(io(error)),
        }
        let (records, len) = read(&path, &mut file)?;
        if file.metadata().map_err(io)?.len() > len {
            file.set_len(len).and_then(|()| file.sync_all()).map_err(io)?;
        }
        if is_new {
            // The name of a new file is durable only when its directory is.
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent).and_then(|dir| dir.sync_all()).map_err(io)?;
            }
        }
        let inner = Inner {
            file: Some(file),
            records,
            len,
            dirty: false,
        };
        Ok(Self {
            path,
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// Reads the file without locking it, also while another process writes to it: for `status` and `report`. Nothing
    /// can be appended.
    ///
    /// # Errors
    /// As [`open`](Self::open), but for the lock.
    pub fn open_read_only(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let mut file = File::open(&path).map_err(|error| unusable(&path, &error))?;
        let (records, len) = read(&path, &mut file)?;
        let inner = Inner {
            file: None,
            records,
            len,
            dirty: false,
        };
        Ok(Self {
            path,
            inner: Arc::new(Mutex::new(inner)),
        })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Inner {
    fn append(&mut self, path: &Path, entry: &Entry) -> Result<()> {
        let Some(file) = &mut self.file else {
            return Err(
                Error::new(ErrorKind::NotAllowed, "this journal was opened for reading only")
                    .with_operation(OperationKind::Migrate),
            );
        };
        let io = |error: std::io::Error| unusable(path, &error).with_instance(entry.instance);
        if self.dirty {
            file.set_len(self.len).map_err(io)?;
            self.dirty = false;
        }
        // First whether it follows, then the disk, then memory.
        let mut after = BTreeMap::new();
        if let Some(record) = self.records.get(&entry.instance) {
            after.insert(entry.instance, record.clone());
        }
        fold(&mut after, entry)?;
        let line = seal(serde_json::to_string(entry).map_err(|error| io(error.into()))?);
        self.dirty = true;
        file.write_all(line.as_bytes())
            .and_then(|()| file.sync_data())
            .map_err(io)?;
        self.dirty = false;
        self.len += u64::try_from(line.len()).unwrap_or(u64::MAX);
        // `BTreeMap::append` would build the map of all tenants anew.
        self.records.extend(after);
        Ok(())
    }
}

/// Reads every whole line; the length up to the last one comes with it.
fn read(path: &Path, file: &mut File) -> Result<(BTreeMap<InstanceId, Record>, u64)> {
    let io = |error: std::io::Error| unusable(path, &error);
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut reader = BufReader::new(file);
    let mut records = BTreeMap::new();
    let mut len = 0;
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.read_until(b'\n', &mut line).map_err(io)?;
        // Without its end the line was cut off, whether or not what is there can be read.
        if read == 0 || line.last() != Some(&b'\n') {
            break;
        }
        let json = match unseal(&line) {
            Ok(json) => Ok(json),
            // Blocks of one write can reach the disk in any order, its end before its middle.
            Err(_) if reader.fill_buf().map_err(io)?.is_empty() => break,
            Err(why) => Err(why),
        };
        // What is whole and cannot be understood was written by another version, and acted upon: it is not dropped.
        let entry = json.and_then(|json| serde_json::from_str(&json).map_err(|error| error.to_string()));
        let folded = entry.and_then(|entry: Entry| fold(&mut records, &entry).map_err(|error| error.to_string()));
        if let Err(why) = folded {
            return Err(Error::new(
                ErrorKind::Unexpected,
                format!("line {number} of {}: {why}", path.display()),
            )
            .with_operation(OperationKind::Migrate)
            .with_advice("the file was changed by something else, or written by a newer version; restore it, use that version, or move it away and look at both platforms by hand"));
        }
        len += u64::try_from(read).unwrap_or(u64::MAX);
    }
    Ok((records, len))
}

const SUM: &str = ",\"sum\":\"";
/// Digits of the checksum.
const DIGITS: usize = 16;

pub(super) fn checksum(text: &str) -> String {
    let digest = sha2::Sha256::digest(text.as_bytes());
    digest
        .iter()
        .take(DIGITS / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The line of an entry: its JSON with one more field, the checksum of what it was without it.
pub(super) fn seal(mut json: String) -> String {
    let sum = checksum(&json);
    json.pop();
    json.push_str(SUM);
    json.push_str(&sum);
    json.push_str("\"}\n");
    json
}

/// The JSON of a line that is whole.
fn unseal(line: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let sealed = text.strip_suffix("\"}\n").and_then(|text| text.rsplit_once(SUM));
    let Some((json, sum)) = sealed else {
        return Err("it has no checksum".to_owned());
    };
    let json = format!("{json}}}");
    if checksum(&json) != sum {
        return Err("its checksum is another one".to_owned());
    }
    Ok(json)
}

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Configuration, format!("{}: {error}", path.display()))
        .with_operation(OperationKind::Migrate)
        .with_field("journal")
        .with_advice("check the disk and the permissions, then resume")
}

#[async_trait]
impl Journal for FileJournal {
    async fn load(&self, instance: InstanceId) -> Result<Option<Record>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(inner.records.get(&instance).cloned())
    }

    async fn load_all(&self) -> Result<Vec<Record>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<Record> = inner.records.values().cloned().collect();
        all.sort_by_key(|record| (record.began, record.instance));
        Ok(all)
    }

    async fn append(&self, entry: &Entry, _after: &Record) -> Result<()> {
        let (inner, path, entry) = (Arc::clone(&self.inner), self.path.clone(), entry.clone());
        tokio::task::spawn_blocking(move || {
            inner
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .append(&path, &entry)
        })
        .await
        .unwrap_or_else(|panic| {
            Err(Error::new(ErrorKind::Unexpected, panic.to_string()).with_operation(OperationKind::Migrate))
        })
    }
}
