//! Reading the log of an instance.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bollard::container::LogOutput;
use futures::stream::{self, BoxStream, StreamExt as _};
use saasodoo_core::{Error, InstanceId, LogLine, LogOptions, OperationKind, Result};

use crate::backend::{Inner, context};
use crate::error::{Answer, Failure};
use crate::read::Seen;
use crate::task::{Task, timestamp};
use crate::watch::seconds;
use crate::wire::segment;

type Lines = BoxStream<'static, Result<LogLine>>;

/// Without following, the log of one task. Following, that of the service, which goes on with the next task; lines of
/// tasks older than the present one are left out.
pub(crate) fn logs(inner: Arc<Inner>, id: InstanceId, options: LogOptions) -> Lines {
    let add = move |error: Error| context(error, OperationKind::Logs, id);
    let begun = async move {
        match inner.begin(id, &options).await {
            Ok(lines) => lines,
            Err(error) => stream::iter([Err(error)]).boxed(),
        }
    };
    // A stream ends after its first error.
    stream::once(begun)
        .flatten()
        .scan(false, move |failed, line| {
            let item = if *failed { None } else { Some(line.map_err(add)) };
            *failed = item.as_ref().is_some_and(Result::is_err);
            futures::future::ready(item)
        })
        .boxed()
}

impl Inner {
    async fn begin(&self, id: InstanceId, options: &LogOptions) -> Result<Lines> {
        let seen = self.existing(id).await?;
        let mut with_log: Vec<&Task> = seen.tasks.iter().filter(|task| task.has_container).collect();
        with_log.sort_by(|a, b| b.age().cmp(&a.age()));
        let mut query = vec![
            ("stdout", "1".to_owned()),
            ("stderr", "1".to_owned()),
            ("timestamps", "1".to_owned()),
        ];
        if let Some(tail) = options.tail {
            query.push(("tail", tail.to_string()));
        }
        if let Some(since) = options.since {
            query.push(("since", seconds(since)));
        }
        if options.follow && !options.previous {
            return self.follow(&seen, &with_log, query);
        }
        let task = if options.previous {
            with_log.get(1)
        } else {
            with_log.first()
        };
        let Some(task) = task else {
            return Ok(stream::empty().boxed());
        };
        let unit = task.id.clone();
        let path = format!("/tasks/{}/logs", segment(&unit).map_err(Error::from)?);
        let frames = self.wire.logs(&path, &pairs(&query)).map_err(Error::from)?;
        let deadline = self.config.common.deadlines.read;
        let lines = within(frames.boxed(), deadline).map(move |frame| {
            let (at, text) = stamped(&frame.map_err(Error::from)?);
            Ok(LogLine::new(at, unit.clone(), text))
        });
        Ok(lines.boxed())
    }

    fn follow(&self, seen: &Seen, with_log: &[&Task], mut query: Vec<(&str, String)>) -> Result<Lines> {
        query.push(("follow", "1".to_owned()));
        query.push(("details", "1".to_owned()));
        let older: HashSet<String> = with_log.iter().skip(1).map(|task| task.id.clone()).collect();
        let path = format!("/services/{}/logs", segment(seen.service_id()).map_err(Error::from)?);
        let frames = self.wire.logs(&path, &pairs(&query)).map_err(Error::from)?;
        let lines = frames.filter_map(move |frame| {
            let line = match frame {
                Ok(frame) => {
                    let (at, text) = stamped(&frame);
                    let (details, text) = text.split_once(' ').unwrap_or((&text, ""));
                    let unit = details
                        .split(',')
                        .find_map(|detail| detail.strip_prefix("com.docker.swarm.task.id="))
                        .unwrap_or_default();
                    (!older.contains(unit)).then(|| Ok(LogLine::new(at, unit, text)))
                }
                Err(failure) => Some(Err(Error::from(failure))),
            };
            futures::future::ready(line)
        });
        Ok(lines.boxed())
    }
}

fn pairs<'a>(query: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    query.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// A log that does not follow has an end, and must come to it.
fn within(
    frames: BoxStream<'static, Answer<LogOutput>>,
    deadline: Duration,
) -> impl futures::Stream<Item = Answer<LogOutput>> + Send {
    stream::unfold(Some(frames), move |frames| async move {
        let mut frames = frames?;
        match tokio::time::timeout(deadline, frames.next()).await {
            Ok(item) => Some((item?, Some(frames))),
            Err(_) => Some((Err(Failure::timeout(false, deadline)), None)),
        }
    })
}

/// A frame's time and the text behind it, without the end of the line.
fn stamped(frame: &LogOutput) -> (Option<jiff::Timestamp>, String) {
    let text = String::from_utf8_lossy(frame.as_ref());
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    match text.split_once(' ') {
        Some((at, rest)) if timestamp(at).is_some() => (timestamp(at), rest.to_owned()),
        _ => match timestamp(text) {
            Some(at) => (Some(at), String::new()),
            None => (None, text.to_owned()),
        },
    }
}
