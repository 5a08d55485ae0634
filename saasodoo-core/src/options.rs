//! Options of the calls, and what the calls answer.

use std::fmt;
use std::num::NonZeroU32;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    BackendKind, CustomerId, DataPath, FieldChange, Instance, InstanceChange, InstanceId, InstanceSpec, InstanceStatus,
    LabelKey, LabelValue, StorageLocation,
};

/// How [`create`](crate::InstanceOrchestrator::create) goes about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct CreateOptions {
    /// What to do about the instance's data.
    pub data: DataPolicy,
    /// Create it stopped: all objects, nothing running.
    pub stopped: bool,
    /// Kept with the instance and told by its [`Provenance::token`](crate::Provenance::token): who finds an instance
    /// after the answer to a creation was lost knows by it whether that creation has made it, or somebody else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<Uuid>,
}

impl CreateOptions {
    /// New data, started at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this policy for the data.
    #[must_use]
    pub fn with_data(mut self, data: DataPolicy) -> Self {
        self.data = data;
        self
    }

    /// Creates the instance without starting it.
    #[must_use]
    pub fn stopped(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// Marks what this creation makes. An instance that exists keeps the mark that it has.
    ///
    /// ```
    /// # use saasodoo_core::CreateOptions;
    /// let token = uuid::Uuid::new_v4();
    /// assert_eq!(CreateOptions::new().with_token(token).token, Some(token));
    /// ```
    #[must_use]
    pub fn with_token(mut self, token: Uuid) -> Self {
        self.token = Some(token);
        self
    }
}

/// Which data a new instance runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DataPolicy {
    /// New, empty data. Data that an earlier instance of this id left behind is a Conflict and is not touched.
    #[default]
    New,
    /// The data that an earlier instance of this id left behind when it was deleted; it must be there.
    AdoptRetained,
    /// The data in this directory, under the root that the backend is configured with; it must be there. It is never
    /// deleted by a rollback or by a purge of this instance: a purge at most forgets that it was adopted. Until then a
    /// deleted instance leaves it behind as its own.
    AdoptDirectory(DataPath),
}

/// How [`update`](crate::InstanceOrchestrator::update) goes about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpdateOptions {
    /// Refuse with a Conflict unless the instance still has this
    /// [revision](crate::Provenance::revision).
    pub if_revision: Option<String>,
}

impl UpdateOptions {
    /// No conditions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if the instance still has this revision.
    #[must_use]
    pub fn if_revision(mut self, revision: impl Into<String>) -> Self {
        self.if_revision = Some(revision.into());
        self
    }
}

/// What [`set_power`](crate::InstanceOrchestrator::set_power) does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// Run. Refused while the instance is suspended or held for maintenance.
    Start,
    /// Do not run.
    Stop,
    /// Run with a new process. Refused while the instance is held, and for a stopped one: start it.
    Restart,
    /// Stop, and refuse to start until resumed: a hold for billing.
    Suspend,
    /// Take the hold away. The instance stays stopped until it is started.
    Resume,
}

impl Power {
    /// The action's name in `snake_case`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }
}

impl fmt::Display for Power {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How [`delete`](crate::InstanceOrchestrator::delete) goes about it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeleteOptions {
    /// Delete the data too. Without a token it is kept.
    pub purge: Option<PurgeToken>,
}

impl DeleteOptions {
    /// Keep the data.
    #[must_use]
    pub fn retain() -> Self {
        Self::default()
    }

    /// Delete the data that the token lists.
    #[must_use]
    pub fn purge(token: PurgeToken) -> Self {
        Self { purge: Some(token) }
    }
}

/// The permission to delete an instance's data, made by [`plan`](crate::InstanceOrchestrator::plan) and good for exactly
/// the objects that it lists: if one of them has been replaced since, the purge is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeToken {
    backend: BackendKind,
    instance: InstanceId,
    objects: Vec<ObjectIdentity>,
}

impl PurgeToken {
    /// For backends: a token for these objects.
    #[must_use]
    pub fn new(backend: BackendKind, instance: InstanceId, objects: Vec<ObjectIdentity>) -> Self {
        Self {
            backend,
            instance,
            objects,
        }
    }

    /// The backend whose plan it comes from.
    #[must_use]
    pub fn backend(&self) -> BackendKind {
        self.backend
    }

    /// The instance whose data dies.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// What dies.
    #[must_use]
    pub fn objects(&self) -> &[ObjectIdentity] {
        &self.objects
    }
}

/// One object of a platform, named so that nothing else can be meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectIdentity {
    /// The kind, such as `PersistentVolumeClaim` or `Directory`.
    pub kind: String,
    /// The name or path.
    pub name: String,
    /// The UID, Swarm id or inode.
    pub uid: String,
}

impl ObjectIdentity {
    /// An object.
    #[must_use]
    pub fn new(kind: impl Into<String>, name: impl Into<String>, uid: impl Into<String>) -> Self {
        Self {
            kind: kind.into(),
            name: name.into(),
            uid: uid.into(),
        }
    }
}

impl fmt::Display for ObjectIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.name, self.uid)
    }
}

/// Which instances a [`list`](crate::InstanceOrchestrator::list) or [`watch`](crate::InstanceOrchestrator::watch) is
/// about. Everything that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct InstanceFilter {
    /// Only these.
    pub ids: Vec<InstanceId>,
    /// Only of this customer.
    pub customer: Option<CustomerId>,
    /// Only in one of these statuses.
    pub statuses: Vec<InstanceStatus>,
    /// Only with all these labels of the spec.
    pub labels: Vec<(LabelKey, LabelValue)>,
}

impl InstanceFilter {
    /// All instances.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// One instance.
    #[must_use]
    pub fn id(id: InstanceId) -> Self {
        Self {
            ids: vec![id],
            ..Self::default()
        }
    }

    /// Only of this customer.
    #[must_use]
    pub fn with_customer(mut self, customer: CustomerId) -> Self {
        self.customer = Some(customer);
        self
    }

    /// Only in this status, or one of those given before.
    #[must_use]
    pub fn with_status(mut self, status: InstanceStatus) -> Self {
        self.statuses.push(status);
        self
    }

    /// Only with this label.
    #[must_use]
    pub fn with_label(mut self, key: LabelKey, value: LabelValue) -> Self {
        self.labels.push((key, value));
        self
    }

    /// True when the filter holds for the instance.
    #[must_use]
    pub fn matches(&self, instance: &Instance) -> bool {
        self.matches_spec(&instance.spec) && (self.statuses.is_empty() || self.statuses.contains(&instance.status))
    }

    /// True when everything but the status holds for the spec.
    #[must_use]
    pub fn matches_spec(&self, spec: &InstanceSpec) -> bool {
        let Self {
            ids,
            customer,
            statuses: _,
            labels,
        } = self;
        (ids.is_empty() || ids.iter().any(|id| id.matches(spec.id)))
            && customer.is_none_or(|customer| spec.customer_id == Some(customer))
            && labels.iter().all(|(key, value)| spec.labels.get(key) == Some(value))
    }
}

/// Which lines [`logs`](crate::InstanceOrchestrator::logs) gives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct LogOptions {
    /// Only the last lines. `None`: everything the platform has kept.
    pub tail: Option<NonZeroU32>,
    /// Go on with new lines as they are written, until the stream is dropped.
    pub follow: bool,
    /// The process before the present one: what a crash wrote.
    pub previous: bool,
    /// Only lines written after this.
    pub since: Option<Timestamp>,
}

impl LogOptions {
    /// Everything the platform has kept.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only the last lines; 0 means everything.
    #[must_use]
    pub fn tail(lines: u32) -> Self {
        Self {
            tail: NonZeroU32::new(lines),
            ..Self::default()
        }
    }

    /// And then new ones.
    #[must_use]
    pub fn follow(mut self) -> Self {
        self.follow = true;
        self
    }

    /// Of the process before the present one.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.previous = true;
        self
    }

    /// Only lines written after this.
    #[must_use]
    pub fn since(mut self, since: Timestamp) -> Self {
        self.since = Some(since);
        self
    }
}

/// One line of an instance's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LogLine {
    /// When the platform received it, if it says so.
    pub at: Option<Timestamp>,
    /// The pod or task that wrote it.
    pub unit: String,
    /// The line without its end. Bytes that are no UTF-8 are replaced.
    pub text: String,
}

impl LogLine {
    /// A line.
    #[must_use]
    pub fn new(at: Option<Timestamp>, unit: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            at,
            unit: unit.into(),
            text: text.into(),
        }
    }
}

/// The answer of [`create`](crate::InstanceOrchestrator::create) and [`update`](crate::InstanceOrchestrator::update).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Ensured {
    /// What this call did.
    pub outcome: EnsureOutcome,
    /// The instance afterwards.
    pub instance: Instance,
}

impl Ensured {
    /// An answer.
    #[must_use]
    pub fn new(outcome: EnsureOutcome, instance: Instance) -> Self {
        Self { outcome, instance }
    }
}

/// What a call that ensures a state did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EnsureOutcome {
    /// The instance is new, or this call completed a creation that was interrupted.
    Created,
    /// The instance is new and runs on data that was there before.
    Adopted,
    /// The instance was changed.
    Updated,
    /// Everything was as asked already; nothing was written.
    Unchanged,
}

/// The answer of [`delete`](crate::InstanceOrchestrator::delete).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Deleted {
    /// False when there was nothing to delete.
    pub existed: bool,
    /// Where the data was left, if it was and is known.
    pub retained: Option<StorageLocation>,
    /// The data that was deleted.
    pub purged: Vec<ObjectIdentity>,
}

impl Deleted {
    /// The instance was deleted.
    #[must_use]
    pub fn done(retained: Option<StorageLocation>, purged: Vec<ObjectIdentity>) -> Self {
        Self {
            existed: true,
            retained,
            purged,
        }
    }

    /// There was nothing to delete.
    #[must_use]
    pub fn already_gone() -> Self {
        Self {
            existed: false,
            retained: None,
            purged: Vec::new(),
        }
    }
}

/// An item of a [`watch`](crate::InstanceOrchestrator::watch).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum InstanceEvent {
    /// An instance that exists, is new, or has changed. Before the first [`Synced`](Self::Synced) these are the
    /// snapshot.
    Applied(Box<Instance>),
    /// An instance is gone, or does not match the filter any more; its last observation.
    Deleted(Box<Instance>),
    /// Everything that exists has been delivered: the receiver's picture is whole. Comes again after each
    /// [`Stale`](Self::Stale), when what was missed has been made up for.
    Synced,
    /// The connection is lost: what was delivered may be out of date until the next [`Synced`](Self::Synced).
    Stale(Staleness),
}

/// Since when and why a watch is out of touch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Staleness {
    /// When the server was last heard of.
    pub since: Timestamp,
    /// What happened.
    pub reason: String,
}

impl Staleness {
    /// Out of touch since then, for this reason.
    #[must_use]
    pub fn new(since: Timestamp, reason: impl Into<String>) -> Self {
        Self {
            since,
            reason: reason.into(),
        }
    }
}

/// A change that [`plan`](crate::InstanceOrchestrator::plan) is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// [`create`](crate::InstanceOrchestrator::create)
    Create(Box<InstanceSpec>, CreateOptions),
    /// [`update`](crate::InstanceOrchestrator::update)
    Update(InstanceId, Box<InstanceChange>),
    /// [`set_power`](crate::InstanceOrchestrator::set_power)
    SetPower(InstanceId, Power),
    /// [`delete`](crate::InstanceOrchestrator::delete), keeping the data.
    Delete(InstanceId),
    /// [`delete`](crate::InstanceOrchestrator::delete) with the data: the plan carries the token. Also for data that an
    /// instance left behind when it was deleted.
    Purge(InstanceId),
}

impl Operation {
    /// The instance it is about.
    #[must_use]
    pub fn instance(&self) -> InstanceId {
        match self {
            Self::Create(spec, _) => spec.id,
            Self::Update(id, _) | Self::SetPower(id, _) | Self::Delete(id) | Self::Purge(id) => *id,
        }
    }
}

/// What an operation would do, without doing it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Plan {
    /// The instance.
    pub instance: InstanceId,
    /// What the instance would be afterwards, field by field. Empty: nothing would be written.
    pub changes: Vec<FieldChange>,
    /// Objects that would be created.
    pub creates: Vec<String>,
    /// Objects that would be deleted.
    pub deletes: Vec<ObjectIdentity>,
    /// Whether the tenant's process would be stopped or replaced.
    pub restarts: bool,
    /// The permission to do it, when the operation deletes data.
    pub purge_token: Option<PurgeToken>,
}

impl Plan {
    /// A plan to do nothing.
    #[must_use]
    pub fn nothing(instance: InstanceId) -> Self {
        Self {
            instance,
            changes: Vec::new(),
            creates: Vec::new(),
            deletes: Vec::new(),
            restarts: false,
            purge_token: None,
        }
    }

    /// True when nothing would be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.creates.is_empty() && self.deletes.is_empty() && !self.restarts
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "instance {}:", self.instance)?;
        if self.is_empty() {
            writeln!(f, "  nothing to do")?;
        }
        for object in &self.creates {
            writeln!(f, "  + {object}")?;
        }
        for change in &self.changes {
            writeln!(f, "  ~ {change}")?;
        }
        for object in &self.deletes {
            writeln!(f, "  - {object}")?;
        }
        if self.restarts {
            writeln!(f, "  the tenant's process is stopped or replaced")?;
        }
        if let Some(token) = &self.purge_token {
            writeln!(f, "  data that is deleted for good:")?;
            for object in token.objects() {
                writeln!(f, "  ! {object}")?;
            }
        }
        Ok(())
    }
}
