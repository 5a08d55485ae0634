//! Runs the clauses: each under a deadline, each cleaned up after, whatever happens in it.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::{FutureExt, StreamExt, stream};
use tokio::time::{Instant, timeout};

use super::ctx::cannot;
use super::{Clause, Ctx, Outcome, Record, Report, Stop, Subject, Verdict, all};

/// Runs the suite against one subject.
pub struct Runner {
    subject: Arc<dyn Subject>,
    concurrency: usize,
    filter: Vec<String>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("subject", &self.subject.name())
            .field("concurrency", &self.concurrency)
            .field("filter", &self.filter)
            .finish()
    }
}

impl Runner {
    /// All clauses, or those that the environment variable `SAASODOO_CLAUSE` selects, one after the other.
    #[must_use]
    pub fn new(subject: Arc<dyn Subject>) -> Self {
        let filter = std::env::var("SAASODOO_CLAUSE").unwrap_or_default();
        let filter = filter.split(',').filter(|text| !text.is_empty());
        Self {
            subject,
            concurrency: 1,
            filter: filter.map(ToOwned::to_owned).collect(),
        }
    }

    /// So many clauses at once; real platforms take their time with each.
    #[must_use]
    pub fn concurrency(mut self, clauses: usize) -> Self {
        self.concurrency = clauses.max(1);
        self
    }

    /// Only clauses whose name contains one of these texts.
    #[must_use]
    pub fn only(mut self, texts: &[&str]) -> Self {
        self.filter = texts.iter().map(|text| (*text).to_owned()).collect();
        self
    }

    /// Runs them. Clauses that disturb the server run alone, after the others.
    pub async fn run(&self) -> Report {
        let selected: Vec<Clause> = all()
            .into_iter()
            .filter(|clause| self.filter.is_empty() || self.filter.iter().any(|text| clause.id.contains(text.as_str())))
            .collect();
        let (alone, together): (Vec<Clause>, Vec<Clause>) = selected.iter().partition(|clause| clause.exclusive);
        let orchestrator = self.subject.orchestrator();
        let run = |clause: Clause| self.one(clause, Ctx::new(Arc::clone(&self.subject), Arc::clone(&orchestrator)));
        let mut records: Vec<Record> = stream::iter(together.into_iter().map(run))
            .buffer_unordered(self.concurrency)
            .collect()
            .await;
        for clause in alone {
            records.push(run(clause).await);
        }
        // In the order of the suite, however they ended.
        let place = |record: &Record| selected.iter().position(|clause| clause.id == record.clause);
        records.sort_by_key(place);
        Report {
            subject: self.subject.name().to_owned(),
            records,
            filtered: !self.filter.is_empty(),
        }
    }

    async fn one(&self, clause: Clause, ctx: Ctx) -> Record {
        let started = Instant::now();
        let verdict = match clause
            .requires
            .iter()
            .find(|capability| !ctx.orchestrator().capabilities().supports(**capability))
        {
            Some(missing) => guarded(&ctx, cannot(&ctx, *missing).boxed()).await,
            None => guarded(&ctx, (clause.run)(&ctx)).await,
        };
        let leftovers = guarded(&ctx, ctx.clean_up().boxed()).await;
        let verdict = match (verdict, leftovers) {
            (verdict, Ok(())) => verdict,
            (Err(Stop::Failed(why)), Err(leftovers)) => {
                Err(Stop::failed(format!("{why}; and afterwards: {}", reason(&leftovers))))
            }
            (_, Err(leftovers)) => Err(leftovers.within("after the clause")),
        };
        let seconds = started.elapsed().as_secs_f64();
        let (outcome, reason) = match verdict {
            Ok(()) => (Outcome::Passed, None),
            Err(stop) => {
                let outcome = match &stop {
                    Stop::Failed(_) => Outcome::Failed,
                    Stop::Skipped(_) => Outcome::Skipped,
                    Stop::Unsupported(_) => Outcome::Unsupported,
                };
                (outcome, Some(reason(&stop).to_owned()))
            }
        };
        tracing::debug!(clause = clause.id, %outcome, seconds, reason);
        Record {
            clause: clause.id.to_owned(),
            outcome,
            reason,
            seconds: (seconds * 1000.0).round() / 1000.0,
        }
    }
}

fn reason(stop: &Stop) -> &str {
    match stop {
        Stop::Failed(why) | Stop::Skipped(why) | Stop::Unsupported(why) => why,
    }
}

/// Under the deadline of a clause; a panic is a failure with its message.
async fn guarded(ctx: &Ctx, clause: impl Future<Output = Verdict> + Send) -> Verdict {
    let deadline = ctx.deadline();
    match timeout(deadline, AssertUnwindSafe(clause).catch_unwind()).await {
        Err(_) => Err(Stop::failed(format!("it did not end within {deadline:?}"))),
        Ok(Ok(verdict)) => verdict,
        Ok(Err(panic)) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("with no message");
            Err(Stop::failed(format!("it panicked: {message}")))
        }
    }
}
