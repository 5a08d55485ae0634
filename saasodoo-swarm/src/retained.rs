//! Whether data that an instance has left is still only its own: a migrated instance runs on the same directory from
//! another platform, which nothing here can see but the file system.

use std::fs::File;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use saasodoo_core::{BackendKind, Error, InstanceId, ObjectIdentity, Result};
use serde_json::Value;

use crate::convert;
use crate::directory::{
    ADOPTED, OWNER, PURGING, RETAINED, TOUCHED, belongs, changed, identity, is_empty, is_marked, mark, number, text,
};
use crate::fence;
use crate::read::Seen;
use crate::storage::DataRoot;
use crate::task::{Task, timestamp};

/// By how much clocks may differ, and how late CephFS tells the directories above about a change.
const SLACK_SECONDS: i64 = 60;

/// A directory that an instance left behind or uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) path: PathBuf,
    pub(crate) identity: ObjectIdentity,
    /// Whose it is, by its own mark.
    owner: Option<String>,
    pub(crate) adopted: bool,
    pub(crate) traces: Traces,
}

/// What a directory says about who wrote into it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    /// When anything in it was changed last. `None`: the file system does not keep that.
    changed: Option<i64>,
    /// Until when its instance can have written, from the mark of its deletion.
    retained: Option<i64>,
    touched: Option<i64>,
    purging: bool,
    empty: bool,
}

/// Until when the instance's own tasks can have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// They can write now.
    Runs,
    /// The service has been stopped since; in seconds.
    StoppedBy(i64),
    /// There is no service: the mark of its deletion says it.
    Gone,
}

impl Writer {
    /// From a service and its tasks.
    pub(crate) fn of(seen: &Seen) -> Self {
        // Behind the constraint of a suspension nothing runs, whatever the number of replicas.
        let stopped = convert::replicas(seen.body()) == Some(0) || fence::is_raised(seen.body());
        if !stopped || seen.tasks.iter().any(writes) {
            return Self::Runs;
        }
        let updated = seen.service.get("UpdatedAt").and_then(Value::as_str);
        match updated.and_then(timestamp) {
            Some(updated) => {
                let since = fence::raised_at(seen.body()).map_or(updated, |raised| raised.min(updated));
                Self::StoppedBy(since.as_second().saturating_add(grace_seconds(seen)))
            }
            None => Self::Runs,
        }
    }
}

/// Whether a task can write. One that no node fits yet cannot, and starts behind a suspension never.
pub(crate) fn writes(task: &Task) -> bool {
    task.unit().is_live() && task.state != "pending"
}

/// How long a task of the service may take to end.
pub(crate) fn grace_seconds(seen: &Seen) -> i64 {
    let grace = seen.body().pointer("/TaskTemplate/ContainerSpec/StopGracePeriod");
    // Docker's own, where the service says nothing.
    grace.and_then(Value::as_i64).map_or(10, |nanos| nanos / 1_000_000_000)
}

impl Traces {
    pub(crate) fn of(dir: &File, path: &Path) -> Result<Self> {
        Ok(Self {
            changed: changed(dir, path)?,
            retained: number(dir, path, RETAINED)?,
            touched: number(dir, path, TOUCHED)?,
            purging: is_marked(dir, path, PURGING)?,
            empty: is_empty(dir, path)?,
        })
    }

    /// Whether somebody else has written since. `None`: that cannot be known.
    fn foreign(&self, writer: Writer) -> Option<bool> {
        let changed = match self.changed {
            // What an interrupted purge left is nobody's any more.
            _ if self.purging || self.empty => return Some(false),
            None => return Some(false),
            Some(changed) => changed,
        };
        let until = match writer {
            Writer::Runs => return Some(false),
            Writer::StoppedBy(until) => Some(until.max(self.touched.unwrap_or(until))),
            Writer::Gone => self.retained,
        };
        until.map(|until| changed > until.saturating_add(SLACK_SECONDS))
    }

    /// Refuses data that somebody else uses by now.
    pub(crate) fn check(&self, path: &Path, writer: Writer) -> Result<()> {
        let why = match self.foreign(writer) {
            Some(false) => return Ok(()),
            Some(true) => "has been written to since its instance stopped here, so something else uses it",
            None => "carries no mark that says since when its instance is gone, so something else may use it",
        };
        Err(
            Error::conflict(["storage"], format!("the data in {} {why}", path.display()))
                .with_backend(BackendKind::Swarm)
                .with_advice(
                    "find out what writes there, such as the same instance on another platform; when nothing does, adopt \
                     the data with a stopped instance, delete that, and plan the purge again",
                ),
        )
    }
}

impl Left {
    pub(crate) fn read(dir: &File, path: PathBuf) -> Result<Self> {
        Ok(Self {
            identity: identity(dir, &path)?,
            owner: text(dir, &path, OWNER)?,
            adopted: is_marked(dir, &path, ADOPTED)?,
            traces: Traces::of(dir, &path)?,
            path,
        })
    }

    /// It is more than what an interrupted creation leaves.
    pub(crate) fn is_data(&self) -> bool {
        !self.traces.empty || self.traces.retained.is_some() || self.traces.purging
    }

    /// Refuses data of another instance, and data that somebody else uses by now.
    pub(crate) fn check(self, id: InstanceId, writer: Writer) -> Result<Self> {
        let is_own = |owner: &str| owner.parse().is_ok_and(|owner: InstanceId| owner.matches(id));
        if let Some(owner) = self.owner.as_deref().filter(|owner| !is_own(owner)) {
            return Err(belongs(&self.path, owner)
                .with_advice("purge it as that instance; look why the service of this one mounts it"));
        }
        self.traces.check(&self.path, writer)?;
        Ok(self)
    }
}

impl DataRoot {
    /// Marks a directory as left behind by its instance, so that it is found again by the full id. `ending` is how long
    /// its tasks may still write.
    pub(crate) async fn retain(&self, absolute: &str, id: InstanceId, adopted: bool, writer: Writer, ending: i64) {
        let Some(relative) = self.relative(absolute) else {
            return;
        };
        let marked = self.writing(move |root| {
            if let Some(dir) = root.open(&relative)? {
                let path = root.absolute(&relative);
                retain_now(&dir, &path, id, adopted, writer, Timestamp::now().as_second() + ending)?;
            }
            Ok(())
        });
        if let Err(error) = marked.await {
            tracing::warn!(%error, "a data directory could not be marked as left behind");
        }
    }
}

/// Keeps in mind that a change of the directory that follows is this library's own.
pub(crate) fn touch(dir: &File) {
    mark(dir, TOUCHED, &Timestamp::now().as_second().to_string());
}

fn retain_now(dir: &File, path: &Path, id: InstanceId, adopted: bool, writer: Writer, until: i64) -> Result<()> {
    let owner = text(dir, path, OWNER)?;
    if owner.as_ref().is_some_and(|owner| *owner != id.to_string()) {
        tracing::warn!(path = %path.display(), ?owner, "the data has another instance's mark, which stays");
        return Ok(());
    }
    // Setting marks changes the directory, so what it says now must be judged before.
    let until = match writer {
        Writer::StoppedBy(stopped) if Traces::of(dir, path)?.foreign(writer) == Some(true) => stopped,
        _ => {
            touch(dir);
            until
        }
    };
    mark(dir, OWNER, &id.to_string());
    mark(dir, RETAINED, &until.to_string());
    if adopted {
        mark(dir, ADOPTED, "true");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_was_written_after_its_instance_stopped_is_somebody_elses() {
        let at = |changed| Traces {
            changed: Some(changed),
            retained: Some(1000),
            ..Traces::default()
        };
        let path = Path::new("/r/a");
        for (traces, writer, fine) in [
            (at(1000), Writer::Gone, true),
            (at(1000 + SLACK_SECONDS), Writer::Gone, true),
            (at(1001 + SLACK_SECONDS), Writer::Gone, false),
            (at(5000), Writer::Runs, true),
            (at(5000), Writer::StoppedBy(5000), true),
            (at(5000), Writer::StoppedBy(4000), false),
            // The quota of a stopped instance was raised here.
            (
                Traces {
                    touched: Some(4990),
                    ..at(5000)
                },
                Writer::StoppedBy(4000),
                true,
            ),
            (
                Traces {
                    purging: true,
                    ..at(5000)
                },
                Writer::Gone,
                true,
            ),
            (
                Traces {
                    empty: true,
                    ..at(5000)
                },
                Writer::Gone,
                true,
            ),
            (
                Traces {
                    retained: None,
                    ..at(5000)
                },
                Writer::Gone,
                false,
            ),
            // A file system that keeps no such time.
            (Traces { changed: None, ..at(0) }, Writer::Gone, true),
        ] {
            let answer = traces.check(path, writer);
            assert_eq!(answer.is_ok(), fine, "{traces:?} {writer:?}: {answer:?}");
            if let Err(error) = answer {
                assert_eq!(error.kind(), saasodoo_core::ErrorKind::Conflict);
                assert!(error.message().contains("/r/a") && error.advice().is_some(), "{error}");
            }
        }
    }
}
