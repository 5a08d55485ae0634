//! Deleting a tree of files, and nothing that only hangs on to it.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, openat, statat, unlinkat};
use rustix::io::Errno;

/// How deep it goes down: each level keeps a directory open.
const MAX_DEPTH: u32 = 256;

/// Deletes what is in a directory, never what a link points at, and never across a mount.
pub(crate) fn remove_children(dir: BorrowedFd<'_>, device: u64, depth: u32) -> rustix::io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    // A directory that is changed while it is read may show less than it has: read it until it is empty.
    for _ in 0..64 {
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
            let stat = match statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                unlinkat(dir, &name, AtFlags::empty())?;
                continue;
            }
            if stat.st_dev != device {
                return Err(Errno::XDEV);
            }
            let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let child = openat(dir, &name, flags, Mode::empty())?;
            if fstat(&child)?.st_dev != device {
                return Err(Errno::XDEV);
            }
            remove_children(child.as_fd(), device, depth + 1)?;
            drop(child);
            unlinkat(dir, &name, AtFlags::REMOVEDIR)?;
        }
    }
    Err(Errno::NOTEMPTY)
}
