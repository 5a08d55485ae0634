//! One open directory: its marks and numbers, and what goes wrong with it.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, StatxFlags, XattrFlags, fsetxattr, fstat, statx};
use rustix::io::Errno;
use saasodoo_core::{BackendKind, Error, ErrorKind, InstanceId, ObjectIdentity, Result};
use xattr::FileExt;

pub(crate) const QUOTA: &str = "ceph.quota.max_bytes";
pub(crate) const USED: &str = "ceph.dir.rbytes";
/// When anything in it was changed last, as seconds and nanoseconds with a dot between them.
#[cfg(not(test))]
const CHANGED: &str = "ceph.dir.rctime";
/// The same on other file systems, and one that a test can set.
#[cfg(test)]
pub(crate) const CHANGED: &str = "user.ceph.dir.rctime";
/// The full id of the instance whose data it is.
pub(crate) const OWNER: &str = "user.saasodoo.instance";
/// The instance was deleted and its data kept; until when its own tasks can have written, in seconds.
pub(crate) const RETAINED: &str = "user.saasodoo.retained";
/// When this library last changed the directory itself while its instance did not run, in seconds.
pub(crate) const TOUCHED: &str = "user.saasodoo.touched";
/// It was there before the instance: no purge takes it.
pub(crate) const ADOPTED: &str = "user.saasodoo.adopted";
/// A purge has begun: what is left is nobody's data any more.
pub(crate) const PURGING: &str = "user.saasodoo.purging";

/// A directory that exists is free for an instance when it is empty and nobody else's.
pub(crate) fn check_free(dir: &File, path: &Path, id: InstanceId) -> Result<()> {
    let foreign = text(dir, path, OWNER)?.is_some_and(|owner| owner != id.to_string());
    if foreign || is_marked(dir, path, RETAINED)? || is_marked(dir, path, PURGING)? || !is_empty(dir, path)? {
        return Err(data_exists(path));
    }
    Ok(())
}

/// Refuses a directory that carries another instance's mark.
pub(crate) fn check_owner(dir: &File, path: &Path, id: InstanceId) -> Result<()> {
    match text(dir, path, OWNER)? {
        Some(owner) if owner != id.to_string() => Err(belongs(path, &owner).with_advice(format!(
            "adopt it as that instance; to give it to another one remove its attribute {OWNER} by hand"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn belongs(path: &Path, owner: &str) -> Error {
    Error::conflict(
        ["storage"],
        format!("the data in {} belongs to the instance {owner}", path.display()),
    )
    .with_backend(BackendKind::Swarm)
}

/// Gives a directory its owner's mark, unless somebody else was faster. Answers whether it had none.
pub(crate) fn claim(dir: &File, path: &Path, id: InstanceId) -> Result<bool> {
    match fsetxattr(dir, OWNER, id.to_string().as_bytes(), XattrFlags::CREATE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => check_owner(dir, path, id).map(|()| false),
        Err(error) => {
            tracing::debug!(name = OWNER, %error, "the data directory takes no mark");
            Ok(false)
        }
    }
}

/// A purge has moved a directory aside under a name that begins so.
pub(crate) const PURGED: &str = ".purge-";

/// Whether a purge of the directory has begun.
pub(crate) fn is_purged(dir: &File, path: &Path) -> Result<bool> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(is_marked(dir, path, PURGING)? || name.is_some_and(|name| name.starts_with(PURGED)))
}

/// When anything in the directory was changed last, in seconds. `None` where the file system does not keep that, which
/// a purge then does without: what cannot be read is an error.
pub(crate) fn changed(dir: &File, path: &Path) -> Result<Option<i64>> {
    text(dir, path, CHANGED)?.map(|text| seconds(&text, path)).transpose()
}

pub(crate) fn seconds(text: &str, path: &Path) -> Result<i64> {
    // Some kernels write a superfluous 09 before the nanoseconds.
    let whole = text.split('.').next().unwrap_or_default();
    whole.parse().map_err(|_| {
        fail(
            ErrorKind::Unexpected,
            format!("{} was changed last at {text:?}, which is no time", path.display()),
        )
    })
}

/// What is in a directory.
pub(crate) fn names(dir: &File, path: &Path) -> Result<Vec<String>> {
    let failed = |error: Errno| io_error(error.into(), path, "cannot be read");
    let mut names = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(name) = entry.file_name().to_str()
            && !matches!(name, "." | "..")
        {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

pub(crate) fn is_empty(dir: &File, path: &Path) -> Result<bool> {
    let failed = |error: Errno| io_error(error.into(), path, "cannot be read");
    for entry in Dir::read_from(dir).map_err(failed)? {
        if !matches!(entry.map_err(failed)?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(crate) fn inode(dir: &File, path: &Path) -> Result<u64> {
    fstat(dir)
        .map(|stat| stat.st_ino)
        .map_err(|error| io_error(error.into(), path, "cannot be read"))
}

/// By inode, which CephFS never gives out twice, and by the time of its birth where the file system tells it: others give
/// the inode of what was deleted to the next directory. The device's number changes with every mount.
pub(crate) fn identity(dir: &File, path: &Path) -> Result<ObjectIdentity> {
    let inode = inode(dir, path)?;
    let uid = match statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME) {
        Ok(stat) if stat.stx_mask & StatxFlags::BTIME.bits() != 0 => {
            format!("{inode}-{}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
        }
        Ok(_) | Err(Errno::NOSYS) => inode.to_string(),
        Err(error) => return Err(io_error(error.into(), path, "cannot be read")),
    };
    Ok(ObjectIdentity::new("Directory", path.to_string_lossy(), uid))
}

pub(crate) fn number<T: std::str::FromStr>(dir: &File, path: &Path, name: &str) -> Result<Option<T>> {
    Ok(text(dir, path, name)?.and_then(|text| text.parse().ok()))
}

/// A mark's text. `None`: there is none, or the file system has no such marks.
pub(crate) fn text(dir: &File, path: &Path, name: &str) -> Result<Option<String>> {
    match dir.get_xattr(name) {
        Ok(value) => Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned())),
        Err(error) if is_no_mark(&error) => Ok(None),
        Err(error) => Err(io_error(error, path, &format!("does not give its attribute {name}"))),
    }
}

pub(crate) fn is_marked(dir: &File, path: &Path, name: &str) -> Result<bool> {
    Ok(text(dir, path, name)?.is_some())
}

/// Whether a mark could not be read because there is none: the directory has been removed, or its file system has no
/// marks. Anything else is no answer.
pub(crate) fn is_no_mark(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NOENT | Errno::NODATA | Errno::OPNOTSUPP)
    )
}

/// Marks are a help: a file system without them is no reason to fail.
pub(crate) fn mark(dir: &File, name: &str, value: &str) {
    if let Err(error) = dir.set_xattr(name, value.as_bytes()) {
        tracing::debug!(name, %error, "the data directory takes no mark");
    }
}

pub(crate) fn fail(kind: ErrorKind, message: String) -> Error {
    Error::new(kind, message).with_backend(BackendKind::Swarm)
}

pub(crate) fn missing(path: &Path) -> Error {
    fail(
        ErrorKind::StorageMissing,
        format!("there is no directory {}", path.display()),
    )
    .with_advice("look where the data is before anything else")
}

pub(crate) fn data_exists(path: &Path) -> Error {
    Error::conflict(
        ["storage"],
        format!("{} exists already and nobody asked to adopt it", path.display()),
    )
    .with_backend(BackendKind::Swarm)
    .with_advice("adopt the data, or purge it, before creating the instance")
}

pub(crate) fn no_quota(path: &Path, why: &str) -> Error {
    fail(
        ErrorKind::MissingPrerequisite,
        format!("{} takes no quota: {why}", path.display()),
    )
    .with_field("storage")
    .with_advice("mount CephFS at the data root, or configure best-effort quotas")
}

pub(crate) fn io_error(error: io::Error, path: &Path, what: &str) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::PermissionDenied => ErrorKind::Forbidden,
        io::ErrorKind::QuotaExceeded | io::ErrorKind::StorageFull => ErrorKind::QuotaExceeded,
        io::ErrorKind::NotFound => ErrorKind::StorageMissing,
        _ => ErrorKind::Unavailable,
    };
    fail(kind, format!("{} {what}: {error}", path.display())).with_source(error)
}
