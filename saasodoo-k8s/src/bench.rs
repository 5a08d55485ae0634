//! The pure parts, for the benchmarks. Not a part of the API: it may change or go with any release.

use jiff::Timestamp;
use saasodoo_core::{Instance, InstanceSpec, Result, Source};
use serde_json::Value;

use crate::config::KubernetesConfig;
use crate::convert::{Blueprint, Owner};
use crate::names::claim_name;
use crate::observe::{ClaimSeen, Observer, observe};
use crate::read::Pods;
use crate::views::{DeploymentView, Page, PodView};

/// All objects of a new instance.
///
/// # Errors
/// Those of [`InstanceSpec::hosts`].
pub fn objects(config: &KubernetesConfig, spec: &InstanceSpec) -> Result<Vec<Value>> {
    let name = spec.object_name();
    let owner = Owner {
        name: name.to_string(),
        uid: "0a1b2c3d-1111-4222-8333-444455556666".to_owned(),
    };
    let hosts = spec.hosts(config.base_domain())?;
    let blueprint = Blueprint {
        config,
        spec,
        claim: claim_name(&name),
        name,
        hosts: &hosts,
        creation: "bench",
        token: None,
        data: "new".to_owned(),
        stopped: false,
    };
    let mut objects = vec![
        blueprint.deployment(),
        blueprint.claim(),
        blueprint.secret(&owner),
        blueprint.service(&owner),
    ];
    objects.extend(blueprint.route(&owner).map(|(_, route)| route));
    Ok(objects)
}

/// The instances in a page of Deployments and a page of pods, as the server sends them.
///
/// # Errors
/// When a page is not JSON.
pub fn instances(config: &KubernetesConfig, deployments: &[u8], pods: &[u8]) -> serde_json::Result<Vec<Instance>> {
    let deployments: Page<DeploymentView> = serde_json::from_slice(deployments)?;
    let pods: Page<PodView> = serde_json::from_slice(pods)?;
    let (observer, pods, now) = (Observer::new(config), Pods::new(pods.items), Timestamp::now());
    let look = |deployment: &DeploymentView| {
        let own = pods.of(deployment);
        observe(&observer, deployment, &own, ClaimSeen::NotRead, Source::Live, now)
    };
    Ok(deployments.items.iter().map(look).collect())
}
