//! Clauses about `logs`. The stub says `odoo-stub: starting on …` and `odoo-stub: listening on 8069` at each start,
//! and `odoo-stub: crashing with n` when it is told to.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use saasodoo_core::{
    Capability, Cause, ErrorKind, InstanceId, InstanceOrchestratorExt, InstanceStatus, LogLine, LogOptions,
};
use tokio::time::{Instant, sleep, timeout};

use super::clause::{clause, ensure};
use super::ctx::{process, refused, same};
use super::{Clause, Ctx, Stop, Verdict};

pub(super) const CLAUSES: &[Clause] = &[
    clause!(
        "logs.all",
        all,
        "what the process wrote, in order, each line with its unit"
    ),
    clause!("logs.tail", tail, "at most so many lines, the last ones"),
    clause!("logs.follow", follow, "lines written later arrive"),
    clause!("logs.since", since, "only lines written after that"),
    clause!(
        "logs.of_stopped_is_no_error",
        of_stopped,
        "an instance that never ran has an empty log"
    ),
    clause!(
        "logs.previous",
        previous,
        "what the process wrote that ended before the present one"
    )
    .requires(&[Capability::PreviousLogs]),
    clause!(
        "logs.no_such_previous",
        no_such_previous,
        "a first process has no log before it: empty, or NotAllowed"
    )
    .requires(&[Capability::PreviousLogs]),
    clause!(
        "logs.of_a_crash_say_why",
        of_a_crash,
        "the log of a crash loop shows what the process wrote"
    ),
    clause!(
        "logs.absent_is_not_found",
        absent,
        "an instance that is not there has no empty log"
    ),
    clause!("logs.are_of_the_one_instance", of_the_one, "no line of a neighbour"),
];

async fn read(ctx: &Ctx, id: InstanceId, options: LogOptions) -> Result<Vec<LogLine>, Stop> {
    let lines = ctx.orchestrator().logs(id, options).try_collect();
    match timeout(ctx.budgets().start, lines).await {
        Ok(lines) => Ok(lines.map_err(|error| Stop::from(error).within("logs"))?),
        Err(_) => Err(Stop::failed("expected a log that does not follow to end")),
    }
}

/// Reads until a line says so; platforms collect what a process writes with some delay.
async fn read_until(
    ctx: &Ctx,
    id: InstanceId,
    options: &LogOptions,
    text: &str,
    budget: Duration,
) -> Result<Vec<LogLine>, Stop> {
    let deadline = Instant::now() + budget;
    loop {
        let lines: Result<Vec<LogLine>, _> = ctx.orchestrator().logs(id, options.clone()).try_collect().await;
        let seen = match lines {
            Ok(lines) if lines.iter().any(|line| line.text.contains(text)) => return Ok(lines),
            Ok(lines) => format!("{:?}", texts(&lines)),
            Err(error) => error.to_string(),
        };
        ensure!(
            Instant::now() < deadline,
            "expected a line with {text:?} within {budget:?}, saw {seen}"
        );
        sleep(Duration::from_millis(500)).await;
    }
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

async fn all(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let lines = read_until(ctx, spec.id, &LogOptions::all(), "listening", ctx.budgets().start).await?;
    let place = |text: &str| lines.iter().position(|line| line.text.contains(text));
    ensure!(
        place("starting on").is_some() && place("starting on") < place("listening"),
        "expected the line of the start before that of the listening, saw {:?}",
        texts(&lines)
    );
    for line in &lines {
        ensure!(
            !line.unit.is_empty(),
            "expected each line to name its unit, saw {line:?}"
        );
        ensure!(
            !line.text.contains(['\n', '\r']),
            "expected lines without their ends, saw {line:?}"
        );
    }
    Ok(())
}

async fn tail(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let all = read_until(ctx, spec.id, &LogOptions::all(), "listening", ctx.budgets().start).await?;
    ensure!(all.len() >= 2, "expected at least two lines, saw {:?}", texts(&all));
    let last = read(ctx, spec.id, LogOptions::tail(1)).await?;
    same("the last line", &texts(&last), &texts(&all[all.len() - 1..]))?;
    let more = read(ctx, spec.id, LogOptions::tail(1000)).await?;
    same("a tail longer than the log", &texts(&more), &texts(&all))
}

async fn follow(ctx: &Ctx) -> Verdict {
    // It says at once that it starts, and only after some seconds that it listens.
    let spec = ctx.spec().with_env("SLOW".parse()?, "8");
    ctx.create(&spec).await?;
    read_until(ctx, spec.id, &LogOptions::all(), "starting on", ctx.budgets().start).await?;
    let mut stream = ctx.orchestrator().logs(spec.id, LogOptions::all().follow());
    let mut seen = Vec::new();
    let deadline = Instant::now() + ctx.budgets().start;
    loop {
        match tokio::time::timeout_at(deadline, stream.next()).await {
            Ok(Some(line)) => seen.push(line?.text),
            Ok(None) => {
                return Err(Stop::failed(format!(
                    "expected the log to go on, but it ended after {seen:?}"
                )));
            }
            Err(_) => {
                return Err(Stop::failed(format!(
                    "expected the line of the listening to arrive, saw {seen:?}"
                )));
            }
        }
        if seen.iter().any(|line| line.contains("listening")) {
            break;
        }
    }
    ensure!(
        seen.iter().filter(|line| line.contains("starting on")).count() == 1,
        "expected each line once, saw {seen:?}"
    );
    Ok(())
}

async fn since(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let all = read_until(ctx, spec.id, &LogOptions::all(), "listening", ctx.budgets().start).await?;
    let Some(last) = all.iter().filter_map(|line| line.at).max() else {
        return Err(Stop::failed(format!("expected the lines to have times, saw {all:?}")));
    };
    let later = last + Duration::from_secs(1);
    let lines = read(ctx, spec.id, LogOptions::all().since(later)).await?;
    same("the lines written after the last one", &texts(&lines), &Vec::new())?;
    let earlier = last - Duration::from_secs(3600);
    let lines = read(ctx, spec.id, LogOptions::all().since(earlier)).await?;
    same("the lines of the last hour", &texts(&lines), &texts(&all))
}

async fn of_stopped(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.stopped().await?;
    let lines = read(ctx, spec.id, LogOptions::all()).await?;
    same("the lines", &texts(&lines), &Vec::new())
}

async fn previous(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "3");
    ctx.create(&spec).await?;
    ctx.until_status(spec.id, InstanceStatus::Error).await?;
    let options = LogOptions::all().previous();
    read_until(ctx, spec.id, &options, "crashing with 3", ctx.budgets().failure).await?;
    Ok(())
}

async fn no_such_previous(ctx: &Ctx) -> Verdict {
    let (spec, _) = ctx.running().await?;
    let lines: Result<Vec<LogLine>, _> = ctx
        .orchestrator()
        .logs(spec.id, LogOptions::all().previous())
        .try_collect()
        .await;
    match lines {
        Ok(lines) => same("the lines of a process that never was", &texts(&lines), &Vec::new()),
        Err(error) if error.kind() == ErrorKind::NotAllowed => Ok(()),
        Err(error) => Err(Stop::failed(format!("expected no lines or not_allowed, got {error}"))),
    }
}

async fn of_a_crash(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec().with_env("CRASH".parse()?, "4");
    ctx.create(&spec).await?;
    ctx.until(spec.id, "a crash loop", ctx.budgets().failure, |instance| {
        matches!(instance.cause, Some(Cause::CrashLoop { .. }))
    })
    .await?;
    read_until(
        ctx,
        spec.id,
        &LogOptions::all(),
        "crashing with 4",
        ctx.budgets().failure,
    )
    .await?;
    Ok(())
}

async fn absent(ctx: &Ctx) -> Verdict {
    let spec = ctx.spec();
    for options in [LogOptions::all(), LogOptions::tail(1).follow()] {
        let first = timeout(ctx.budgets().start, ctx.orchestrator().logs(spec.id, options).next()).await;
        match first {
            Ok(Some(answer)) => refused("the log of an absent instance", answer, &[ErrorKind::NotFound])?,
            Ok(None) => {
                return Err(Stop::failed(
                    "expected not_found for the log of an absent instance, got an empty log",
                ));
            }
            Err(_) => {
                return Err(Stop::failed(
                    "expected not_found for the log of an absent instance, got no answer",
                ));
            }
        };
    }
    Ok(())
}

async fn of_the_one(ctx: &Ctx) -> Verdict {
    let (first, _) = ctx.running().await?;
    let (second, _) = ctx.running().await?;
    let mut units = Vec::new();
    for spec in [&first, &second] {
        let lines = read_until(ctx, spec.id, &LogOptions::all(), "listening", ctx.budgets().start).await?;
        units.push(
            lines
                .into_iter()
                .map(|line| line.unit)
                .collect::<std::collections::BTreeSet<_>>(),
        );
    }
    ensure!(
        units[0].is_disjoint(&units[1]),
        "expected different units, saw {units:?}"
    );
    // The units are those of the observation.
    let seen = ctx.get(first.id).await?;
    let known = process(&seen).map(|(id, _)| id).unwrap_or_default();
    ensure!(
        units[0].contains(&known),
        "expected a line of the unit {known}, saw {:?}",
        units[0]
    );
    ctx.orchestrator().stop(second.id).await?;
    Ok(())
}
