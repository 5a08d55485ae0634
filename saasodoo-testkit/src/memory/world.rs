//! The simulated platforms as a state machine: everything that is due happens in order of time, then the caller's
//! question or change is dealt with at one point.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, Bytes, Capability, Cause, DataPath, Endpoints, Error, ErrorKind, Facts, Hold, Host, Instance,
    InstanceFilter, InstanceId, InstanceSpec, ObjectName, Provenance, Result, Retry, Secret, Source, Storage,
    StorageLocation, StorageState, Transition, Unparsed,
};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::Settings;
use super::clock::{Moment, stamp};
use super::fault::{Call, Faults};
use super::unit::{Due, Log, Scene, SimUnit, Trouble};
use super::volume::Volumes;

/// All platforms that share their data, and the data.
#[derive(Debug)]
pub(super) struct Universe {
    now: Moment,
    pub(super) worlds: Vec<World>,
    pub(super) volumes: Volumes,
}

impl Universe {
    pub(super) fn new(base: Timestamp, seed: u64) -> Self {
        Self {
            now: Moment::ZERO,
            worlds: Vec::new(),
            volumes: Volumes::new(base, seed),
        }
    }

    /// Lets everything happen that is due by `now`, in the order of time over all platforms.
    pub(super) fn advance(&mut self, now: Moment) -> Moment {
        while let Some((due, world, id)) = self.next() {
            if due.at > now {
                break;
            }
            self.now = self.now.max(due.at);
            self.worlds[world].step(id, self.now, &mut self.volumes);
        }
        self.now = self.now.max(now);
        self.now
    }

    fn next(&self) -> Option<(Due, usize, InstanceId)> {
        self.worlds
            .iter()
            .enumerate()
            .filter_map(|(index, world)| world.agenda.first().map(|(due, id)| (*due, index, *id)))
            .min()
    }

    /// When something happens next by itself.
    pub(super) fn due(&self) -> Option<Moment> {
        self.next().map(|(due, _, _)| due.at)
    }
}

/// What subscribers of a watch hear.
#[derive(Debug, Clone)]
pub(super) enum News {
    Seen(Arc<Instance>),
    Gone(Arc<Instance>),
    Lost { until: Moment, reason: String },
}

/// The data an instance runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) key: String,
    /// It was there before, and this instance may not delete it.
    pub(super) adopted: bool,
    pub(super) location: StorageLocation,
}

#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) spec: InstanceSpec,
    pub(super) name: ObjectName,
    pub(super) uid: String,
    pub(super) hosts: Vec<Host>,
    pub(super) desired: bool,
    pub(super) hold: Option<Hold>,
    /// It is being deleted, and whether its data goes too.
    pub(super) deleting: Option<bool>,
    /// Somebody removed its main object by hand; what is left of it are its units.
    pub(super) orphaned: bool,
    pub(super) transition: Option<Transition>,
    pub(super) revision: u64,
    pub(super) created: Moment,
    pub(super) token: Option<Uuid>,
    pub(super) data: Data,
    pub(super) unparsed: Vec<Unparsed>,
    pub(super) log: Log,
    units: Vec<SimUnit>,
    due: Option<Due>,
}

impl Tenant {
    pub(super) fn is_live(&self) -> bool {
        !self.units.is_empty()
    }

    /// What a decision about it needs, without its units.
    pub(super) fn facts(&self, now: Timestamp) -> Facts {
        let mut facts = Facts::new(u32::from(self.desired), now);
        facts.hold = self.hold;
        facts.deleting = self.deleting.is_some();
        facts.transition = self.transition;
        facts
    }
}

/// One platform.
#[derive(Debug)]
pub(super) struct World {
    pub(super) settings: Settings,
    pub(super) faults: Faults,
    pub(super) calls: Vec<Call>,
    pub(super) watch_down_until: Moment,
    /// Somebody has watched, so there is something to answer reads from.
    cached: bool,
    pub(super) tenants: BTreeMap<InstanceId, Tenant>,
    pub(super) retained: BTreeMap<InstanceId, Data>,
    hosts: BTreeMap<Host, InstanceId>,
    names: BTreeMap<ObjectName, InstanceId>,
    troubles: BTreeMap<InstanceId, Vec<Trouble>>,
    agenda: BTreeSet<(Due, InstanceId)>,
    subscribers: Vec<mpsc::UnboundedSender<News>>,
    base: Timestamp,
    counter: u64,
}

impl World {
    pub(super) fn new(settings: Settings, base: Timestamp) -> Self {
        Self {
            settings,
            faults: Faults::default(),
            calls: Vec::new(),
            watch_down_until: Moment::ZERO,
            cached: false,
            tenants: BTreeMap::new(),
            retained: BTreeMap::new(),
            hosts: BTreeMap::new(),
            names: BTreeMap::new(),
            troubles: BTreeMap::new(),
            agenda: BTreeSet::new(),
            subscribers: Vec::new(),
            base,
            counter: 0,
        }
    }

    pub(super) fn stamp(&self, at: Moment) -> Timestamp {
        stamp(self.base, at)
    }

    pub(super) fn supports(&self, capability: Capability) -> bool {
        self.settings.capabilities.supports(capability)
    }

    pub(super) fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    /// The instance that is meant: a legacy id means the one whose first digits it has. An orphan is neither there nor
    /// gone.
    pub(super) fn resolve(&self, id: InstanceId) -> Result<InstanceId> {
        let id = self.find(id)?;
        if self.tenant(id)?.orphaned {
            return Err(Error::conflict(
                ["id"],
                "its main object is gone, and a process of it still runs on its data",
            )
            .with_retry(Retry::After(None))
            .with_advice("end the process, then look again; start nothing on the data before"));
        }
        Ok(id)
    }

    fn find(&self, id: InstanceId) -> Result<InstanceId> {
        if !id.is_legacy() {
            return if self.tenants.contains_key(&id) {
                Ok(id)
            } else {
                Err(Error::not_found(id))
            };
        }
        let mut matching = self.tenants.keys().filter(|other| id.matches(**other));
        match (matching.next(), matching.next()) {
            (Some(one), None) => Ok(*one),
            (None, _) => Err(Error::not_found(id)),
            (Some(_), Some(_)) => Err(
                Error::conflict(["id"], "several instances have these first eight digits")
                    .with_advice("give the whole UUID"),
            ),
        }
    }

    pub(super) fn tenant(&self, id: InstanceId) -> Result<&Tenant> {
        self.tenants.get(&id).ok_or_else(|| Error::not_found(id))
    }

    /// Who has the host, if another instance has.
    pub(super) fn host_taken(&self, host: &Host, by: InstanceId) -> bool {
        self.hosts.get(host).is_some_and(|owner| *owner != by)
    }

    pub(super) fn name_taken(&self, name: &ObjectName) -> bool {
        self.names.contains_key(name)
    }

    /// Whether an instance of this platform runs on the data already.
    pub(super) fn data_taken(&self, key: &str) -> bool {
        self.tenants.values().any(|tenant| tenant.data.key == key)
    }

    /// Where the data of a new instance goes.
    pub(super) fn new_data(&self, spec: &InstanceSpec, name: &ObjectName) -> Data {
        let directory = format!("odoo_data_{}_{}", spec.database_name, spec.id.short());
        let (key, location) = match self.settings.kind {
            BackendKind::Kubernetes => {
                let key = format!("pvc-{name}");
                let location = StorageLocation::Claim {
                    namespace: self.settings.config.namespace.clone(),
                    name: name.to_string(),
                    volume: Some(key.clone()),
                    directory: None,
                };
                (key, location)
            }
            BackendKind::Swarm => {
                let location = self.directory(&directory);
                (directory, location)
            }
            _ => (directory.clone(), StorageLocation::Memory { name: directory }),
        };
        Data {
            key,
            adopted: false,
            location,
        }
    }

    pub(super) fn adopted_data(&self, path: &DataPath) -> Data {
        Data {
            key: path.to_string(),
            adopted: true,
            location: self.directory(path.as_str()),
        }
    }

    fn directory(&self, key: &str) -> StorageLocation {
        StorageLocation::Directory {
            path: format!("{}/{key}", self.settings.data_root),
        }
    }

    /// The name under which the data is kept, from any way to say where it is.
    pub(super) fn key_of(&self, location: &StorageLocation) -> Result<String> {
        match location {
            StorageLocation::Memory { name } => Ok(name.clone()),
            StorageLocation::Claim {
                volume: Some(volume), ..
            } => Ok(volume.clone()),
            StorageLocation::Directory { path } => path
                .strip_prefix(&self.settings.data_root)
                .and_then(|rest| rest.strip_prefix('/'))
                .map(str::to_owned)
                .ok_or_else(|| {
                    let message = format!("{path} does not lie under {}", self.settings.data_root);
                    Error::new(ErrorKind::StorageMissing, message)
                }),
            other => Err(Error::new(
                ErrorKind::StorageMissing,
                format!("there is no {other} in memory"),
            )),
        }
    }

    /// Adds an instance; everything has been checked.
    pub(super) fn insert(
        &mut self,
        spec: InstanceSpec,
        hosts: Vec<Host>,
        data: Data,
        run: bool,
        token: Option<Uuid>,
        at: Moment,
    ) {
        let id = spec.id;
        let name = spec.object_name();
        let uid = format!("instance-{}", self.count());
        for host in &hosts {
            self.hosts.insert(host.clone(), id);
        }
        self.names.insert(name.clone(), id);
        let revision = self.count();
        let tenant = Tenant {
            spec,
            name,
            uid,
            hosts,
            desired: run,
            hold: None,
            deleting: None,
            orphaned: false,
            transition: Some(Transition::Create),
            revision,
            created: at,
            token,
            data,
            unparsed: Vec::new(),
            log: Log::default(),
            units: Vec::new(),
            due: None,
        };
        self.tenants.insert(id, tenant);
    }

    pub(super) fn set_hosts(&mut self, id: InstanceId, hosts: Vec<Host>) {
        self.hosts.retain(|_, owner| *owner != id);
        for host in &hosts {
            self.hosts.insert(host.clone(), id);
        }
        if let Some(tenant) = self.tenants.get_mut(&id) {
            tenant.hosts = hosts;
        }
    }

    /// Changes an instance: a new revision, and everything that follows.
    pub(super) fn change(
        &mut self,
        id: InstanceId,
        at: Moment,
        volumes: &mut Volumes,
        change: impl FnOnce(&mut Tenant),
    ) {
        let revision = self.count();
        if let Some(tenant) = self.tenants.get_mut(&id) {
            change(tenant);
            tenant.revision = revision;
        }
        self.touch(id, at, volumes);
    }

    /// Tells every unit of the instance to end.
    pub(super) fn stop_units(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) {
        self.with_units(id, at, volumes, |units, scene| {
            units.retain_mut(|unit| !unit.stop(scene));
        });
    }

    fn with_units<T>(
        &mut self,
        id: InstanceId,
        at: Moment,
        volumes: &mut Volumes,
        act: impl FnOnce(&mut Vec<SimUnit>, &mut Scene<'_>) -> T,
    ) -> Option<T> {
        let tenant = self.tenants.get_mut(&id)?;
        let mut scene = Scene {
            at,
            base: self.base,
            settings: &self.settings,
            volumes,
            troubles: self.troubles.get(&id).map(Vec::as_slice).unwrap_or_default(),
            log: &mut tenant.log,
            volume: &tenant.data.key,
            instance: id,
        };
        Some(act(&mut tenant.units, &mut scene))
    }

    /// Does what is due for the instance.
    fn step(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) {
        self.with_units(id, at, volumes, |units, scene| {
            units.retain_mut(|unit| !(unit.due().is_some_and(|due| due.at <= at) && unit.step(scene)));
        });
        self.touch(id, at, volumes);
    }

    /// Brings everything that depends on the instance in line with it: its units, its deletion, the agenda, and those
    /// who watch. Called after every change, whoever made it.
    pub(super) fn touch(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) {
        let Some(tenant) = self.tenants.get(&id) else {
            return;
        };
        let leaving = tenant.deleting.is_some() || tenant.orphaned;
        if leaving && tenant.units.is_empty() {
            self.remove(id, at, volumes);
            return;
        }
        // One unit at a time: a new one is made when nothing is left of the one before.
        let refused = self.has_trouble(id, &Trouble::QuotaExceeded);
        if tenant.desired && !leaving && tenant.units.is_empty() && !refused {
            let name = tenant.name.clone();
            let unit = format!("{name}-{}", volumes.suffix());
            let order = self.count();
            if let Some(tenant) = self.tenants.get_mut(&id) {
                tenant.units.push(SimUnit::new(unit, order, &tenant.spec, at));
            }
        }
        if let Some(tenant) = self.tenants.get_mut(&id) {
            // It is where it was to go; what happens to it from now on is another story.
            if tenant.units.iter().any(SimUnit::is_up) {
                tenant.transition = None;
            }
            let due = tenant.units.iter().filter_map(SimUnit::due).min();
            if let Some(before) = std::mem::replace(&mut tenant.due, due) {
                self.agenda.remove(&(before, id));
            }
            if let Some(due) = due {
                self.agenda.insert((due, id));
            }
        }
        self.publish(id, at, volumes);
    }

    /// What there was of it to see, for those who watch.
    fn last_seen(&self, id: InstanceId, at: Moment, volumes: &Volumes) -> Option<Instance> {
        let told = !self.subscribers.is_empty() && !self.tenants.get(&id)?.orphaned;
        told.then(|| self.observe(id, at, volumes).ok()).flatten()
    }

    /// Somebody removes the main object by hand. On Swarm its task drains; elsewhere the process goes on.
    pub(super) fn orphan(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) -> Result<()> {
        let id = self.resolve(id)?;
        if let Some(last) = self.last_seen(id, at, volumes) {
            self.tell(&News::Gone(Arc::new(last)));
        }
        if let Some(tenant) = self.tenants.get_mut(&id) {
            tenant.orphaned = true;
        }
        if self.settings.kind == BackendKind::Swarm {
            self.stop_units(id, at, volumes);
        }
        self.touch(id, at, volumes);
        Ok(())
    }

    fn remove(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) {
        let last = self.last_seen(id, at, volumes);
        let Some(tenant) = self.tenants.remove(&id) else {
            return;
        };
        if let Some(due) = tenant.due {
            self.agenda.remove(&(due, id));
        }
        self.hosts.retain(|_, owner| *owner != id);
        self.names.remove(&tenant.name);
        volumes.release_by_instance(&tenant.data.key);
        if tenant.deleting == Some(true) {
            // What was adopted stays where it is; only that it was adopted is forgotten.
            if !tenant.data.adopted {
                volumes.delete(&tenant.data.key, at);
            }
        } else {
            self.retained.insert(id, tenant.data);
        }
        if let Some(last) = last {
            self.tell(&News::Gone(Arc::new(last)));
        }
    }

    fn publish(&mut self, id: InstanceId, at: Moment, volumes: &Volumes) {
        if self.subscribers.is_empty() || self.tenants.get(&id).is_none_or(|tenant| tenant.orphaned) {
            return;
        }
        if let Ok(instance) = self.observe(id, at, volumes) {
            self.tell(&News::Seen(Arc::new(instance)));
        }
    }

    fn tell(&mut self, news: &News) {
        self.subscribers
            .retain(|subscriber| subscriber.send(news.clone()).is_ok());
    }

    pub(super) fn subscribe(&mut self) -> mpsc::UnboundedReceiver<News> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.cached = true;
        self.subscribers.push(sender);
        receiver
    }

    /// The instance from the cache, where there is one that is in step and has it.
    pub(super) fn cached(&self, id: InstanceId, at: Moment, volumes: &Volumes) -> Option<Instance> {
        let in_step = self.cached && self.watch_down_until <= at && self.supports(Capability::CachedGet);
        let mut instance = in_step
            .then(|| self.observe(self.resolve(id).ok()?, at, volumes).ok())
            .flatten()?;
        instance.provenance.source = Source::Cache;
        Some(instance)
    }

    /// Cuts off everybody who watches, until then.
    pub(super) fn cut_watches(&mut self, until: Moment, reason: &str) {
        self.watch_down_until = self.watch_down_until.max(until);
        self.tell(&News::Lost {
            until,
            reason: reason.to_owned(),
        });
        self.subscribers.clear();
    }

    fn has_trouble(&self, id: InstanceId, trouble: &Trouble) -> bool {
        self.troubles
            .get(&id)
            .is_some_and(|troubles| troubles.contains(trouble))
    }

    pub(super) fn cause(&mut self, id: InstanceId, trouble: Trouble, at: Moment, volumes: &mut Volumes) {
        let troubles = self.troubles.entry(id).or_default();
        if !troubles.contains(&trouble) {
            troubles.push(trouble.clone());
        }
        self.with_units(id, at, volumes, |units, scene| {
            for unit in units {
                match &trouble {
                    Trouble::CrashLoop { exit_code } => drop(unit.crash(*exit_code, scene)),
                    Trouble::OutOfMemory => drop(unit.run_out_of_memory(scene)),
                    Trouble::NodeLost => unit.lose_node(at),
                    Trouble::Unready if scene.settings.capabilities.supports(Capability::Readiness) => {
                        unit.become_unready();
                    }
                    _ => {}
                }
            }
        });
        self.touch(id, at, volumes);
    }

    pub(super) fn clear(&mut self, id: InstanceId, at: Moment, volumes: &mut Volumes) {
        self.troubles.remove(&id);
        if self.tenants.get(&id).is_some_and(|tenant| tenant.orphaned) {
            self.stop_units(id, at, volumes);
        }
        self.with_units(id, at, volumes, |units, _| {
            for unit in units {
                unit.retry(at);
            }
        });
        self.touch(id, at, volumes);
    }

    pub(super) fn crash(&mut self, id: InstanceId, code: i32, at: Moment, volumes: &mut Volumes) -> Result<()> {
        let id = self.resolve(id)?;
        let crashed = self.with_units(id, at, volumes, |units, scene| {
            units.iter_mut().any(|unit| unit.crash(code, scene))
        });
        if crashed != Some(true) {
            return Err(Error::new(ErrorKind::NotAllowed, "it has no process").with_instance(id));
        }
        self.touch(id, at, volumes);
        Ok(())
    }

    /// What the platform shows of an instance.
    pub(super) fn observe(&self, id: InstanceId, at: Moment, volumes: &Volumes) -> Result<Instance> {
        let tenant = self.tenant(id)?;
        let now = self.stamp(at);
        let mut facts = tenant.facts(now);
        facts.units = tenant.units.iter().map(|unit| unit.observe(self.base)).collect();
        if tenant.desired && self.has_trouble(id, &Trouble::QuotaExceeded) {
            facts.obstacle = Some(Cause::QuotaExceeded {
                message: "the simulation was told so".to_owned(),
            });
        }
        let mut provenance = Provenance::live(tenant.revision.to_string(), now);
        provenance.created_at = Some(self.stamp(tenant.created));
        provenance.token = tenant.token;
        let internal = Some(format!("http://{}:8069", tenant.name));
        Ok(Instance::observed(
            self.settings.kind,
            tenant.name.clone(),
            without_secrets(&tenant.spec),
            facts,
            provenance,
        )
        .with_endpoints(Endpoints::new(internal, tenant.hosts.clone(), false))
        .with_storage(self.storage(id, tenant, at, volumes))
        .with_unparsed(tenant.unparsed.clone()))
    }

    fn storage(&self, id: InstanceId, tenant: &Tenant, at: Moment, volumes: &Volumes) -> Storage {
        let there = volumes.exists(&tenant.data.key);
        let capacity: Option<Bytes> = there.then_some(tenant.spec.storage);
        let mut storage = Storage::default();
        storage.location = Some(tenant.data.location.clone());
        storage.state = if !there {
            StorageState::Missing
        } else if self.has_trouble(id, &Trouble::StoragePending) {
            StorageState::Pending
        } else {
            StorageState::Ready
        };
        storage.requested = Some(tenant.spec.storage);
        storage.capacity = capacity;
        storage.used = self
            .supports(Capability::StorageUsage)
            .then(|| volumes.used(&tenant.data.key, at))
            .flatten();
        storage
    }

    /// All that match, in the order of their ids.
    pub(super) fn observe_all(&self, filter: &InstanceFilter, at: Moment, volumes: &Volumes) -> Vec<Instance> {
        self.tenants
            .iter()
            .filter(|(_, tenant)| !tenant.orphaned && filter.matches_spec(&tenant.spec))
            .filter_map(|(id, _)| self.observe(*id, at, volumes).ok())
            .filter(|instance| filter.matches(instance))
            .map(|instance| self.as_listed(instance))
            .collect()
    }

    /// A list on Kubernetes reads no claims: it knows what was asked for, and not what became of it.
    fn as_listed(&self, mut instance: Instance) -> Instance {
        if self.settings.kind == BackendKind::Kubernetes {
            let storage = &mut instance.storage;
            storage.state = StorageState::NotObserved;
            storage.capacity = None;
            storage.used = None;
            if let Some(StorageLocation::Claim { volume, .. }) = &mut storage.location {
                *volume = None;
            }
        }
        instance
    }
}

fn without_secrets(spec: &InstanceSpec) -> InstanceSpec {
    let mut spec = spec.clone();
    if let Some(database) = &mut spec.database {
        database.password = Secret::withheld();
    }
    if let Some(admin) = &mut spec.admin {
        admin.password = Secret::withheld();
    }
    spec
}
