//! Data directories on CephFS: made with a quota, measured, handed over, and deleted.
//!
//! A directory is opened relative to the root and without following links, so that no name and no link in a tenant's
//! data leads out of it. Who owns a directory is kept in an extended attribute of the directory itself, where it
//! outlives the service; where a file system has none, the name must do.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;
use saasodoo_core::{BackendKind, Bytes, Deadlines, Error, ErrorKind, InstanceId, Result, Retry};
use tokio::sync::Semaphore;
use xattr::FileExt;

use crate::config::QuotaPolicy;
use crate::directory::{
    ADOPTED, OWNER, QUOTA, RETAINED, USED, check_free, check_owner, claim, data_exists, fail, inode, io_error,
    is_marked, is_no_mark, is_purged, mark, missing, names, no_quota, number, text,
};
use crate::facts::Disk;
use crate::retained::{Left, Traces, Writer, touch};

/// Calls to the file system that may be under way at once. One that hangs keeps its thread, and the threads are shared
/// with everything else in the process.
const CALLS: usize = 16;
/// Purges take long, and may not keep the others out.
const PURGES: usize = 4;
/// Looks at all directories under the root, of which there can be thousands, may not keep the others out either.
const SCANS: usize = 2;
/// How long a call waits for another to end before the file system counts as hanging.
const PATIENCE: Duration = Duration::from_secs(5);

/// The directory under which all data directories are.
#[derive(Debug, Clone)]
pub(crate) struct DataRoot {
    root: PathBuf,
    policy: QuotaPolicy,
    deadlines: Deadlines,
    calls: Arc<Semaphore>,
    purges: Arc<Semaphore>,
    scans: Arc<Semaphore>,
}

/// A directory that is ready to be mounted, and how to take that back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) path: PathBuf,
    pub(crate) adopted: bool,
    pub(crate) retained: bool,
    inode: u64,
    id: InstanceId,
    size: Bytes,
    undo: Undo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// This call made the directory.
    Remove,
    /// This call changed a directory that was there: its quota, from this one, and whether it got its owner's mark and
    /// the one of an adoption.
    Restore {
        quota: Option<Option<u64>>,
        owner: bool,
        adopted: bool,
        /// When that was, in seconds, if until then nobody but its deleted instance had written to it.
        unused: Option<i64>,
    },
}

impl DataRoot {
    pub(crate) fn new(root: PathBuf, policy: QuotaPolicy, deadlines: Deadlines) -> Self {
        Self {
            root,
            policy,
            deadlines,
            calls: Arc::new(Semaphore::new(CALLS)),
            purges: Arc::new(Semaphore::new(PURGES)),
            scans: Arc::new(Semaphore::new(SCANS)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn absolute(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The part below the root of a path that is mounted. `None` when it is elsewhere.
    pub(crate) fn relative(&self, absolute: &str) -> Option<String> {
        let relative = Path::new(absolute).strip_prefix(&self.root).ok()?.to_str()?;
        relative
            .parse::<saasodoo_core::DataPath>()
            .ok()
            .map(|path| path.to_string())
    }

    pub(crate) fn relative_or_fail(&self, absolute: &str) -> Result<String> {
        self.relative(absolute).ok_or_else(|| {
            fail(
                ErrorKind::Unsupported,
                format!("{absolute} is not under the data root {}", self.root.display()),
            )
            .with_advice("configure the data root that this fleet uses")
        })
    }

    /// Runs calls that only read.
    async fn reading<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> Result<T> + Send + 'static) -> Result<T> {
        self.blocking(&self.calls, PATIENCE, self.deadlines.read, Retry::After(None), work)
            .await
    }

    /// Runs calls that change something.
    pub(crate) async fn writing<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.blocking(&self.calls, PATIENCE, self.deadlines.write, Retry::OutcomeUnknown, work)
            .await
    }

    /// Runs a look at all directories, which may take as long as a change.
    pub(crate) async fn scanning<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let limit = self.deadlines.write;
        self.blocking(&self.scans, limit, limit, Retry::After(None), work).await
    }

    /// Runs a purge, which looks at the deadline itself.
    pub(crate) async fn purging<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let limit = deadline + PATIENCE;
        self.blocking(&self.purges, deadline, limit, Retry::OutcomeUnknown, work)
            .await
    }

    /// Runs file system calls where they may block. A file system that hangs keeps its thread, not the caller, and only
    /// so many threads.
    async fn blocking<T: Send + 'static>(
        &self,
        calls: &Arc<Semaphore>,
        patience: Duration,
        deadline: Duration,
        late: Retry,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let free = Arc::clone(calls).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(patience.min(deadline), free).await else {
            return Err(fail(
                ErrorKind::Unavailable,
                format!("{} hangs: earlier calls have not come back", self.root.display()),
            )
            .with_retry(Retry::After(None))
            .with_advice("check the CephFS mount"));
        };
        let this = self.clone();
        let work = move || {
            let _permit = permit;
            work(&this)
        };
        match tokio::time::timeout(deadline, tokio::task::spawn_blocking(work)).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(fail(
                ErrorKind::Unexpected,
                format!("a file system call panicked: {error}"),
            )),
            Err(_) => Err(fail(
                ErrorKind::Timeout,
                format!("{} did not answer within {deadline:?}", self.root.display()),
            )
            .with_retry(late)
            .with_advice("check the CephFS mount")),
        }
    }

    /// What there is at a mounted path. A path elsewhere is not looked at.
    pub(crate) async fn look(&self, absolute: Option<&str>, usage: bool) -> Result<Disk> {
        let Some(relative) = absolute.and_then(|path| self.relative(path)) else {
            return Ok(Disk::default());
        };
        self.reading(move |root| {
            let fd = root.open_root()?;
            root.look_now(&fd, &relative, usage)
        })
        .await
    }

    /// The quotas of many directories, in one go. What cannot be read is not there.
    pub(crate) async fn quotas(&self, paths: Vec<String>) -> Vec<Disk> {
        let count = paths.len();
        if count == 0 {
            return Vec::new();
        }
        let read = self.reading(move |root| {
            let fd = root.open_root()?;
            let each = paths.iter().map(|path| {
                let relative = root.relative(path)?;
                root.look_now(&fd, &relative, false).ok()
            });
            Ok(each.map(Option::unwrap_or_default).collect())
        });
        match read.await {
            Ok(disks) => disks,
            Err(error) => {
                tracing::warn!(%error, "the quotas of the data directories cannot be read");
                vec![Disk::default(); count]
            }
        }
    }

    fn look_now(&self, root: &File, relative: &str, usage: bool) -> Result<Disk> {
        let path = self.absolute(relative);
        let Some(dir) = self.open_in(root, relative)? else {
            return Ok(Disk {
                exists: Some(false),
                ..Disk::default()
            });
        };
        Ok(Disk {
            exists: Some(true),
            quota: quota_of(&dir, &path)?,
            used: if usage { number(&dir, &path, USED)? } else { None },
        })
    }

    /// Makes a new directory with its quota. One that is there and empty, as an interrupted creation leaves it, will
    /// do; one with anything in it is a conflict and is not touched.
    pub(crate) async fn make(&self, relative: String, id: InstanceId, size: Bytes) -> Result<Prepared> {
        self.free(relative.clone(), id).await?;
        self.writing(move |root| root.make_now(&relative, id, size)).await
    }

    /// Whether a new directory could be made.
    pub(crate) async fn free(&self, relative: String, id: InstanceId) -> Result<()> {
        self.scanning(move |root| root.check_new(&relative, id)).await
    }

    /// Refuses a new directory when there is data under its name, or data of the instance under another one.
    fn check_new(&self, relative: &str, id: InstanceId) -> Result<()> {
        let path = self.absolute(relative);
        if let Some(dir) = self.open(relative)? {
            check_free(&dir, &path, id)?;
        }
        let other = |left: &Left| left.path != path && left.is_data();
        match self.owned(id)?.into_iter().find(other) {
            Some(left) => Err(data_exists(&left.path)),
            None => Ok(()),
        }
    }

    fn make_now(&self, relative: &str, id: InstanceId, size: Bytes) -> Result<Prepared> {
        let path = self.absolute(relative);
        let root = self.open_root()?;
        let made = match mkdirat(&root, relative, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(io_error(error.into(), &path, "cannot be made")),
        };
        let dir = self
            .open(relative)?
            .ok_or_else(|| fail(ErrorKind::StorageMissing, format!("{} has vanished", path.display())))?;
        if !made {
            check_free(&dir, &path, id)?;
        }
        let prepared = Prepared {
            inode: inode(&dir, &path)?,
            path,
            adopted: false,
            retained: false,
            id,
            size,
            undo: if made { Undo::Remove } else { Undo::Nothing },
        };
        claim(&dir, &prepared.path, id)?;
        if let Err(error) = self.set_quota_now(&dir, &prepared.path, size) {
            drop(dir);
            self.undo_now(relative, &prepared);
            return Err(error);
        }
        Ok(prepared)
    }

    /// Makes sure that what was prepared is still there: another creation of the same instance that failed can have
    /// taken a new directory away while it was empty.
    pub(crate) async fn hold(&self, prepared: Prepared) -> Result<Prepared> {
        let relative = self.relative_or_fail(&prepared.path.to_string_lossy())?;
        self.writing(move |root| {
            let dir = root.open(&relative)?;
            let same = |dir: &File| Ok::<_, Error>(inode(dir, &prepared.path)? == prepared.inode);
            if dir.as_ref().map(same).transpose()? == Some(true) {
                return Ok(prepared);
            }
            if prepared.adopted || prepared.retained {
                return Err(Error::conflict(
                    ["storage"],
                    format!("{} has been replaced while it was adopted", prepared.path.display()),
                )
                .with_backend(BackendKind::Swarm)
                .with_advice("look who works on the data"));
            }
            root.make_now(&relative, prepared.id, prepared.size)
        })
        .await
    }

    /// Takes a directory that exists, raising its quota where it is smaller than asked.
    pub(crate) async fn adopt(&self, path: PathBuf, id: InstanceId, size: Bytes, retained: bool) -> Result<Prepared> {
        let relative = self.relative_or_fail(&path.to_string_lossy())?;
        self.writing(move |root| root.adopt_now(&relative, id, size, retained))
            .await
    }

    fn adopt_now(&self, relative: &str, id: InstanceId, size: Bytes, retained: bool) -> Result<Prepared> {
        let path = self.absolute(relative);
        let dir = self.open(relative)?.ok_or_else(|| missing(&path))?;
        check_owner(&dir, &path, id)?;
        if is_purged(&dir, &path)? {
            return Err(fail(
                ErrorKind::StorageMissing,
                format!("{} is being purged: what is left of it is incomplete", path.display()),
            )
            .with_advice("repeat the purge until it succeeds"));
        }
        let before = quota_of(&dir, &path)?;
        // What follows changes the directory, so what it says now must be judged before.
        let unused = is_marked(&dir, &path, RETAINED)? && Traces::of(&dir, &path)?.check(&path, Writer::Gone).is_ok();
        let before_us = is_marked(&dir, &path, ADOPTED)?;
        let inode = inode(&dir, &path)?;
        let grown = self.grow_now(&dir, &path, size)?;
        let owner = claim(&dir, &path, id)?;
        // Not only with its deletion: the service, whose label says the same, may go by somebody else's hand.
        let adopted = !retained && !before_us;
        if adopted {
            mark(&dir, ADOPTED, "true");
        }
        Ok(Prepared {
            inode,
            path,
            adopted: !retained || before_us,
            retained,
            id,
            size,
            undo: Undo::Restore {
                quota: grown.then_some(before),
                owner,
                adopted,
                unused: (unused && (grown || owner || adopted)).then(|| Timestamp::now().as_second()),
            },
        })
    }

    /// The mounted directory is in use again.
    pub(crate) async fn settled(&self, prepared: &Prepared) {
        if !prepared.retained && !prepared.adopted {
            return;
        }
        let Some(relative) = self.relative(&prepared.path.to_string_lossy()) else {
            return;
        };
        let _ = self
            .writing(move |root| {
                if let Some(dir) = root.open(&relative)? {
                    let _ = dir.remove_xattr(RETAINED);
                }
                Ok(())
            })
            .await;
    }

    /// Takes back what [`make`](Self::make) or [`adopt`](Self::adopt) did, and nothing else: a directory that this call
    /// made, if it is still the same and still empty.
    pub(crate) async fn undo(&self, prepared: Prepared) {
        let Some(relative) = self.relative(&prepared.path.to_string_lossy()) else {
            return;
        };
        let undone = self
            .writing(move |root| {
                root.undo_now(&relative, &prepared);
                Ok(())
            })
            .await;
        if let Err(error) = undone {
            tracing::warn!(%error, "a data directory could not be taken back");
        }
    }

    fn undo_now(&self, relative: &str, prepared: &Prepared) {
        let undo = || {
            let dir = self.open(relative)?;
            let same = |dir: &File| inode(dir, &prepared.path).ok() == Some(prepared.inode);
            let Some(dir) = dir.filter(same) else { return Ok(()) };
            match prepared.undo {
                Undo::Nothing => {}
                Undo::Remove => {
                    drop(dir);
                    // Fails on a directory that is not empty, which is what protects the data of somebody faster.
                    let removed = unlinkat(self.open_root()?, relative, AtFlags::REMOVEDIR);
                    removed.map_err(|error| io_error(error.into(), &prepared.path, "cannot be removed"))?;
                }
                Undo::Restore {
                    quota,
                    owner,
                    adopted,
                    unused,
                } => {
                    // The changes of this library itself are nobody else's use of it.
                    if let Some(since) = unused
                        && Traces::of(&dir, &prepared.path)?
                            .check(&prepared.path, Writer::StoppedBy(since))
                            .is_ok()
                    {
                        mark(&dir, RETAINED, &Timestamp::now().as_second().to_string());
                    }
                    for (name, _) in [(OWNER, owner), (ADOPTED, adopted)].iter().filter(|(_, ours)| *ours) {
                        let _ = dir.remove_xattr(name);
                    }
                    if let Some(before) = quota {
                        dir.set_xattr(QUOTA, before.unwrap_or(0).to_string().as_bytes())
                            .map_err(|error| io_error(error, &prepared.path, "does not take its old quota back"))?;
                    }
                }
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = undo() {
            tracing::warn!(%error, "a data directory could not be taken back");
        }
    }

    /// Enforces a larger size. `writer` is what the instance's own tasks do.
    pub(crate) async fn set_quota(&self, absolute: &str, size: Bytes, writer: Writer) -> Result<()> {
        let relative = self.relative_or_fail(absolute)?;
        self.writing(move |root| {
            let path = root.absolute(&relative);
            let dir = root.open(&relative)?.ok_or_else(|| missing(&path))?;
            // The change moves the time of the last one, by which others who wrote before are known.
            let foreign = Traces::of(&dir, &path)?.check(&path, writer).is_err();
            if root.grow_now(&dir, &path, size)? && !foreign {
                touch(&dir);
            }
            Ok(())
        })
        .await
    }

    /// Raises the quota, and never to less than there was or than there is in the directory: that would stop the tenant's
    /// writes at once. Answers whether it had to.
    fn grow_now(&self, dir: &File, path: &Path, size: Bytes) -> Result<bool> {
        let refuse = |have: u64, what: &str| {
            let (have, path) = (Bytes::new(have), path.display());
            Err(
                Error::invalid("storage", format!("{size} is less than the {have} that {path} {what}"))
                    .with_backend(BackendKind::Swarm)
                    .with_advice("ask for at least as much; storage cannot shrink"),
            )
        };
        let quota = quota_of(dir, path)?;
        match quota {
            Some(quota) if quota > size.get() => return refuse(quota, "has been given"),
            Some(quota) if quota == size.get() => return Ok(false),
            _ => {}
        }
        if let Some(used) = number::<u64>(dir, path, USED)?.filter(|used| *used > size.get()) {
            return refuse(used, "has in it");
        }
        self.set_quota_now(dir, path, size)?;
        Ok(true)
    }

    fn set_quota_now(&self, dir: &File, path: &Path, size: Bytes) -> Result<()> {
        let value = size.get().to_string();
        let set = dir.set_xattr(QUOTA, value.as_bytes());
        let held = set.and_then(|()| Ok(dir.get_xattr(QUOTA)?.is_some_and(|seen| seen == value.as_bytes())));
        match held {
            Ok(true) => Ok(()),
            _ if self.policy == QuotaPolicy::BestEffort => {
                tracing::warn!(path = %path.display(), "no quota is enforced here");
                Ok(())
            }
            Ok(false) => Err(no_quota(path, "the quota does not read back")),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(io_error(error, path, "does not take a quota")
                    .with_advice("give the CephFS client the capability to set quotas: mds 'allow rwp'"))
            }
            Err(error) => Err(no_quota(path, &error.to_string())),
        }
    }

    /// The directory that an instance of this id left behind: by its mark, or by today's name where that is known.
    pub(crate) async fn find_left(&self, id: InstanceId, expected: Option<String>) -> Result<Option<Left>> {
        self.scanning(move |root| root.find_left_now(id, expected.as_deref()))
            .await
    }

    fn find_left_now(&self, id: InstanceId, expected: Option<&str>) -> Result<Option<Left>> {
        let mut unmarked = None;
        if let Some(relative) = expected
            && let Some(dir) = self.open(relative)?
        {
            let left = Left::read(&dir, self.absolute(relative))?;
            match text(&dir, &left.path, OWNER)? {
                Some(owner) if owner == id.to_string() && left.is_data() => return Ok(Some(left)),
                Some(owner) if owner != id.to_string() => {}
                _ => unmarked = Some(left),
            }
        }
        let mut owned = self.owned(id)?;
        let data = owned.iter().position(Left::is_data);
        Ok(match data {
            Some(data) => Some(owned.swap_remove(data)),
            None => unmarked.or_else(|| owned.pop()),
        })
    }

    /// All directories directly under the root that carry an instance's mark, whatever their names.
    fn owned(&self, id: InstanceId) -> Result<Vec<Left>> {
        let root = self.open_root()?;
        let owner = id.to_string();
        let mut owned = Vec::new();
        for name in names(&root, &self.root)? {
            let path = self.root.join(&name);
            // Without opening each of thousands; what fits is looked at again once it is open.
            let marked = match xattr::get(&path, OWNER) {
                Ok(value) => value.is_some_and(|value| value == owner.as_bytes()),
                Err(error) if is_no_mark(&error) => false,
                Err(error) => return Err(io_error(error, &path, "does not say whose it is")),
            };
            if marked
                && let Some(dir) = self.open_in(&root, &name)?
                && text(&dir, &path, OWNER)?.as_deref() == Some(&owner)
            {
                owned.push(Left::read(&dir, path)?);
            }
        }
        Ok(owned)
    }

    /// The identity of a mounted directory, for a purge token.
    pub(crate) async fn identify(&self, absolute: &str) -> Result<Option<Left>> {
        let relative = self.relative_or_fail(absolute)?;
        self.reading(move |root| {
            let path = root.absolute(&relative);
            let dir = root.open(&relative)?;
            dir.map(|dir| Left::read(&dir, path)).transpose()
        })
        .await
    }

    /// Looks whether the root can be written and enforces quotas; leaves nothing behind.
    pub(crate) async fn probe(&self) -> Result<bool> {
        let name = format!(".saasodoo-health-{}", InstanceId::random());
        self.writing(move |root| {
            let fd = root.open_root()?;
            let path = root.absolute(&name);
            mkdirat(&fd, name.as_str(), Mode::from_raw_mode(0o700))
                .map_err(|error| io_error(error.into(), &path, "cannot be made"))?;
            let quota = root.open(&name).ok().flatten().is_some_and(|dir| {
                dir.set_xattr(QUOTA, b"1048576").is_ok()
                    && quota_of(&dir, &path).is_ok_and(|quota| quota == Some(1_048_576))
            });
            unlinkat(&fd, name.as_str(), AtFlags::REMOVEDIR)
                .map_err(|error| io_error(error.into(), &path, "cannot be removed"))?;
            Ok(quota)
        })
        .await
    }

    /// Opens the root. Where quotas are required it must be on a CephFS: a mount point without its mount opens as well,
    /// and has none of the data.
    pub(crate) fn open_root(&self) -> Result<File> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = openat(CWD, &self.root, flags, Mode::empty()).map(File::from);
        let root = opened.map_err(|error| {
            let kind = match error {
                Errno::ACCESS | Errno::PERM => ErrorKind::Forbidden,
                _ => ErrorKind::MissingPrerequisite,
            };
            fail(
                kind,
                format!("the data root {} cannot be opened: {error}", self.root.display()),
            )
            .with_advice("mount CephFS there and make the directory, or configure another data root")
        })?;
        if self.policy == QuotaPolicy::BestEffort {
            return Ok(root);
        }
        let unmounted = || no_quota(&self.root, "no CephFS is mounted there");
        match root.get_xattr(USED) {
            Ok(Some(_)) => Ok(root),
            Ok(None) => Err(unmounted()),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => Err(unmounted()),
            Err(error) => Err(io_error(error, &self.root, "cannot be looked at")),
        }
    }

    /// Opens a directory below the root without following any link. `None`: it is not there.
    pub(crate) fn open(&self, relative: &str) -> Result<Option<File>> {
        self.open_in(&self.open_root()?, relative)
    }

    fn open_in(&self, root: &File, relative: &str) -> Result<Option<File>> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(root, relative, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(File::from(fd))),
            Err(Errno::NOENT) => Ok(None),
            Err(error @ (Errno::LOOP | Errno::XDEV | Errno::NOTDIR)) => Err(fail(
                ErrorKind::Conflict,
                format!(
                    "{} is not a plain directory under the data root: {error}",
                    self.absolute(relative).display()
                ),
            )
            .with_advice("look what put a link or a file there")),
            Err(error) => Err(io_error(error.into(), &self.absolute(relative), "cannot be opened")),
        }
    }
}

fn quota_of(dir: &File, path: &Path) -> Result<Option<u64>> {
    Ok(number(dir, path, QUOTA)?.filter(|quota| *quota > 0))
}
