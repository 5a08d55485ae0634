//! Events and logs: what was, and what comes.

use std::collections::VecDeque;

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http::StatusCode;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;

use super::FakeDocker;
use super::api::{Answer, find_service};
use super::filters::Filters;
use super::wire::{Reply, Request};
use super::world::{Event, Line, World};

/// A moment as requests have it: seconds, with or without a fraction, or RFC 3339. 0 is none.
fn moment(request: &Request, name: &str) -> Result<Option<Timestamp>, Reply> {
    let Some(text) = request.query(name).filter(|text| !matches!(*text, "" | "0")) else {
        return Ok(None);
    };
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let nanos = format!("{fraction:0<9}");
    let parsed = match (seconds.parse(), nanos.get(..9).unwrap_or_default().parse()) {
        (Ok(seconds), Ok(nanos)) => Timestamp::new(seconds, nanos).ok(),
        _ => text.parse().ok(),
    };
    let refused = || Reply::error(StatusCode::BAD_REQUEST, format!("invalid value for \"{name}\": {text}"));
    parsed.map(Some).ok_or_else(refused)
}

/// Reads again whenever something may have happened.
struct Follower<F> {
    fake: FakeDocker,
    changed: watch::Receiver<()>,
    read: F,
    from: u64,
    queue: VecDeque<Bytes>,
    ends: bool,
    until: Option<Timestamp>,
}

/// What is there from a number on, and whether nothing follows.
type Read = (VecDeque<Bytes>, bool);

impl<F: FnMut(&mut World, u64) -> Read + Send> Follower<F> {
    async fn next(mut self) -> Option<(Bytes, Self)> {
        loop {
            if let Some(part) = self.queue.pop_front() {
                return Some((part, self));
            }
            if self.ends {
                return None;
            }
            self.changed.mark_unchanged();
            let over = self.until.is_some_and(|until| self.fake.now() >= until);
            let (read, from) = (&mut self.read, self.from);
            let ((queue, ends), newest, due) = self.fake.with(|world| (read(world, from), world.newest(), world.due()));
            (self.queue, self.from) = (queue, newest + 1);
            self.ends = ends || over;
            if !self.queue.is_empty() || self.ends {
                continue;
            }
            let now = self.fake.moment();
            let left = self.until.map(|until| {
                let left = until.duration_since(self.fake.now());
                now + std::time::Duration::try_from(left).unwrap_or_default()
            });
            let next = due.into_iter().chain(left).min();
            let next = next.map(|at| self.fake.instant(at));
            tokio::select! {
                _ = self.changed.changed() => {}
                () = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }
}

fn follow(
    fake: &FakeDocker,
    kind: &'static str,
    until: Option<Timestamp>,
    read: impl FnMut(&mut World, u64) -> Read + Send + 'static,
) -> Reply {
    let follower = Follower {
        fake: fake.clone(),
        changed: fake.inner.changed.subscribe(),
        read,
        from: 0,
        queue: VecDeque::new(),
        ends: false,
        until,
    };
    Reply::Stream(kind, stream::unfold(follower, Follower::next).boxed())
}

pub(super) fn events(fake: &FakeDocker, request: &Request) -> Answer {
    let known = [
        "config",
        "container",
        "daemon",
        "event",
        "image",
        "label",
        "network",
        "node",
        "scope",
        "secret",
        "service",
        "type",
        "volume",
    ];
    let filters = Filters::of(request, &known)?;
    let (since, until) = (moment(request, "since")?, moment(request, "until")?);
    let start = since.unwrap_or_else(|| fake.now());
    let read = move |world: &mut World, from: u64| {
        let matching = world.events.iter().filter(|event| {
            let name = event.attributes.get("name").map(String::as_str).unwrap_or_default();
            event.number >= from
                && event.at >= start
                && until.is_none_or(|until| event.at <= until)
                && filters.is("type", "service")
                && filters.is("scope", "swarm")
                && filters.is("event", event.action)
                && (filters.is("service", name) || filters.begins("service", &event.service))
        });
        (matching.map(render).collect(), false)
    };
    Ok(follow(fake, "application/json", until, read))
}

fn render(event: &Event) -> Bytes {
    let nanos = i64::try_from(event.at.as_nanosecond()).unwrap_or(i64::MAX);
    let event = json!({
        "Type": "service",
        "Action": event.action,
        "Actor": {"ID": event.service, "Attributes": event.attributes},
        "scope": "swarm",
        "time": event.at.as_second(),
        "timeNano": nanos,
    });
    Bytes::from(format!("{event}\n"))
}

pub(super) fn logs(fake: &FakeDocker, request: &Request, kind: &str, name: &str) -> Answer {
    let (out, error) = (request.flag("stdout"), request.flag("stderr"));
    if !out && !error {
        let message = "Bad parameters: you must choose at least one stream";
        return Err(Reply::error(StatusCode::INTERNAL_SERVER_ERROR, message));
    }
    let since = moment(request, "since")?;
    let tail = match request.query("tail") {
        None | Some("" | "all") => None,
        // The daemon takes what is no number for everything.
        Some(text) => text.parse::<usize>().ok(),
    };
    let (follows, times, details) = (
        request.flag("follow"),
        request.flag("timestamps"),
        request.flag("details"),
    );
    let of_service = kind == "services";
    let id = fake.with(|world| {
        if of_service {
            return find_service(world, name).map(|service| service.id.clone());
        }
        let task = world.tasks.get(name).map(|task| task.id.clone());
        task.ok_or_else(|| Reply::error(StatusCode::NOT_FOUND, format!("task {name} not found")))
    })?;
    let read = move |world: &mut World, from: u64| {
        let mut lines: Vec<&Line> = world
            .lines
            .iter()
            .filter(|line| {
                line.number >= from
                    && if of_service {
                        line.service == id
                    } else {
                        line.task == id
                    }
            })
            .filter(|line| (line.error && error) || (!line.error && out))
            .filter(|line| since.is_none_or(|since| line.at >= since))
            .collect();
        if let Some(tail) = tail.filter(|_| from == 0) {
            lines = last_of_each(&lines, tail);
        }
        let frames = lines.into_iter().map(|line| frame(line, times, details)).collect();
        let goes_on = if of_service {
            world.services.contains_key(&id) || world.tasks.values().any(|task| task.service == id)
        } else {
            world.tasks.get(&id).is_some_and(|task| !task.state.ended())
        };
        (frames, !follows || !goes_on)
    };
    Ok(follow(fake, "application/vnd.docker.multiplexed-stream", None, read))
}

/// A tail is of each task.
fn last_of_each<'a>(lines: &[&'a Line], tail: usize) -> Vec<&'a Line> {
    let kept = lines.iter().enumerate().filter(|(index, line)| {
        let later = lines[index + 1..].iter().filter(|other| other.task == line.task);
        later.count() < tail
    });
    kept.map(|(_, line)| *line).collect()
}

/// A line with its header: which output, and how long.
fn frame(line: &Line, times: bool, details: bool) -> Bytes {
    let mut text = String::new();
    if times {
        let (at, nanos) = (line.at.to_string(), line.at.subsec_nanosecond());
        let whole = at.split(['.', 'Z']).next().unwrap_or_default();
        text.push_str(&format!("{whole}.{nanos:09}Z "));
    }
    if details {
        text.push_str(&format!(
            "com.docker.swarm.node.id={},com.docker.swarm.service.id={},com.docker.swarm.task.id={} ",
            line.node, line.service, line.task
        ));
    }
    text.push_str(&line.text);
    text.push('\n');
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    let mut frame = vec![if line.error { 2 } else { 1 }, 0, 0, 0];
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(text.as_bytes());
    Bytes::from(frame)
}
