//! The journal as a file of JSON lines.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use sha2::Digest;

use super::journal::{Journal, fold};
use super::{Entry, Event, Record};
use crate::{Error, ErrorKind, InstanceId, OperationKind, Result};

/// A journal in a file: one [`Entry`] a line, appended and synced to the disk before a step goes on.
///
/// The file is locked for as long as the journal is open, so that a second process is refused instead of moving the
/// same tenants. Each line carries a checksum of itself. A last line that was cut off or only partly written when the
/// machine died is dropped when the file is opened: nothing was done on the strength of it. Any other line that cannot
/// be read is an error, because something else has written to the file.
///
/// Beside it is a file `….spare` of 1 MiB. When the disk is full it is removed, so that those under way come to their
/// end; nobody is begun or stopped then until it can be made again. A migration takes about 20 kB.
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
    /// `None` in a journal that is only read.
    spare: Option<Spare>,
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
        let directories = made_in(&path);
        if let Some(parent) = directories.first() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        let is_new = !path.exists();
        let spare = Spare::beside(&path);
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
            // The name of a new file is durable only when its directory is, and that of a new directory likewise.
            for directory in &directories {
                File::open(directory).and_then(|dir| dir.sync_all()).map_err(io)?;
            }
        }
        let inner = Inner {
            file: Some(file),
            records,
            len,
            dirty: false,
            spare: Some(spare),
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
            spare: None,
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
        if let Some(spare) = &mut self.spare
            && matches!(entry.event, Event::Began { .. } | Event::Down)
        {
            spare.keep().map_err(|error| {
                io(error).with_advice("make room on the disk, then resume: nobody is begun or stopped without room for what comes after; nothing was stopped")
            })?;
        }
        self.dirty = true;
        let mut written = write(file, &line);
        if written.as_ref().is_err_and(is_full)
            && let Some(spare) = &mut self.spare
            && spare.give()
        {
            file.set_len(self.len).map_err(io)?;
            written = write(file, &line);
        }
        written.map_err(io)?;
        self.dirty = false;
        self.len += u64::try_from(line.len()).unwrap_or(u64::MAX);
        // `BTreeMap::append` would build the map of all tenants anew.
        self.records.extend(after);
        Ok(())
    }
}

/// Appends a line, and sees it on the disk.
fn write(file: &mut File, line: &str) -> io::Result<()> {
    file.write_all(line.as_bytes()).and_then(|()| file.sync_data())
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The directories whose names a new file at this path needs on the disk: its own, and those around it that are not there
/// yet, up to the first that is.
fn made_in(path: &Path) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for parent in path.ancestors().skip(1) {
        let parent = if parent.as_os_str().is_empty() {
            Path::new(".")
        } else {
            parent
        };
        directories.push(parent.to_owned());
        if parent.exists() {
            break;
        }
    }
    directories
}

/// Room on the disk for what those under way still have to write.
#[derive(Debug)]
struct Spare {
    path: PathBuf,
    there: bool,
}

impl Spare {
    /// What 100 migrations write from the stop of a tenant on.
    const SIZE: usize = 1 << 20;

    fn beside(journal: &Path) -> Self {
        let mut path = journal.as_os_str().to_owned();
        path.push(".spare");
        Self {
            path: path.into(),
            there: false,
        }
    }

    /// Makes the file unless it is there.
    fn keep(&mut self) -> io::Result<()> {
        if self.there {
            return Ok(());
        }
        let full = |length: u64| usize::try_from(length).is_ok_and(|length| length == Self::SIZE);
        if !std::fs::metadata(&self.path).is_ok_and(|file| full(file.len())) {
            // Not zeros: a file system may store those as nothing.
            let mut noise = sha2::Sha256::digest(b"spare").to_vec();
            while noise.len() < 4096 {
                let last = noise.len() - 32;
                noise.extend_from_slice(&sha2::Sha256::digest(noise.get(last..).unwrap_or_default()));
            }
            let block = noise.repeat(Self::SIZE / noise.len());
            let written = File::create(&self.path).and_then(|mut file| {
                file.write_all(&block)?;
                file.sync_all()
            });
            if let Err(error) = written {
                self.give();
                return Err(error);
            }
        }
        self.there = true;
        Ok(())
    }

    /// Gives its room back; false when there was none.
    fn give(&mut self) -> bool {
        self.there = false;
        std::fs::remove_file(&self.path).is_ok()
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if self.there {
            self.give();
        }
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
        let folded =
            entry.and_then(|entry: Entry| fold(&mut records, &entry).map_err(|error| error.message().to_owned()));
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

/// The field of an error that says the file cannot be used.
pub(super) const UNWRITABLE: &str = "journal";

fn unusable(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorKind::Configuration, format!("{}: {error}", path.display()))
        .with_operation(OperationKind::Migrate)
        .with_field(UNWRITABLE)
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
