//! Reading: one instance live or from the cache, and all of them page by page.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use jiff::Timestamp;
use saasodoo_core::{
    BackendKind, Error, ErrorKind, Host, Instance, InstanceFilter, InstanceId, OperationKind, Result, Retry, Source,
};

use crate::backend::Inner;
use crate::facts::MOUNT_FAILED;
use crate::names::{CUSTOMER, FULL_ID, SELECTOR, SHORT_ID, id_of, selector_of, the_one};
use crate::observe::{ClaimSeen, belongs, data_claim, observe, with_route_hosts};
use crate::pages::Pages;
use crate::route::{RouteView, kind as route_kind};
use crate::views::{ClaimView, DeploymentView, PodView, View};
use crate::wire::{CLAIM, DEPLOYMENT, EVENT, Fresh, PAGE, POD};

/// More ids than this are picked out here and not by the server: a selector is part of the URL.
const MOST_IDS: usize = 100;

/// A container that is being made for longer than this may be waiting for a volume that cannot be mounted, in seconds.
const SLOW_MOUNT: i64 = 10;

/// What the server has of an instance.
#[derive(Debug)]
pub(crate) enum Found {
    Instance(Box<Live>),
    /// No Deployment, and pods that may have a process: the instance is not gone yet.
    Orphans(Vec<PodView>),
    Nothing,
}

/// One instance as the server has it now.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) deployment: DeploymentView,
    pub(crate) pods: Vec<PodView>,
    /// The data claim; `None`: the server says that it is not there.
    pub(crate) claim: Option<ClaimView>,
    /// The hosts of a guide's route.
    pub(crate) hosts: Option<Vec<Host>>,
}

/// How long a node may take to tell that a process has ended.
pub(crate) const REPORT: Duration = Duration::from_secs(30);

/// True for a claim that is not being deleted and has not lost its volume.
pub(crate) fn is_usable(claim: &ClaimView) -> bool {
    !claim.is_deleting() && claim.status.phase != "Lost"
}

impl Live {
    pub(crate) fn is_legacy(&self) -> bool {
        self.deployment.label(FULL_ID).is_none()
    }

    /// The claim, unless it is going or has lost its volume: a pod that starts now would not get the data.
    pub(crate) fn usable_claim(&self) -> Option<&ClaimView> {
        self.claim.as_ref().filter(|claim| is_usable(claim))
    }

    /// How long a process of the instance may take to end: its grace period, and some time for the node to tell.
    pub(crate) fn ending(&self) -> Duration {
        let grace = self.deployment.spec.template.spec.termination_grace_period_seconds;
        Duration::from_secs(grace.and_then(|grace| grace.try_into().ok()).unwrap_or(30)) + REPORT
    }
}

impl Inner {
    /// What was read, as an instance.
    pub(crate) fn instance(&self, live: &Live) -> Instance {
        let claim = live.claim.as_ref().map_or(ClaimSeen::Missing, ClaimSeen::Found);
        let pods: Vec<&PodView> = live.pods.iter().collect();
        let instance = observe(
            &self.observer,
            &live.deployment,
            &pods,
            claim,
            Source::Live,
            Timestamp::now(),
        );
        match &live.hosts {
            Some(hosts) => with_route_hosts(&self.observer, instance, hosts.clone()),
            None => instance,
        }
    }

    /// Reads an instance, its pods and its claim at once. `None`: the server says that it does not exist. Pods that were
    /// left behind are an error: they write to the data.
    pub(crate) async fn find(&self, id: InstanceId) -> Result<Option<Live>> {
        match self.look(id).await? {
            Found::Instance(live) => Ok(Some(*live)),
            Found::Orphans(pods) => Err(still_runs(id, &pods)),
            Found::Nothing => Ok(None),
        }
    }

    /// As [`find`](Self::find), for those who deal with pods that were left behind.
    pub(crate) async fn look(&self, id: InstanceId) -> Result<Found> {
        let selector = selector_of(id);
        let (deployments, pods, claims) = futures::try_join!(
            self.wire.few::<DeploymentView>(&DEPLOYMENT, &selector, Fresh::Now),
            self.wire.few::<PodView>(&POD, &selector, Fresh::Now),
            self.wire.few::<ClaimView>(&CLAIM, &selector, Fresh::Now),
        )?;
        let orphans = orphans(id, &deployments, &pods);
        let Some(deployment) = the_one(id, deployments)? else {
            return Ok(match orphans.is_empty() {
                true => Found::Nothing,
                false => Found::Orphans(orphans),
            });
        };
        let live = self.complete(deployment, pods, claims).await?;
        Ok(Found::Instance(Box::new(live)))
    }

    /// As [`find`](Self::find), but an absent instance is an error.
    pub(crate) async fn live(&self, id: InstanceId) -> Result<Live> {
        self.find(id).await?.ok_or_else(|| Error::not_found(id))
    }

    /// Reads what belongs to a Deployment that was found already.
    pub(crate) async fn complete(
        &self,
        deployment: DeploymentView,
        mut pods: Vec<PodView>,
        mut claims: Vec<ClaimView>,
    ) -> Result<Live> {
        pods.retain(|pod| belongs(&deployment, pod));
        let name = data_claim(&deployment, &self.config.data_path).map(str::to_owned);
        let position = claims.iter().position(|claim| Some(claim.name()) == name.as_deref());
        // The guide's claims carry no id and are found by the name that the Deployment mounts.
        let claim = async {
            match (position, &name) {
                (Some(position), _) => Ok(Some(claims.swap_remove(position))),
                (None, Some(name)) => self.wire.get::<ClaimView>(&CLAIM, name).await,
                (None, None) => Ok(None),
            }
        };
        let legacy = deployment.label(FULL_ID).is_none();
        let hosts = async {
            match route_kind(&self.config) {
                Some(kind) if legacy => self.route_hosts(&kind, deployment.name()).await,
                _ => Ok(None),
            }
        };
        let (claim, hosts) = futures::try_join!(claim, hosts)?;
        Ok(Live {
            deployment,
            pods,
            claim,
            hosts,
        })
    }

    /// The hosts of a route; `None` when there is no route, or no such kind.
    async fn route_hosts(&self, kind: &crate::wire::Kind, name: &str) -> Result<Option<Vec<Host>>> {
        match self.wire.get::<RouteView>(kind, name).await {
            Ok(route) => Ok(route.map(|route| route.hosts())),
            Err(error) if error.kind() == ErrorKind::MissingPrerequisite => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The claims that say they hold the instance's data, whether or not the instance exists.
    pub(crate) async fn claims_of(&self, id: InstanceId) -> Result<Vec<ClaimView>> {
        let claims = self.wire.few::<ClaimView>(&CLAIM, &selector_of(id), Fresh::Now).await?;
        let claims = of_instance(id, claims);
        one_tenant(id, &claims)?;
        Ok(claims)
    }

    pub(crate) async fn get(&self, id: InstanceId) -> Result<Instance> {
        if let Some(instance) = self.cache.cached(id) {
            return Ok(instance);
        }
        let mut live = self.live(id).await?;
        self.explain_mounts(&mut live).await;
        Ok(self.instance(&live))
    }

    /// A volume that cannot be mounted is told by events only: of a pod whose container is long in the making, the last
    /// one becomes the reason why it waits. Without the permission nobody knows more, and nothing else is the worse.
    async fn explain_mounts(&self, live: &mut Live) {
        let now = Timestamp::now().as_second();
        for pod in &mut live.pods {
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            let Some(started) = pod.status.start_time.map(Timestamp::as_second) else {
                continue;
            };
            let slow = now - started > SLOW_MOUNT && pod.metadata.deletion_timestamp.is_none();
            let statuses = pod.status.container_statuses.iter_mut();
            let mut waiting = statuses
                .filter_map(|status| status.state.waiting.as_mut())
                .filter(|waiting| slow && waiting.reason == "ContainerCreating");
            let Some(waiting) = waiting.next() else { continue };
            let fields = format!("involvedObject.uid={uid}");
            match self.wire.some_with::<EventView>(&EVENT, &fields, PAGE).await {
                Ok(events) => {
                    if let Some(message) = mount_failure(events, started) {
                        waiting.reason = MOUNT_FAILED.to_owned();
                        waiting.message = message;
                    }
                }
                Err(error) => tracing::debug!(%error, "the pod's events were not read"),
            }
        }
    }

    pub(crate) fn list(self: &Arc<Self>, filter: InstanceFilter) -> BoxStream<'static, Result<Instance>> {
        let listing = Listing {
            inner: Arc::clone(self),
            selectors: Selectors::of(&filter),
            filter,
            pages: None,
            pods: None,
            seen: std::collections::HashSet::new(),
            restarts: 0,
        };
        stream::try_unfold(listing, |mut listing| async move {
            match listing.next().await {
                Ok(Some(instances)) => Ok(Some((stream::iter(instances.into_iter().map(Ok)), listing))),
                Ok(None) => Ok(None),
                Err(error) => Err(error
                    .with_operation(OperationKind::List)
                    .with_backend(BackendKind::Kubernetes)),
            }
        })
        .map(|page| match page {
            Ok(page) => page.left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
        .flatten()
        .boxed()
    }
}

/// The part of an event that tells why.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EventView {
    reason: String,
    last_timestamp: Option<Timestamp>,
    message: String,
}

/// Why the volumes are not mounted, if that is the last that happened to the pod. In its first seconds a mount fails now
/// and then, such as that of a Secret that is not made yet; and whoever pulls an image has mounted everything.
fn mount_failure(events: Vec<EventView>, started: i64) -> Option<String> {
    let last = events
        .into_iter()
        .max_by_key(|event| (event.last_timestamp, event.reason != MOUNT_FAILED))?;
    let at = last.last_timestamp?.as_second();
    (last.reason == MOUNT_FAILED && at - started >= SLOW_MOUNT).then_some(last.message)
}

/// Pods of the instance that may have a process and belong to none of the Deployments.
fn orphans(id: InstanceId, deployments: &[DeploymentView], pods: &[PodView]) -> Vec<PodView> {
    let now = Timestamp::now();
    pods.iter()
        .filter(|pod| id_of(*pod).is_some_and(|other| other.matches(id)))
        .filter(|pod| crate::facts::is_live(pod, now))
        .filter(|pod| !deployments.iter().any(|deployment| belongs(deployment, pod)))
        .cloned()
        .collect()
}

/// There is no Deployment, and yet the instance is not gone.
pub(crate) fn still_runs(id: InstanceId, pods: &[PodView]) -> Error {
    let names: Vec<&str> = pods.iter().map(View::name).collect();
    Error::conflict(
        ["status"],
        format!(
            "the instance has no Deployment, and pods of it still run: {}",
            names.join(", ")
        ),
    )
    .with_instance(id)
    .with_retry(Retry::After(None))
    .with_advice("wait until they have ended; delete their ReplicaSet if nobody else will")
}

/// Claims that say whose they are must all say the same. A short id fits those of several tenants.
pub(crate) fn one_tenant(id: InstanceId, claims: &[ClaimView]) -> Result<()> {
    let owners: BTreeSet<&str> = claims.iter().filter_map(|claim| claim.label(FULL_ID)).collect();
    if owners.len() < 2 {
        return Ok(());
    }
    let owners: Vec<&str> = owners.into_iter().collect();
    Err(Error::conflict(
        ["id"],
        format!(
            "the digits {} fit the data of several instances: {}",
            id.short(),
            owners.join(", ")
        ),
    )
    .with_instance(id)
    .with_advice("use the whole UUID"))
}

/// The objects among these that belong to the instance: those with the whole UUID, else those with the short one only.
pub(crate) fn of_instance<T: View>(id: InstanceId, objects: Vec<T>) -> Vec<T> {
    let (exact, others): (Vec<T>, Vec<T>) = objects.into_iter().partition(|object| id_of(object) == Some(id));
    if !exact.is_empty() {
        return exact;
    }
    let matches = |object: &T| id_of(object).is_some_and(|other| other.matches(id));
    others.into_iter().filter(matches).collect()
}

/// The selectors by which the server narrows a list down.
struct Selectors {
    deployments: String,
    pods: String,
}

impl Selectors {
    fn of(filter: &InstanceFilter) -> Self {
        let mut pods = SELECTOR.to_owned();
        if !filter.ids.is_empty() && filter.ids.len() <= MOST_IDS {
            let ids: Vec<String> = filter.ids.iter().map(|id| id.short().to_string()).collect();
            pods = format!("{pods},{SHORT_ID} in ({})", ids.join(","));
        }
        if let Some(customer) = filter.customer {
            pods = format!("{pods},{CUSTOMER}={customer}");
        }
        // Not for pods: a label that somebody put on a Deployment by hand is not on its pods.
        let deployments = format!("{pods}{}", crate::convert::label_selector(&filter.labels));
        Self { deployments, pods }
    }
}

/// The state of a list: pods are read beside the first page, each Deployment is answered once.
struct Listing {
    inner: Arc<Inner>,
    filter: InstanceFilter,
    selectors: Selectors,
    pages: Option<Pages<DeploymentView>>,
    pods: Option<Pods>,
    seen: std::collections::HashSet<String>,
    restarts: u32,
}

impl Listing {
    /// The next page of instances; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Instance>>> {
        loop {
            let wire = &self.inner.wire;
            let begin = || wire.pages(&DEPLOYMENT, &self.selectors.deployments);
            let pages = self.pages.get_or_insert_with(begin);
            let page = if self.pods.is_none() {
                let pods = wire.list::<PodView>(&POD, &self.selectors.pods);
                let (page, pods) = futures::join!(pages.next(), pods);
                let page = page?;
                self.pods = Some(Pods::new(pods?));
                Ok(page)
            } else {
                pages.next().await
            };
            let deployments = match page {
                Ok(Some(deployments)) => deployments,
                Ok(None) => return Ok(None),
                // Start over, and leave out what was answered.
                Err(error) if self.restarts < 3 && pages.is_lost(&error) => {
                    self.restarts += 1;
                    self.pages = None;
                    self.pods = None;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let now = Timestamp::now();
            let empty = Pods::default();
            let pods = self.pods.as_ref().unwrap_or(&empty);
            let mut instances = Vec::with_capacity(deployments.len());
            for deployment in &deployments {
                if !self.seen.insert(deployment.uid().to_owned()) {
                    continue;
                }
                let own = pods.of(deployment);
                let observer = &self.inner.observer;
                let instance = observe(observer, deployment, &own, ClaimSeen::NotRead, Source::Live, now);
                if self.filter.matches(&instance) {
                    instances.push(instance);
                }
            }
            return Ok(Some(instances));
        }
    }
}

/// Pods by the id that they share with their Deployment.
#[derive(Default)]
pub(crate) struct Pods(HashMap<Option<InstanceId>, Vec<PodView>>);

impl Pods {
    pub(crate) fn new(pods: Vec<PodView>) -> Self {
        let mut by_id: HashMap<_, Vec<PodView>> = HashMap::new();
        for pod in pods {
            by_id.entry(id_of(&pod)).or_default().push(pod);
        }
        Self(by_id)
    }

    pub(crate) fn of(&self, deployment: &DeploymentView) -> Vec<&PodView> {
        let pods = self.0.get(&id_of(deployment)).into_iter().flatten();
        pods.filter(|pod| belongs(deployment, pod)).collect()
    }
}
