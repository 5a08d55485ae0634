//! What others have: hosts.

use futures::future::join_all;
use saasodoo_core::{Error, Host, InstanceId, Result};

use crate::backend::Inner;
use crate::names::{FULL_ID, HOSTS, MANAGED_BY, host_label};
use crate::route::{RouteView, kind as route_kind};
use crate::wire::{DEPLOYMENT, Fresh, Stub};

impl Inner {
    /// The first of the hosts that another instance or a route of somebody else has, and who. `own_route`: the name of a
    /// guide's route that belongs to the asker.
    pub(crate) async fn host_taken(
        &self,
        hosts: &[Host],
        id: InstanceId,
        own_route: Option<&str>,
    ) -> Result<Option<(Host, String)>> {
        let foreign = async {
            let Some(kind) = route_kind(&self.config) else {
                return Ok(None);
            };
            let unknown = format!("!{FULL_ID}");
            let routes: Vec<RouteView> = self.wire.few(&kind, &unknown, Fresh::Cached).await?;
            let mut others = routes
                .iter()
                .filter(|route| Some(route.metadata.name.as_str()) != own_route);
            Ok::<_, Error>(others.find_map(|route| {
                let claimed = route.hosts();
                let host = hosts.iter().find(|host| claimed.contains(host))?;
                Some((host.clone(), format!("{} {}", kind.kind, route.metadata.name)))
            }))
        };
        let (labelled, foreign) = futures::join!(self.labelled(hosts, id, own_route, Fresh::Cached), foreign);
        match labelled? {
            Some(taken) => Ok(Some(taken)),
            None => foreign,
        }
    }

    /// As [`host_taken`](Self::host_taken), once the hosts are claimed by the own Deployment in this version: sees every
    /// instance that claimed one of them before.
    pub(crate) async fn host_claimed(
        &self,
        hosts: &[Host],
        id: InstanceId,
        own_route: Option<&str>,
        version: &str,
    ) -> Result<Option<(Host, String)>> {
        self.labelled(hosts, id, own_route, Fresh::Since(version)).await
    }

    /// A Deployment of another instance that claims one of the hosts in its labels.
    async fn labelled(
        &self,
        hosts: &[Host],
        id: InstanceId,
        own_route: Option<&str>,
        fresh: Fresh<'_>,
    ) -> Result<Option<(Host, String)>> {
        let looks = hosts.iter().map(|host| async move {
            let selector = format!("{MANAGED_BY}=saasodoo,{}", host_label(host.as_str()));
            let owners: Vec<Stub> = self.wire.few(&DEPLOYMENT, &selector, fresh).await?;
            let other = owners.into_iter().find(|owner| {
                let listed = owner.metadata.annotations.get(HOSTS).map_or("", String::as_str);
                let another = owner.metadata.labels.get(FULL_ID) != Some(&id.to_string());
                another
                    && owner.metadata.name != own_route.unwrap_or_default()
                    && listed.split(',').any(|other| other == host.as_str())
            });
            Ok::<_, Error>(other.map(|owner| (host.clone(), owner.metadata.name)))
        });
        for taken in join_all(looks).await {
            if let Some(taken) = taken? {
                return Ok(Some(taken));
            }
        }
        Ok(None)
    }
}

pub(crate) fn host_conflict(host: &Host, owner: &str) -> Error {
    Error::conflict(["route"], format!("the host {host} belongs to {owner}"))
        .with_advice("choose another subdomain or custom domain")
}
