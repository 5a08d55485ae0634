//! What a migration needs to know from outside: where data is, what the secrets are, whether Odoo answers, and how
//! visitors are sent to the other side.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;

use super::{Record, Side};
use crate::{
    DataPath, Error, ErrorKind, HealthCheck, Instance, InstanceId, InstanceSpec, OperationKind, Result, StorageLocation,
};

/// Says which directory under the shared root an instance's data is in.
///
/// Both sides must be configured with the same root: `/mnt/cephfs/odoo_instances` on Swarm and, on Kubernetes, the same
/// CephFS path as a host path, a CSI `rootPath` or an NFS export.
pub trait DataLocator: fmt::Debug + Send + Sync + 'static {
    /// The directory of an instance's data.
    ///
    /// # Errors
    /// `StorageMissing` when the observation does not say, `InvalidInput` when it is not under the root.
    fn locate(&self, instance: &Instance) -> Result<DataPath>;
}

/// Finds data by the location that the backend recorded: a directory under `root`, a claim whose volume points to one,
/// or a volume of the in-memory backend, whose name is the path.
#[derive(Debug, Clone)]
pub struct RootedData {
    roots: Vec<String>,
}

impl RootedData {
    /// Data under this absolute directory.
    #[must_use]
    pub fn under(root: impl Into<String>) -> Self {
        Self { roots: Vec::new() }.also_under(root)
    }

    /// The same directory as another platform calls it, such as the CephFS path that volumes point to. The first root
    /// that fits counts.
    #[must_use]
    pub fn also_under(mut self, root: impl Into<String>) -> Self {
        let root: String = root.into();
        self.roots.push(root.trim_end_matches('/').to_owned());
        self
    }

    fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        let mut roots = self.roots.iter();
        roots.find_map(|root| path.strip_prefix(root.as_str())?.strip_prefix('/'))
    }
}

impl DataLocator for RootedData {
    fn locate(&self, instance: &Instance) -> Result<DataPath> {
        // A directory that is not absolute lies under the root of the platform's own configuration.
        if let Some(StorageLocation::Claim {
            directory: Some(path), ..
        }) = &instance.storage.location
            && !path.starts_with('/')
        {
            return path.parse();
        }
        let outside = |what: String| {
            Error::new(ErrorKind::InvalidInput, what)
                .with_field("storage.location")
                .with_instance(instance.id)
                .with_operation(OperationKind::Migrate)
                .with_advice("give the root under which both platforms see the data, or a locator of your own")
        };
        match &instance.storage.location {
            Some(
                StorageLocation::Directory { path }
                | StorageLocation::Claim {
                    directory: Some(path), ..
                },
            ) => {
                let relative = self
                    .below(path)
                    .ok_or_else(|| outside(format!("{path} is not under {}", self.roots.join(" or "))))?;
                relative.parse()
            }
            Some(StorageLocation::Memory { name }) => self.below(name).unwrap_or(name).parse(),
            Some(location @ StorageLocation::Claim { directory: None, .. }) => Err(outside(format!(
                "{location} does not say which directory it stands for"
            ))),
            None => Err(Error::new(
                ErrorKind::StorageMissing,
                "the observation does not say where the data is",
            )
            .with_instance(instance.id)
            .with_operation(OperationKind::Migrate)),
        }
    }
}

/// Finds the data of instances that were migrated before by what was recorded then, and of the others as
/// [`RootedData`] does. A Kubernetes claim that was not made by adopting a directory does not tell which one it stands
/// for; the journal of the migration that made it does.
#[derive(Debug, Clone)]
pub struct RecordedData {
    known: BTreeMap<InstanceId, DataPath>,
    rest: RootedData,
}

impl RecordedData {
    /// The data that these records are about, and for the rest of the instances what lies under the root.
    #[must_use]
    pub fn of(records: &[Record], rest: RootedData) -> Self {
        let known = records
            .iter()
            .filter_map(|record| Some((record.instance, record.inventory.as_ref()?.data.clone())))
            .collect();
        Self { known, rest }
    }
}

impl DataLocator for RecordedData {
    fn locate(&self, instance: &Instance) -> Result<DataPath> {
        match (&instance.storage.location, self.known.get(&instance.id)) {
            (Some(StorageLocation::Claim { directory: None, .. }), Some(path)) => Ok(path.clone()),
            _ => self.rest.locate(instance),
        }
    }
}

/// Completes a spec that was read back from a platform with the secrets that were withheld.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The spec with its secrets.
    ///
    /// # Errors
    /// When they cannot be had; the preflight reports it before anything moves.
    async fn complete(&self, spec: InstanceSpec) -> Result<InstanceSpec>;
}

/// Leaves specs as they are: for instances without secrets, and for the in-memory backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoSecrets;

#[async_trait]
impl SecretSource for NoSecrets {
    async fn complete(&self, spec: InstanceSpec) -> Result<InstanceSpec> {
        Ok(spec)
    }
}

/// Takes secrets from specs that the caller has in full, such as those of the service's own database.
#[derive(Debug, Clone, Default)]
pub struct KnownSecrets(BTreeMap<InstanceId, InstanceSpec>);

impl KnownSecrets {
    /// The secrets of these specs.
    #[must_use]
    pub fn of(specs: impl IntoIterator<Item = InstanceSpec>) -> Self {
        Self(specs.into_iter().map(|spec| (spec.id, spec)).collect())
    }
}

#[async_trait]
impl SecretSource for KnownSecrets {
    async fn complete(&self, mut spec: InstanceSpec) -> Result<InstanceSpec> {
        if let Some(known) = self.0.get(&spec.id) {
            fill_in(&mut spec, known);
        }
        Ok(spec)
    }
}

/// Takes withheld secrets from another spec of the same instance.
pub(super) fn fill_in(spec: &mut InstanceSpec, known: &InstanceSpec) {
    if let (Some(database), Some(known)) = (&mut spec.database, &known.database)
        && database.password.is_withheld()
    {
        database.password = known.password.clone();
        database.user = database.user.take().or_else(|| known.user.clone());
    }
    if let (Some(admin), Some(known)) = (&mut spec.admin, &known.admin)
        && admin.password.is_withheld()
    {
        admin.password = known.password.clone();
    }
}

/// Asks a tenant's Odoo whether it answers, before visitors are sent there.
#[async_trait]
pub trait Probe: fmt::Debug + Send + Sync + 'static {
    /// Asks once; the migration repeats it within its budget.
    ///
    /// # Errors
    /// When it does not answer as it should. `Configuration` when asking again would not help: the migration goes back at
    /// once.
    async fn probe(&self, instance: &Instance) -> Result<()>;

    /// False for a probe that asks nothing: plans and journals then claim nothing of it. Default: true.
    fn asks(&self) -> bool {
        true
    }
}

/// Trusts the platform's own readiness.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProbe;

#[async_trait]
impl Probe for NoProbe {
    async fn probe(&self, _instance: &Instance) -> Result<()> {
        Ok(())
    }

    fn asks(&self) -> bool {
        false
    }
}

/// Sends visitors to one side: DNS, a load balancer, a placement store. Called again after a crash, so it must be
/// idempotent.
#[async_trait]
pub trait RouteSwitch: fmt::Debug + Send + Sync + 'static {
    /// Sends the visitors of this instance's hosts to that side.
    ///
    /// # Errors
    /// When it did not happen, or may not have: the migration calls it again, soon and then less and less often, every
    /// 5 s at last, unless a [retry](crate::Error::retry) never helps; then it goes back.
    async fn switch(&self, instance: &Instance, to: Side) -> Result<()>;

    /// False for a switch that sends visitors nowhere: plans and journals then claim nothing of it. Default: true.
    fn sends(&self) -> bool {
        true
    }

    /// The instance is about to be stopped on this side in order to be moved off it: from now on only the migration may
    /// change it, until [`switch`](Self::switch) or [`stays`](Self::stays).
    ///
    /// # Errors
    /// When it did not happen: the migration calls it again, and does not stop the instance without it.
    async fn before_stop(&self, _id: InstanceId, _from: Side) -> Result<()> {
        Ok(())
    }

    /// The migration went back, wherever it had come to: the instance lives on the source.
    ///
    /// # Errors
    /// When it did not happen: the migration calls it again.
    async fn stays(&self, _id: InstanceId) -> Result<()> {
        Ok(())
    }
}

/// Does nothing: for one router in front that serves both platforms and sends visitors to whichever runs, or for
/// migrations in which somebody else switches them.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoRoute;

#[async_trait]
impl RouteSwitch for NoRoute {
    async fn switch(&self, _instance: &Instance, _to: Side) -> Result<()> {
        Ok(())
    }

    fn sends(&self) -> bool {
        false
    }
}

/// Several switches, in this order. A [`PlacementSwitch`] comes last: the service may change the tenant on the other side as soon
/// as it says so, and a switch after it may still fail.
#[async_trait]
impl RouteSwitch for Vec<Arc<dyn RouteSwitch>> {
    async fn switch(&self, instance: &Instance, to: Side) -> Result<()> {
        for switch in self {
            switch.switch(instance, to).await?;
        }
        Ok(())
    }

    fn sends(&self) -> bool {
        self.iter().any(|switch| switch.sends())
    }

    async fn before_stop(&self, id: InstanceId, from: Side) -> Result<()> {
        for switch in self {
            switch.before_stop(id, from).await?;
        }
        Ok(())
    }

    async fn stays(&self, id: InstanceId) -> Result<()> {
        for switch in self {
            switch.stays(id).await?;
        }
        Ok(())
    }
}

/// A check of the operator's own in the preflight: capacity, database reachability, a maintenance calendar.
#[async_trait]
pub trait PreflightCheck: fmt::Debug + Send + Sync + 'static {
    /// Looks, and says what was found. [`HealthState::Failed`](crate::HealthState::Failed) stops the migration.
    async fn check(&self, instance: &Instance, spec: &InstanceSpec) -> Vec<HealthCheck>;
}

/// What time it is. A test with a paused clock gives its own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    /// Any other clock: a test that wants one to go back has it do so.
    ///
    /// ```
    /// use saasodoo_core::migration::Clock;
    ///
    /// let stopped = Clock::new(|| jiff::Timestamp::UNIX_EPOCH);
    /// # drop(stopped);
    /// ```
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self(Arc::new(Timestamp::now))
    }

    /// A clock that follows tokio's, and so a paused one too, from this instant on.
    #[must_use]
    pub fn tokio(start: Timestamp) -> Self {
        let zero = tokio::time::Instant::now();
        Self(Arc::new(move || {
            let elapsed = jiff::SignedDuration::try_from(zero.elapsed()).unwrap_or(jiff::SignedDuration::MAX);
            start.checked_add(elapsed).unwrap_or(Timestamp::MAX)
        }))
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.now())
    }
}

/// Keeps a [`PlacementStore`](crate::dual::PlacementStore) in step, so that a [`DualRun`](crate::dual::DualRun) serves
/// each tenant from where it lives.
#[derive(Debug, Clone)]
pub struct PlacementSwitch {
    store: Arc<dyn crate::dual::PlacementStore>,
    source: crate::dual::Place,
}

impl PlacementSwitch {
    /// For migrations whose source is the dual run's `source` place.
    #[must_use]
    pub fn new(store: Arc<dyn crate::dual::PlacementStore>, source: crate::dual::Place) -> Self {
        Self { store, source }
    }

    fn place(&self, side: Side) -> crate::dual::Place {
        match side {
            Side::Source => self.source,
            Side::Target => self.source.other(),
        }
    }
}

#[async_trait]
impl RouteSwitch for PlacementSwitch {
    async fn switch(&self, instance: &Instance, to: Side) -> Result<()> {
        self.store.set(instance.id, self.place(to)).await
    }

    async fn before_stop(&self, id: InstanceId, from: Side) -> Result<()> {
        self.store.begin_move(id, self.place(from)).await
    }

    async fn stays(&self, id: InstanceId) -> Result<()> {
        self.store.set(id, self.source).await
    }
}
