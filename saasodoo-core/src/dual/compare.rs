//! Two observations of one instance, field by field.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Hold, Instance, InstanceSpec};

/// The prefix of the labels that a migration keeps its journal in.
const JOURNAL_LABELS: &str = "labels.migration.saasodoo.io/";

/// The fields that say whether the tenant's process runs.
const STATE: [&str; 4] = ["status", "cause", "hold", "replicas.*"];

/// How one field compares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FieldVerdict {
    /// The field, such as `resources.memory` or `status`.
    pub field: String,
    /// The value on the primary or source; `None` when it has none.
    pub primary: Option<String>,
    /// The value on the secondary or target; `None` when it has none.
    pub secondary: Option<String>,
    /// What to make of it.
    pub verdict: Verdict,
}

impl FieldVerdict {
    /// True when the values differ and no rule explains it.
    #[must_use]
    pub fn is_divergence(&self) -> bool {
        self.verdict == Verdict::Diverged
    }
}

/// What to make of two values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
#[non_exhaustive]
pub enum Verdict {
    /// They are the same.
    Matched,
    /// They differ, and a rule says why that is right.
    Ignored {
        /// Why.
        reason: String,
    },
    /// They differ.
    Diverged,
    /// They differ in the last sample, but have not differed in the same way through the whole settle window: nothing
    /// can be said yet.
    Unsettled,
}

/// A field whose difference is right, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IgnoreRule {
    /// The field, or the beginning of its path followed by `*`.
    pub field: String,
    /// Why it may differ.
    pub reason: String,
    /// Only while one of the two is suspended with nothing alive, and the other is not suspended.
    #[serde(default)]
    pub only_when_held: bool,
}

impl IgnoreRule {
    /// Ignores a field, or with `*` at the end all that begin so, for a reason.
    #[must_use]
    pub fn new(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            reason: reason.into(),
            only_when_held: false,
        }
    }

    /// Only while one of the two is held as a migration or a mirroring dual run holds the one that must not write:
    /// suspended, with nothing alive. A side that somebody merely stopped still counts.
    #[must_use]
    pub fn when_held(mut self) -> Self {
        self.only_when_held = true;
        self
    }

    fn covers(&self, field: &str, held: bool) -> bool {
        if self.only_when_held && !held {
            return false;
        }
        match self.field.strip_suffix('*') {
            Some(prefix) => field.starts_with(prefix),
            None => self.field == field,
        }
    }
}

/// Compares observations of one instance on two platforms: what they say about the tenant, not how the platforms say
/// it. Object names inside the platforms, revisions and times are left out; secrets and environment variables are
/// compared and not shown.
///
/// ```
/// use saasodoo_core::dual::{Comparator, IgnoreRule};
///
/// let comparator = Comparator::across_platforms()
///     .ignoring(IgnoreRule::new("image", "the new platform runs the newer patch release"));
/// assert!(comparator.verdicts(None, None).is_empty());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparator {
    rules: Vec<IgnoreRule>,
}

impl Comparator {
    /// Nothing is ignored.
    #[must_use]
    pub fn strict() -> Self {
        Self::default()
    }

    /// Ignores what one of Swarm and Kubernetes cannot have.
    #[must_use]
    pub fn across_platforms() -> Self {
        Self::strict()
            .ignoring(IgnoreRule::new(
                "scheduling.tolerations",
                "only Kubernetes has tolerations",
            ))
            .ignoring(IgnoreRule::new(
                "scheduling.priority_class",
                "only Kubernetes has priority classes",
            ))
            .ignoring(IgnoreRule::new(
                format!("{JOURNAL_LABELS}*"),
                "the journal of a migration is kept on one side",
            ))
    }

    /// Also ignores the state where one side is held, because only one of the two may write to the data: what an
    /// observing dual run compares by. The same state on a side that is not held is a divergence.
    #[must_use]
    pub fn observed() -> Self {
        let why = "one writer: the side on which the tenant does not live is held";
        STATE.into_iter().fold(Self::across_platforms(), |comparator, field| {
            comparator.ignoring(IgnoreRule::new(field, why).when_held())
        })
    }

    /// Also ignores what follows from the copy being kept stopped.
    #[must_use]
    pub fn mirrored() -> Self {
        let why = "the mirrored copy is kept stopped";
        STATE.into_iter().fold(Self::across_platforms(), |comparator, field| {
            comparator.ignoring(IgnoreRule::new(field, why))
        })
    }

    /// Ignores one more field.
    #[must_use]
    pub fn ignoring(mut self, rule: IgnoreRule) -> Self {
        self.rules.push(rule);
        self
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[IgnoreRule] {
        &self.rules
    }

    /// Compares every field. With the instance missing on one side there is one verdict, on `present`.
    #[must_use]
    pub fn verdicts(&self, primary: Option<&Instance>, secondary: Option<&Instance>) -> Vec<FieldVerdict> {
        let (primary, secondary) = match (primary, secondary) {
            (Some(primary), Some(secondary)) => (primary, secondary),
            (None, None) => return Vec::new(),
            (primary, secondary) => {
                let shown = |side: Option<&Instance>| Some(if side.is_some() { "yes" } else { "no" }.to_owned());
                return vec![self.judge("present".to_owned(), shown(primary), shown(secondary), false, false)];
            }
        };
        let held = is_held(primary) != is_held(secondary);
        let (a, b) = comparable(&primary.spec, &secondary.spec);
        let mut differing: BTreeMap<String, (Option<String>, Option<String>)> = a
            .diff(&b)
            .into_iter()
            .map(|change| (change.field, (change.from, change.to)))
            .collect();
        let names: BTreeSet<String> = a.field_names().union(&b.field_names()).cloned().collect();
        let mut verdicts: Vec<FieldVerdict> = names
            .into_iter()
            .map(|name| match differing.remove(&name) {
                Some((from, to)) => self.judge(name, from, to, false, held),
                None => self.judge(name, None, None, true, held),
            })
            .collect();
        let (a, b) = (observed(primary), observed(secondary));
        let names: BTreeSet<&'static str> = a.keys().chain(b.keys()).copied().collect();
        for name in names {
            let (from, to) = (a.get(name).cloned(), b.get(name).cloned());
            let same = from == to;
            verdicts.push(self.judge(name.to_owned(), from, to, same, held));
        }
        verdicts
    }

    fn judge(
        &self,
        field: String,
        primary: Option<String>,
        secondary: Option<String>,
        same: bool,
        held: bool,
    ) -> FieldVerdict {
        let verdict = if same {
            Verdict::Matched
        } else {
            match self.rules.iter().find(|rule| rule.covers(&field, held)) {
                Some(rule) => Verdict::Ignored {
                    reason: rule.reason.clone(),
                },
                None => Verdict::Diverged,
            }
        };
        FieldVerdict {
            field,
            primary,
            secondary,
            verdict,
        }
    }
}

/// Suspended, with nothing alive.
fn is_held(instance: &Instance) -> bool {
    instance.facts.hold == Some(Hold::Suspended) && instance.facts.desired == 0 && !instance.facts.any_live()
}

/// Both specs without what says the same in two ways.
fn comparable(a: &InstanceSpec, b: &InstanceSpec) -> (InstanceSpec, InstanceSpec) {
    let (mut a, mut b) = (a.clone(), b.clone());
    // One platform resolves the digest and the other does not.
    if a.image.digest().is_none() || b.image.digest().is_none() {
        a.image = a.image.without_digest();
        b.image = b.image.without_digest();
    }
    // One platform knows eight digits of the id only.
    if a.id.matches(b.id) {
        b.id = a.id;
    }
    (a, b)
}

/// What is observed beside the spec.
fn observed(instance: &Instance) -> BTreeMap<&'static str, String> {
    let mut fields = BTreeMap::new();
    fields.insert("status", instance.status.to_string());
    fields.insert("replicas.desired", instance.replicas.desired.to_string());
    fields.insert("replicas.ready", instance.replicas.ready.to_string());
    if let Some(cause) = &instance.cause {
        fields.insert("cause", cause.code().to_owned());
    }
    if let Some(hold) = instance.facts.hold {
        fields.insert("hold", hold.as_str().to_owned());
    }
    let mut hosts: Vec<&str> = instance.endpoints.hosts.iter().map(crate::Host::as_str).collect();
    hosts.sort_unstable();
    fields.insert("hosts", hosts.join(","));
    fields
}
