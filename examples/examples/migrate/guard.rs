//! Which platforms a call is about, and that the journal is about the same ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Result, bail};
use saasodoo_core::BackendKind;
use saasodoo_core::migration::{Force, Record};

/// What a simulated platform is called.
pub(crate) const SIMULATION: &str = "simulation";

/// One platform.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identity {
    pub(crate) kind: BackendKind,
    /// Which of that kind; `None` where a journal does not keep it.
    pub(crate) name: Option<String>,
}

impl Identity {
    pub(crate) fn new(kind: BackendKind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: Some(name.into()),
        }
    }

    /// As it is written down with each migration.
    pub(crate) fn written(&self) -> String {
        self.name.clone().unwrap_or_default()
    }

    fn is_simulation(&self) -> bool {
        self.name.as_deref() == Some(SIMULATION)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) if self.is_simulation() => write!(f, "{name} of {}", self.kind),
            Some(name) => f.write_str(name),
            None => write!(f, "{}", self.kind),
        }
    }
}

/// Both sides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Identities {
    pub(crate) source: Identity,
    pub(crate) target: Identity,
}

impl Identities {
    fn of(record: &Record) -> Self {
        Self {
            source: Identity {
                kind: record.source,
                name: record.source_identity.clone(),
            },
            target: Identity {
                kind: record.target,
                name: record.target_identity.clone(),
            },
        }
    }

    pub(crate) fn simulated(&self) -> bool {
        self.source.is_simulation()
    }

    /// Whether a migration that was begun between `began` may go on between these.
    fn may_go_on(&self, began: &Self, force: Force) -> bool {
        let fits = |here: &Identity, began: &Identity, accepted: bool| {
            let renamed = began.name.is_some() && began.name != here.name;
            // A simulation is no other name of a real platform.
            let never = here.is_simulation() != began.is_simulation();
            here.kind == began.kind && (!renamed || (accepted && !never))
        };
        fits(&self.source, &began.source, force.renamed_source)
            && fits(&self.target, &began.target, force.renamed_target)
    }

    /// Refuses a journal, as a whole, that has migrations between other platforms: on the wrong ones nothing must be begun.
    pub(crate) fn check(&self, records: &[Record], force: Force, journal: &Path) -> Result<()> {
        let mut others: BTreeMap<Self, usize> = BTreeMap::new();
        for began in records.iter().map(Self::of) {
            if !self.may_go_on(&began, force) {
                *others.entry(began).or_default() += 1;
            }
        }
        if others.is_empty() {
            return Ok(());
        }
        let advice = self.advice(&others);
        let others: Vec<String> = others
            .iter()
            .map(|(began, count)| format!("{count} of {} migrations {began}", records.len()))
            .collect();
        bail!(
            "the journal {} holds {}, and this call is {self}; nothing was begun: {advice}",
            journal.display(),
            others.join(" and ")
        )
    }
}

impl Identities {
    /// What to do about a journal that has these.
    fn advice(&self, others: &BTreeMap<Self, usize>) -> &'static str {
        if self.simulated() {
            return "without --source and --target everything is simulated: give both as before, or another --state for a \
                    simulation";
        }
        if others.keys().any(Self::simulated) {
            return "this is the journal of a simulation: give another --state";
        }
        if others.keys().any(|began| began.source.kind != self.source.kind) {
            return "give --source and --target as before; the other way needs another --state, with --earlier for this one";
        }
        "give the platforms as before, or another --state; if they are the same platforms under other names, give \
         --accept-platform source, --accept-platform target or both"
    }
}

impl fmt::Display for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "from {} to {}", self.source, self.target)
    }
}
