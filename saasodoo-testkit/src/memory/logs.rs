//! Reading the lines that an instance's processes write.

use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use saasodoo_core::{Capability, Error, InstanceId, LogLine, LogOptions, OperationKind, Result};

use super::MemoryOrchestrator;
use super::fault::Call;
use super::unit::Line;
use super::world::{Tenant, World};

pub(super) fn logs(
    memory: MemoryOrchestrator,
    id: InstanceId,
    options: LogOptions,
) -> BoxStream<'static, Result<LogLine>> {
    stream::once(async move {
        let call = Call::new(OperationKind::Logs, Some(id));
        let opened = memory
            .around(call, || memory.read(|world, _, _| open(world, id, &options)))
            .await;
        let (lines, follower) = opened.map_err(|error| memory.context(error, OperationKind::Logs, Some(id)))?;
        let first = stream::iter(lines.into_iter().map(Ok));
        let rest = follower.map(|follower| {
            stream::unfold((memory, follower), |(memory, mut follower)| async move {
                let lines = follower.next(&memory).await?;
                Some((stream::iter(lines.into_iter().map(Ok)), (memory, follower)))
            })
            .flatten()
        });
        Ok(first.chain(stream::iter(rest).flatten()))
    })
    .try_flatten()
    .boxed()
}

fn open(world: &World, id: InstanceId, options: &LogOptions) -> Result<(Vec<LogLine>, Option<Follower>)> {
    let tenant = world.tenant(world.resolve(id)?)?;
    if options.previous && !world.supports(Capability::PreviousLogs) {
        return Err(Error::unsupported(
            "previous",
            "this backend keeps no log of a process before",
        ));
    }
    let recent = |line: &&Line| options.since.is_none_or(|since| world.stamp(line.at) > since);
    let kept: Vec<&Line> = if options.previous {
        tenant.log.previous().filter(recent).collect()
    } else {
        tenant.log.present().filter(recent).collect()
    };
    let tail = options
        .tail
        .map_or(usize::MAX, |tail| usize::try_from(tail.get()).unwrap_or(usize::MAX));
    let lines = kept
        .iter()
        .skip(kept.len().saturating_sub(tail))
        .map(|line| shown(world, line))
        .collect();
    let follower = (options.follow && !options.previous).then(|| Follower {
        id: tenant.spec.id,
        uid: tenant.uid.clone(),
        next: tenant.log.next_number(),
    });
    Ok((lines, follower))
}

fn shown(world: &World, line: &Line) -> LogLine {
    LogLine::new(Some(world.stamp(line.at)), &line.unit, &line.text)
}

/// Where a reader that follows has got to.
struct Follower {
    id: InstanceId,
    uid: String,
    next: u64,
}

impl Follower {
    /// The lines written since; waits for them. `None` when the instance is gone.
    async fn next(&mut self, memory: &MemoryOrchestrator) -> Option<Vec<LogLine>> {
        loop {
            let mut changes = memory.changes();
            let lines = memory.read(|world, _, _| {
                let tenant: Option<&Tenant> = world.tenants.get(&self.id);
                let tenant = tenant.filter(|tenant| tenant.uid == self.uid)?;
                let lines: Vec<LogLine> = tenant.log.after(self.next).map(|line| shown(world, line)).collect();
                self.next = tenant.log.next_number();
                Some(lines)
            })?;
            if !lines.is_empty() {
                return Some(lines);
            }
            let due = memory.due();
            tokio::select! {
                biased;
                () = memory.until_due(due) => {}
                _ = changes.changed() => {}
            }
        }
    }
}
