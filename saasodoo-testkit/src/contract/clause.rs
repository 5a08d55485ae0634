//! One clause of the contract, and how it ends.

use std::fmt;

use futures::future::BoxFuture;
use saasodoo_core::{Capability, Error};

use super::{
    Ctx, bad_input, cancel, create, delete, ext, faults, get_list, logs, plan, platform, power, status, update, watch,
};

/// What a clause says in the end: nothing when it holds.
pub type Verdict = Result<(), Stop>;

/// Why a clause does not end with "passed".
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// It does not hold: what was expected and what was seen.
    Failed(String),
    /// It could not be tried here.
    Skipped(String),
    /// The capability is off, and asking was answered with `Unsupported`.
    Unsupported(String),
}

impl Stop {
    /// It does not hold.
    pub fn failed(what: impl fmt::Display) -> Self {
        Self::Failed(what.to_string())
    }

    /// It could not be tried here.
    pub fn skipped(why: impl fmt::Display) -> Self {
        Self::Skipped(why.to_string())
    }

    /// Puts what was going on before the reason.
    #[must_use]
    pub fn within(self, what: impl fmt::Display) -> Self {
        match self {
            Self::Failed(why) => Self::Failed(format!("{what}: {why}")),
            other => other,
        }
    }
}

/// An error that the clause did not expect.
impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(format!("expected success, got an error: {error}"))
    }
}

type Run = for<'a> fn(&'a Ctx) -> BoxFuture<'a, Verdict>;

/// One named behaviour.
#[derive(Clone, Copy)]
pub struct Clause {
    /// Its name, such as `create.makes_an_instance`.
    pub id: &'static str,
    /// What it demands, in one line.
    pub doc: &'static str,
    /// What the backend must be able to do for it.
    pub requires: &'static [Capability],
    /// It disturbs the server for everybody, so nothing else runs meanwhile.
    pub exclusive: bool,
    pub(super) run: Run,
}

impl Clause {
    pub(super) const fn new(id: &'static str, doc: &'static str, run: Run) -> Self {
        Self {
            id,
            doc,
            requires: &[],
            exclusive: false,
            run,
        }
    }

    pub(super) const fn requires(mut self, capabilities: &'static [Capability]) -> Self {
        self.requires = capabilities;
        self
    }

    pub(super) const fn exclusive(mut self) -> Self {
        self.exclusive = true;
        self
    }

    /// The part of the name before the first dot.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.id.split('.').next().unwrap_or(self.id)
    }
}

impl fmt::Debug for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clause")
            .field("id", &self.id)
            .field("requires", &self.requires)
            .finish_non_exhaustive()
    }
}

/// A clause from its name, its function and what it demands.
macro_rules! clause {
    ($id:literal, $run:path, $doc:literal) => {
        $crate::contract::Clause::new($id, $doc, |ctx| Box::pin($run(ctx)))
    };
}

/// Ends the clause as failed unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err($crate::contract::Stop::Failed(format!($($message)+)));
        }
    };
}

pub(super) use {clause, ensure};

/// All clauses, group by group.
#[must_use]
pub fn all() -> Vec<Clause> {
    [
        create::CLAUSES,
        update::CLAUSES,
        power::CLAUSES,
        delete::CLAUSES,
        get_list::CLAUSES,
        watch::CLAUSES,
        logs::CLAUSES,
        plan::CLAUSES,
        status::CLAUSES,
        bad_input::CLAUSES,
        cancel::CLAUSES,
        faults::CLAUSES,
        ext::CLAUSES,
        platform::CLAUSES,
    ]
    .concat()
}
