//! Deleting a tree of files, and nothing that only hangs on to it.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat2, renameat, statat, unlinkat};
use rustix::io::Errno;
use saasodoo_core::{BackendKind, Error, ErrorKind, InstanceId, ObjectIdentity, Result, Retry};
use xattr::FileExt as _;

use crate::directory::{PURGED, PURGING, fail, identity, io_error, mark};
use crate::retained::{Traces, Writer};
use crate::storage::DataRoot;

/// How deep it goes down: each level keeps a directory open. What is deeper is moved up first.
const MAX_DEPTH: u32 = 64;

impl DataRoot {
    /// Deletes exactly this directory with all that is in it, unless something else has written to it since `writer`
    /// could. Answers whether it was there.
    pub(crate) async fn purge(&self, target: ObjectIdentity, writer: Writer, deadline: Duration) -> Result<bool> {
        let relative = self.relative_or_fail(&target.name)?;
        self.purging(deadline, move |root| {
            root.purge_now(&relative, &target, writer, Instant::now() + deadline)
        })
        .await
    }

    fn purge_now(&self, relative: &str, target: &ObjectIdentity, writer: Writer, deadline: Instant) -> Result<bool> {
        let path = self.absolute(relative);
        // Not by the path: a component of it could be exchanged.
        let (parent, name) = match relative.rsplit_once('/') {
            Some((parent, name)) => (self.open(parent)?, name),
            None => (Some(self.open_root()?), relative),
        };
        let Some(parent) = parent else { return Ok(false) };
        // First of all it gets a name under which nobody adopts it, and under which an interrupted purge goes on.
        let aside = format!("{PURGED}{}", target.uid);
        let moved = match self.aside(&parent, &aside, target)? {
            Some(moved) => moved,
            None => {
                let Some(dir) = open_child(&parent, name, &path)? else {
                    return Ok(false);
                };
                if !is_target(&dir, &path, target)? {
                    return Err(replaced(&path));
                }
                Traces::of(&dir, &path)?.check(&path, writer)?;
                mark(&dir, PURGING, "true");
                let failed = |error: Errno| io_error(error.into(), &path, "cannot be moved aside to be deleted");
                if name != aside
                    && let Err(error) = renameat(&parent, name, &parent, aside.as_str())
                {
                    // Nothing of it is gone, so it stays what it was.
                    let _ = dir.remove_xattr(PURGING);
                    return Err(failed(error));
                }
                match self.aside(&parent, &aside, target)? {
                    Some(moved) => moved,
                    None => {
                        // Exchanged in between: it is somebody else's.
                        renameat(&parent, aside.as_str(), &parent, name).map_err(failed)?;
                        return Err(replaced(&path));
                    }
                }
            }
        };
        let failed = |error: Errno| match error {
            Errno::TIMEDOUT => fail(
                ErrorKind::Timeout,
                format!("{} is not deleted completely yet", path.display()),
            )
            .with_retry(Retry::After(None))
            .with_advice("delete it again with the same token"),
            Errno::XDEV => fail(
                ErrorKind::Conflict,
                format!("something is mounted in {}, which is not deleted", path.display()),
            )
            .with_advice("unmount it and delete again with the same token"),
            error => io_error(error.into(), &path, "cannot be deleted completely"),
        };
        remove_tree(moved.as_fd(), deadline).map_err(failed)?;
        drop(moved);
        unlinkat(&parent, aside.as_str(), AtFlags::REMOVEDIR).map_err(failed)?;
        Ok(true)
    }

    /// The directory that a purge of this target has moved aside.
    fn aside(&self, parent: &File, name: &str, target: &ObjectIdentity) -> Result<Option<File>> {
        let path = self.path().join(name);
        match open_child(parent, name, &path)? {
            Some(dir) if is_target(&dir, &path, target)? => Ok(Some(dir)),
            _ => Ok(None),
        }
    }
}

fn is_target(dir: &File, path: &Path, target: &ObjectIdentity) -> Result<bool> {
    Ok(target.kind == "Directory" && identity(dir, path)?.uid == target.uid)
}

fn replaced(path: &Path) -> Error {
    Error::conflict(
        ["storage"],
        format!("{} is not the directory that the purge was planned for", path.display()),
    )
    .with_backend(BackendKind::Swarm)
    .with_advice("plan the purge again")
}

fn open_child(parent: &File, name: &str, path: &Path) -> Result<Option<File>> {
    match open_below(parent.as_fd(), name) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error @ (Errno::LOOP | Errno::XDEV | Errno::NOTDIR)) => Err(fail(
            ErrorKind::Conflict,
            format!(
                "{} is not a plain directory under the data root: {error}",
                path.display()
            ),
        )),
        Err(error) => Err(io_error(error.into(), path, "cannot be opened")),
    }
}

/// Opens a directory, never through a link and never across a mount, also not of the same file system.
fn open_below(dir: BorrowedFd<'_>, name: impl rustix::path::Arg) -> rustix::io::Result<File> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    openat2(dir, name, flags, Mode::empty(), resolve).map(File::from)
}

/// Deletes what is in a directory, never what a link points at, and never across a mount.
fn remove_tree(top: BorrowedFd<'_>, deadline: Instant) -> rustix::io::Result<()> {
    remove_children(top, top, 0, deadline)
}

fn remove_children(dir: BorrowedFd<'_>, top: BorrowedFd<'_>, depth: u32, deadline: Instant) -> rustix::io::Result<()> {
    // A directory that is changed while it is read may show less than it has, and the top gets what was too deep: read
    // it until it is empty.
    loop {
        let mut entries = Vec::new();
        for entry in Dir::read_from(dir)? {
            let name = entry?.file_name().to_owned();
            if !matches!(name.to_bytes(), b"." | b"..") {
                entries.push(name);
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        for name in entries {
            // The thread outlives the call that waits for it, so it must look itself.
            if Instant::now() >= deadline {
                return Err(Errno::TIMEDOUT);
            }
            match remove_one(dir, &name, top, depth, deadline) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn remove_one(
    dir: BorrowedFd<'_>,
    name: &std::ffi::CStr,
    top: BorrowedFd<'_>,
    depth: u32,
    deadline: Instant,
) -> rustix::io::Result<()> {
    let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(dir, name, AtFlags::empty());
    }
    let child = open_below(dir, name)?;
    if depth >= MAX_DEPTH {
        drop(child);
        // A tenant can nest directories without end; from the top this one is reached with few open ones.
        return renameat(dir, name, top, format!(".deep-{}", InstanceId::random()));
    }
    remove_children(child.as_fd(), top, depth + 1, deadline)?;
    drop(child);
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}
