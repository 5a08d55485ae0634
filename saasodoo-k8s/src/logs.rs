//! The log of an instance: the log of its pod, and when that is replaced, of the next one.

use std::pin::Pin;
use std::time::Duration;

use futures::io::{AsyncBufRead, AsyncBufReadExt as _};
use futures::stream::{self, BoxStream, StreamExt as _};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use saasodoo_core::{BackendKind, Error, InstanceId, LogLine, LogOptions, OperationKind, Result};
use tokio::time::{sleep, timeout};

use crate::error::{Effect, classify, deadline};
use crate::names::{selector_of, the_one};
use crate::observe::{belongs, main_container};
use crate::views::{DeploymentView, PodView, View as _};
use crate::wire::{DEPLOYMENT, Fresh, POD, Wire, jittered};

type Reader = Pin<Box<dyn AsyncBufRead + Send>>;

/// A longer line is given in pieces: the container runtime cuts at 16 KiB, but the protocol promises nothing.
const LONGEST_LINE: usize = 256 * 1024;
/// A log that is followed and says nothing for so long is asked for again: the connection may be dead.
const QUIET: Duration = Duration::from_secs(60);
/// How long to wait for a pod, or for one that has just ended to be started again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// The lines of the instance's log.
pub(crate) fn logs(wire: Wire, id: InstanceId, options: LogOptions) -> BoxStream<'static, Result<LogLine>> {
    let log = Log {
        wire,
        id,
        options,
        open: None,
        last: None,
        pause: PAUSE.0,
        opened: false,
    };
    stream::try_unfold(
        log,
        |mut log| async move { Ok(log.next().await?.map(|line| (line, log))) },
    )
    .map(move |line| {
        line.map_err(|error: Error| {
            error
                .with_operation(OperationKind::Logs)
                .with_backend(BackendKind::Kubernetes)
                .with_instance(id)
        })
    })
    .boxed()
}

struct Log {
    wire: Wire,
    id: InstanceId,
    options: LogOptions,
    open: Option<(String, Reader)>,
    /// The last line that was given: what is read again after a break is told from what is new by its time.
    last: Option<Mark>,
    pause: Duration,
    opened: bool,
}

/// How far the log of a pod has been read.
struct Mark {
    pod: String,
    at: Timestamp,
    /// How many lines of exactly that time were given.
    given: usize,
    /// How many of them have come again since the log was opened again.
    again: usize,
}

/// A container's log, as the server knows it.
struct Target {
    pod: String,
    container: String,
    previous: bool,
}

impl Log {
    async fn next(&mut self) -> Result<Option<LogLine>> {
        loop {
            if self.open.is_none() && !self.reopen().await? {
                return Ok(None);
            }
            let Some((pod, reader)) = &mut self.open else { continue };
            let patience = if self.options.follow {
                QUIET
            } else {
                self.wire.deadlines.read
            };
            match timeout(patience, read_line(reader)).await {
                Ok(Ok(Some(line))) => {
                    let line = parse(pod, &line);
                    if self.is_new(&line) {
                        self.pause = PAUSE.0;
                        return Ok(Some(line));
                    }
                }
                Ok(Ok(None)) => {
                    self.open = None;
                    if !self.options.follow {
                        return Ok(None);
                    }
                }
                // A follower asks again, and fails when that fails; a reader that is cut short must say so.
                Ok(Err(_)) | Err(_) if self.options.follow => self.open = None,
                Ok(Err(error)) => return Err(classify(kube::Error::ReadEvents(error), Effect::Read)),
                Err(_) => return Err(deadline(patience, Effect::Read)),
            }
        }
    }

    /// Opens the log of the pod that there is. False when there is none, and none is waited for.
    async fn reopen(&mut self) -> Result<bool> {
        if self.opened {
            sleep(jittered(self.pause)).await;
            self.pause = (self.pause * 2).min(PAUSE.1);
        }
        let first = !std::mem::replace(&mut self.opened, true);
        let target = match find(&self.wire, self.id, self.options.previous).await {
            Ok(target) => target,
            // It was there and has been deleted: the log is over.
            Err(error) if error.is_not_found() && !first => return Ok(false),
            Err(error) => return Err(error),
        };
        let Some(target) = target else {
            return Ok(self.options.follow);
        };
        // Of a pod that came later, everything is new.
        let tail = self.options.tail.filter(|_| self.last.is_none());
        let since = match self.last.as_mut().filter(|last| last.pod == target.pod) {
            Some(last) => {
                last.again = 0;
                Some(last.at)
            }
            None => self.options.since,
        };
        let params = LogParams {
            container: Some(target.container),
            follow: self.options.follow && !target.previous,
            previous: target.previous,
            // The server, and the client library's rounding, know whole seconds only; the rest is cut here.
            since_time: since.and_then(|at| Timestamp::from_second(at.as_second()).ok()),
            tail_lines: tail.map(|lines| lines.get().into()),
            timestamps: true,
            ..LogParams::default()
        };
        let pods: Api<Pod> = Api::namespaced(self.wire.client().clone(), self.wire.namespace());
        let limit = self.wire.deadlines.read;
        match timeout(limit, pods.log_stream(&target.pod, &params)).await {
            Ok(Ok(reader)) => {
                self.open = Some((target.pod, Box::pin(reader)));
                Ok(true)
            }
            // The container has not written yet, has no predecessor, or went away in between.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400 | 404) => Ok(self.options.follow),
            Ok(Err(error)) => Err(classify(error, Effect::Read)),
            Err(_) => Err(deadline(limit, Effect::Read)),
        }
    }

    /// False for a line that was given before the log was opened again, or is older than what was asked for.
    fn is_new(&mut self, line: &LogLine) -> bool {
        let Some(at) = line.at else { return true };
        if self.options.since.is_some_and(|since| at <= since) {
            return false;
        }
        match &mut self.last {
            Some(last) if last.pod == line.unit => {
                if at < last.at {
                    return false;
                }
                if at == last.at {
                    last.again += 1;
                    if last.again <= last.given {
                        return false;
                    }
                    last.given = last.again;
                } else {
                    (last.at, last.given, last.again) = (at, 1, 1);
                }
            }
            _ => {
                self.last = Some(Mark {
                    pod: line.unit.clone(),
                    at,
                    given: 1,
                    again: 1,
                });
            }
        }
        true
    }
}

/// Finds the container whose log is meant.
async fn find(wire: &Wire, id: InstanceId, previous: bool) -> Result<Option<Target>> {
    let selector = selector_of(id);
    let (deployments, pods) = futures::try_join!(
        wire.few::<DeploymentView>(&DEPLOYMENT, &selector, Fresh::Now),
        wire.few::<PodView>(&POD, &selector, Fresh::Now),
    )?;
    let deployment = the_one(id, deployments)?.ok_or_else(|| Error::not_found(id))?;
    let own = pods.iter().filter(|pod| belongs(&deployment, pod)).collect();
    Ok(choose(&deployment, own, previous))
}

/// The log that counts: that of the newest pod that shall run, else of the newest that there is. The one before it is
/// the same container's before its restart, else that of the pod before.
fn choose(deployment: &DeploymentView, mut pods: Vec<&PodView>, previous: bool) -> Option<Target> {
    pods.sort_by_key(|pod| (!pod.is_deleting(), pod.created_at(), pod.name().to_owned()));
    let current = *pods.last()?;
    let target = |pod: &PodView, previous| Target {
        pod: pod.name().to_owned(),
        container: container_of(deployment, pod),
        previous,
    };
    if !previous {
        return Some(target(current, false));
    }
    let name = container_of(deployment, current);
    let restarted = current
        .status
        .container(&name)
        .is_some_and(|status| status.restart_count > 0);
    if restarted {
        return Some(target(current, true));
    }
    let before = pods.len().checked_sub(2).and_then(|index| pods.get(index))?;
    Some(target(before, false))
}

/// The container with Odoo: others may be added by hooks and admission.
fn container_of(deployment: &DeploymentView, pod: &PodView) -> String {
    let wanted = main_container(deployment).map(|container| container.name.as_str());
    let names = || pod.spec.containers.iter().map(|container| container.name.as_str());
    names()
        .find(|name| Some(*name) == wanted)
        .or_else(|| names().next())
        .or(wanted)
        .unwrap_or_default()
        .to_owned()
}

/// The next line without its end, or the next piece of a line that is too long. `None` at the end.
async fn read_line(reader: &mut Reader) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return Ok((!line.is_empty()).then_some(line));
        }
        let room = LONGEST_LINE - line.len();
        let end = chunk.iter().take(room).position(|byte| *byte == b'\n');
        let taken = end.map_or(chunk.len().min(room), |end| end + 1);
        line.extend_from_slice(&chunk[..end.unwrap_or(taken)]);
        reader.consume_unpin(taken);
        if end.is_some() || line.len() >= LONGEST_LINE {
            return Ok(Some(line));
        }
    }
}

/// A line as the server sends it: the time, a space, the text.
fn parse(pod: &str, line: &[u8]) -> LogLine {
    let text = String::from_utf8_lossy(line);
    let text = text.strip_suffix('\r').unwrap_or(&text);
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match word.parse::<Timestamp>() {
        Ok(at) => LogLine::new(Some(at), pod, rest),
        Err(_) => LogLine::new(None, pod, text),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn view<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
        serde_json::from_value(value).expect("a view")
    }

    #[test]
    fn lines_are_taken_apart() {
        let line = parse("p", b"2026-11-20T10:00:00.123456789Z hello  world \r");
        assert_eq!(line.at.map(|at| at.subsec_nanosecond()), Some(123_456_789));
        assert_eq!((line.text.as_str(), line.unit.as_str()), ("hello  world ", "p"));
        assert_eq!(
            parse("p", b"2026-11-20T10:00:00.5+01:00 x").at,
            "2026-11-20T09:00:00.5Z".parse().ok()
        );
        assert_eq!(parse("p", b"2026-11-20T10:00:00Z").text, "");
        assert_eq!(parse("p", b"no time"), LogLine::new(None, "p", "no time"));
        assert_eq!(parse("p", b"\xff\xfe").text, "\u{fffd}\u{fffd}");
        assert_eq!(parse("p", b""), LogLine::new(None, "p", ""));
    }

    #[tokio::test]
    async fn lines_end_at_line_ends_and_at_the_limit() {
        let mut text = b"a\n\nb".to_vec();
        text.extend(std::iter::repeat_n(b'x', LONGEST_LINE + 5));
        text.extend(b"\nlast");
        let mut reader: Reader = Box::pin(futures::io::BufReader::new(futures::io::Cursor::new(text)));
        let mut lengths = Vec::new();
        while let Some(line) = read_line(&mut reader).await.expect("a line") {
            lengths.push(line.len());
        }
        assert_eq!(lengths, [1, 0, LONGEST_LINE, 6, 4]);
    }

    #[test]
    fn the_newest_pod_that_shall_run_is_read() {
        let deployment: DeploymentView =
            view(json!({"spec": {"template": {"spec": {"containers": [{"name": "odoo"}]}}}}));
        let pod = |name: &str, created: &str, deleting: bool, restarts: i32| -> PodView {
            view(json!({
                "metadata": {
                    "name": name,
                    "creationTimestamp": created,
                    "deletionTimestamp": deleting.then_some("2026-11-20T11:00:00Z"),
                },
                "spec": {"containers": [{"name": "sidecar"}, {"name": "odoo"}]},
                "status": {"containerStatuses": [{"name": "odoo", "restartCount": restarts}]},
            }))
        };
        let old = pod("old", "2026-11-20T10:00:00Z", false, 0);
        let new = pod("new", "2026-11-20T10:01:00Z", false, 0);
        let ending = pod("ending", "2026-11-20T10:02:00Z", true, 0);
        let restarted = pod("restarted", "2026-11-20T10:03:00Z", false, 1);
        let chosen = |pods: Vec<&PodView>, previous| {
            choose(&deployment, pods, previous).map(|t| (t.pod, t.container, t.previous))
        };
        let odoo = |pod: &str, previous| Some((pod.to_owned(), "odoo".to_owned(), previous));
        assert_eq!(chosen(vec![&new, &ending, &old], false), odoo("new", false));
        assert_eq!(chosen(vec![&ending], false), odoo("ending", false));
        assert_eq!(chosen(vec![&new, &old], true), odoo("old", false));
        assert_eq!(chosen(vec![&old, &restarted], true), odoo("restarted", true));
        assert_eq!(chosen(vec![&new], true), None);
        assert_eq!(chosen(vec![], false), None);
    }
}
