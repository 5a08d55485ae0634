//! Data directories on CephFS: made with a quota, measured, handed over, and deleted.
//!
//! A directory is opened relative to the root and without following links, so that no name and no link in a tenant's
//! data leads out of it. Who owns a directory is kept in an extended attribute of the directory itself, where it
//! outlives the service; where a file system has none, the name must do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, unlinkat};
use rustix::io::Errno;
use saasodoo_core::{BackendKind, Bytes, Error, ErrorKind, InstanceId, ObjectIdentity, Result, Retry};
use xattr::FileExt;

use crate::config::QuotaPolicy;
use crate::directory::{
    ADOPTED, OWNER, PURGING, QUOTA, RETAINED, USED, check_free, fail, identity, inode, io_error, is_marked, mark,
    missing, names, no_quota, number, text,
};
use crate::facts::Disk;
use crate::purge::remove_children;

/// The directory under which all data directories are.
#[derive(Debug, Clone)]
pub(crate) struct DataRoot {
    root: PathBuf,
    policy: QuotaPolicy,
    deadline: Duration,
}

/// A directory that is ready to be mounted, and how to take that back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) path: PathBuf,
    pub(crate) adopted: bool,
    pub(crate) retained: bool,
    undo: Undo,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// This call made the directory with this inode.
    Remove(u64),
    /// This call changed the quota of a directory that was there.
    Quota(Option<u64>),
}

/// A directory that an instance left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) path: PathBuf,
    pub(crate) identity: ObjectIdentity,
    pub(crate) adopted: bool,
}

impl DataRoot {
    pub(crate) fn new(root: PathBuf, policy: QuotaPolicy, deadline: Duration) -> Self {
        Self { root, policy, deadline }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn absolute(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// The part below the root of a path that is mounted. `None` when it is elsewhere.
    fn relative(&self, absolute: &str) -> Option<String> {
        let relative = Path::new(absolute).strip_prefix(&self.root).ok()?.to_str()?;
        relative
            .parse::<saasodoo_core::DataPath>()
            .ok()
            .map(|path| path.to_string())
    }

    fn relative_or_fail(&self, absolute: &str) -> Result<String> {
        self.relative(absolute).ok_or_else(|| {
            fail(
                ErrorKind::Unsupported,
                format!("{absolute} is not under the data root {}", self.root.display()),
            )
            .with_advice("configure the data root that this fleet uses")
        })
    }

    /// Runs file system calls where they may block. A file system that hangs keeps its thread, not the caller.
    async fn blocking<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let this = self.clone();
        match tokio::time::timeout(deadline, tokio::task::spawn_blocking(move || work(&this))).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(fail(
                ErrorKind::Unexpected,
                format!("a file system call panicked: {error}"),
            )),
            Err(_) => Err(fail(
                ErrorKind::Timeout,
                format!("{} did not answer within {deadline:?}", self.root.display()),
            )
            .with_retry(Retry::OutcomeUnknown)
            .with_advice("check the CephFS mount")),
        }
    }

    /// What there is at a mounted path. A path elsewhere is not looked at.
    pub(crate) async fn look(&self, absolute: Option<&str>, usage: bool) -> Result<Disk> {
        let Some(relative) = absolute.and_then(|path| self.relative(path)) else {
            return Ok(Disk::default());
        };
        self.blocking(self.deadline, move |root| root.look_now(&relative, usage))
            .await
    }

    /// The quotas of many directories, in one go. What cannot be read is not there.
    pub(crate) async fn quotas(&self, paths: Vec<String>) -> Vec<Disk> {
        let count = paths.len();
        if count == 0 {
            return Vec::new();
        }
        let read = self.blocking(self.deadline, move |root| {
            let each = paths.iter().map(|path| {
                let relative = root.relative(path)?;
                root.look_now(&relative, false).ok()
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

    fn look_now(&self, relative: &str, usage: bool) -> Result<Disk> {
        let Some(dir) = self.open(relative)? else {
            return Ok(Disk {
                exists: Some(false),
                ..Disk::default()
            });
        };
        Ok(Disk {
            exists: Some(true),
            quota: number(&dir, QUOTA).filter(|quota| *quota > 0),
            used: if usage { number(&dir, USED) } else { None },
        })
    }

    /// Makes a new directory with its quota. One that is there and empty, as an interrupted creation leaves it, will
    /// do; one with anything in it is a conflict and is not touched.
    pub(crate) async fn make(&self, relative: String, id: InstanceId, size: Bytes) -> Result<Prepared> {
        self.blocking(self.deadline, move |root| root.make_now(&relative, id, size))
            .await
    }

    /// Whether a new directory could be made.
    pub(crate) async fn free(&self, relative: String, id: InstanceId) -> Result<()> {
        self.blocking(self.deadline, move |root| {
            let path = root.absolute(&relative);
            root.open_root()?;
            match root.open(&relative)? {
                Some(dir) => check_free(&dir, &path, id),
                None => Ok(()),
            }
        })
        .await
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
        let undo = if made {
            Undo::Remove(inode(&dir, &path)?)
        } else {
            Undo::Nothing
        };
        let prepared = Prepared {
            path,
            adopted: false,
            retained: false,
            undo,
        };
        mark(&dir, OWNER, &id.to_string());
        if let Err(error) = self.set_quota_now(&dir, &prepared.path, size) {
            drop(dir);
            self.undo_now(relative, &prepared);
            return Err(error);
        }
        Ok(prepared)
    }

    /// Takes a directory that exists, raising its quota where it is smaller than asked.
    pub(crate) async fn adopt(&self, path: PathBuf, size: Bytes, retained: bool) -> Result<Prepared> {
        let relative = self.relative_or_fail(&path.to_string_lossy())?;
        self.blocking(self.deadline, move |root| root.adopt_now(&relative, size, retained))
            .await
    }

    fn adopt_now(&self, relative: &str, size: Bytes, retained: bool) -> Result<Prepared> {
        let path = self.absolute(relative);
        let dir = self.open(relative)?.ok_or_else(|| missing(&path))?;
        if is_marked(&dir, PURGING) {
            return Err(fail(
                ErrorKind::StorageMissing,
                format!("{} is being purged: what is left of it is incomplete", path.display()),
            )
            .with_advice("repeat the purge until it succeeds"));
        }
        let quota = number(&dir, QUOTA).filter(|quota| *quota > 0);
        let mut undo = Undo::Nothing;
        match quota {
            Some(quota) if quota > size.get() => {
                return Err(Error::invalid(
                    "storage",
                    format!(
                        "{size} is less than the {} that the data in {} has, and storage cannot shrink",
                        Bytes::new(quota),
                        path.display()
                    ),
                )
                .with_backend(BackendKind::Swarm));
            }
            Some(quota) if quota == size.get() => {}
            _ => {
                self.set_quota_now(&dir, &path, size)?;
                undo = Undo::Quota(quota);
            }
        }
        Ok(Prepared {
            path,
            adopted: !retained || is_marked(&dir, ADOPTED),
            retained,
            undo,
        })
    }

    /// The mounted directory is in use again.
    pub(crate) async fn settled(&self, prepared: &Prepared) {
        if !prepared.retained {
            return;
        }
        let Some(relative) = self.relative(&prepared.path.to_string_lossy()) else {
            return;
        };
        let _ = self
            .blocking(self.deadline, move |root| {
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
            .blocking(self.deadline, move |root| {
                root.undo_now(&relative, &prepared);
                Ok(())
            })
            .await;
        if let Err(error) = undone {
            tracing::warn!(%error, "a data directory could not be taken back");
        }
    }

    fn undo_now(&self, relative: &str, prepared: &Prepared) {
        let result = match prepared.undo {
            Undo::Nothing => Ok(()),
            Undo::Remove(made) => self.open(relative).and_then(|dir| {
                let same = dir
                    .as_ref()
                    .is_some_and(|dir| inode(dir, &prepared.path).ok() == Some(made));
                drop(dir);
                if same {
                    // Fails on a directory that is not empty, which is what protects the data of somebody faster.
                    let removed = unlinkat(&self.open_root()?, relative, AtFlags::REMOVEDIR);
                    return removed.map_err(|error| io_error(error.into(), &prepared.path, "cannot be removed"));
                }
                Ok(())
            }),
            Undo::Quota(before) => self.open(relative).and_then(|dir| match dir {
                Some(dir) => dir
                    .set_xattr(QUOTA, before.unwrap_or(0).to_string().as_bytes())
                    .map_err(|error| io_error(error, &prepared.path, "does not take its old quota back")),
                None => Ok(()),
            }),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "a data directory could not be taken back");
        }
    }

    /// Enforces a larger size.
    pub(crate) async fn set_quota(&self, absolute: &str, size: Bytes) -> Result<()> {
        let relative = self.relative_or_fail(absolute)?;
        self.blocking(self.deadline, move |root| {
            let path = root.absolute(&relative);
            let dir = root.open(&relative)?.ok_or_else(|| missing(&path))?;
            root.set_quota_now(&dir, &path, size)
        })
        .await
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

    /// Marks a directory as left behind by its instance, so that it is found again by the full id.
    pub(crate) async fn retain(&self, absolute: &str, id: InstanceId, adopted: bool) {
        let Some(relative) = self.relative(absolute) else {
            return;
        };
        let marked = self.blocking(self.deadline, move |root| {
            if let Some(dir) = root.open(&relative)? {
                mark(&dir, OWNER, &id.to_string());
                mark(&dir, RETAINED, "true");
                if adopted {
                    mark(&dir, ADOPTED, "true");
                }
            }
            Ok(())
        });
        if let Err(error) = marked.await {
            tracing::warn!(%error, "a data directory could not be marked as left behind");
        }
    }

    /// The directory that an instance of this id left behind: by its mark, or by today's name where that is known.
    pub(crate) async fn find_left(&self, id: InstanceId, expected: Option<String>) -> Result<Option<Left>> {
        self.blocking(self.deadline, move |root| root.find_left_now(id, expected.as_deref()))
            .await
    }

    fn find_left_now(&self, id: InstanceId, expected: Option<&str>) -> Result<Option<Left>> {
        let left = |relative: &str, dir: &File| {
            let path = self.absolute(relative);
            Ok(Left {
                identity: identity(dir, &path)?,
                adopted: is_marked(dir, ADOPTED),
                path,
            })
        };
        let owner = id.to_string();
        if let Some(relative) = expected
            && let Some(dir) = self.open(relative)?
            && text(&dir, OWNER).is_none_or(|seen| seen == owner)
        {
            return left(relative, &dir).map(Some);
        }
        let root = self.open_root()?;
        let suffix = format!("_{}", id.short());
        for name in names(&root, &self.root)? {
            if !name.ends_with(&suffix) {
                continue;
            }
            if let Some(dir) = self.open(&name)?
                && text(&dir, OWNER).as_deref() == Some(&owner)
            {
                return left(&name, &dir).map(Some);
            }
        }
        Ok(None)
    }

    /// The identity of a mounted directory, for a purge token.
    pub(crate) async fn identify(&self, absolute: &str) -> Result<Option<Left>> {
        let relative = self.relative_or_fail(absolute)?;
        self.blocking(self.deadline, move |root| {
            let path = root.absolute(&relative);
            match root.open(&relative)? {
                Some(dir) => Ok(Some(Left {
                    identity: identity(&dir, &path)?,
                    adopted: is_marked(&dir, ADOPTED),
                    path,
                })),
                None => Ok(None),
            }
        })
        .await
    }

    /// Deletes exactly this directory with all that is in it. Answers whether it was there.
    pub(crate) async fn purge(&self, target: ObjectIdentity, deadline: Duration) -> Result<bool> {
        let relative = self.relative_or_fail(&target.name)?;
        self.blocking(deadline, move |root| root.purge_now(&relative, &target))
            .await
    }

    fn purge_now(&self, relative: &str, target: &ObjectIdentity) -> Result<bool> {
        let path = self.absolute(relative);
        let Some(dir) = self.open(relative)? else {
            return Ok(false);
        };
        if identity(&dir, &path)? != *target {
            return Err(Error::conflict(
                ["storage"],
                format!("{} is not the directory that the purge was planned for", path.display()),
            )
            .with_backend(BackendKind::Swarm)
            .with_advice("plan the purge again"));
        }
        mark(&dir, PURGING, "true");
        let failed = |error: Errno| io_error(error.into(), &path, "cannot be deleted completely");
        let device = fstat(&dir).map_err(failed)?.st_dev;
        remove_children(dir.as_fd(), device, 0).map_err(failed)?;
        drop(dir);
        // Not the path: a component of it could have been exchanged.
        let (parent, name) = match relative.rsplit_once('/') {
            Some((parent, name)) => (self.open(parent)?.ok_or_else(|| missing(&path))?, name),
            None => (File::from(self.open_root()?), relative),
        };
        unlinkat(&parent, name, AtFlags::REMOVEDIR).map_err(failed)?;
        Ok(true)
    }

    /// Looks whether the root can be written and enforces quotas; leaves nothing behind.
    pub(crate) async fn probe(&self) -> Result<bool> {
        let name = format!(".saasodoo-health-{}", InstanceId::random());
        self.blocking(self.deadline, move |root| {
            let fd = root.open_root()?;
            let path = root.absolute(&name);
            mkdirat(&fd, name.as_str(), Mode::from_raw_mode(0o700))
                .map_err(|error| io_error(error.into(), &path, "cannot be made"))?;
            let quota =
                root.open(&name).ok().flatten().is_some_and(|dir| {
                    dir.set_xattr(QUOTA, b"1048576").is_ok() && number(&dir, QUOTA) == Some(1_048_576)
                });
            unlinkat(&fd, name.as_str(), AtFlags::REMOVEDIR)
                .map_err(|error| io_error(error.into(), &path, "cannot be removed"))?;
            Ok(quota)
        })
        .await
    }

    fn open_root(&self) -> Result<OwnedFd> {
        openat(
            CWD,
            &self.root,
            OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| {
            let kind = match error {
                Errno::ACCESS | Errno::PERM => ErrorKind::Forbidden,
                _ => ErrorKind::MissingPrerequisite,
            };
            fail(
                kind,
                format!("the data root {} cannot be opened: {error}", self.root.display()),
            )
            .with_advice("mount CephFS there and make the directory, or configure another data root")
        })
    }

    /// Opens a directory below the root without following any link. `None`: it is not there.
    fn open(&self, relative: &str) -> Result<Option<File>> {
        let root = self.open_root()?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match openat2(&root, relative, flags, Mode::empty(), resolve) {
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
