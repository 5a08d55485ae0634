//! The two conversions against each other: what is rendered is read back, and every field reaches an object.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Secret as KubeSecret, Service};
use k8s_openapi::api::networking::v1::{Ingress, NetworkPolicy as KubePolicy};
use proptest::prelude::*;
use saasodoo_core::{
    AdminAccount, Bytes, Config, Cpu, DatabaseEndpoint, Host, Instance, InstanceId, InstanceSpec, Origin, Probes,
    Secret, Source,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::config::{AdoptionSource, KubernetesConfig, NetworkPolicy, PodSecurity, Routing, RoutingTls, SecretRef};
use crate::convert::{Blueprint, Owner, Rendered, directory_record};
use crate::names::{PROBE_PERIOD, claim_name};
use crate::observe::{ClaimSeen, Observer, observe};
use crate::views::{ClaimView, DeploymentView};

fn config() -> KubernetesConfig {
    KubernetesConfig::new(Config::default())
}

fn blueprint<'a>(config: &'a KubernetesConfig, spec: &'a InstanceSpec, hosts: &'a [Host]) -> Blueprint<'a> {
    let name = spec.object_name();
    Blueprint {
        config,
        spec,
        claim: claim_name(&name),
        name,
        hosts,
        creation: "call",
        token: None,
        data: "new".to_owned(),
        stopped: false,
    }
}

fn owner(spec: &InstanceSpec) -> Owner {
    Owner {
        name: spec.object_name().to_string(),
        uid: "uid".to_owned(),
    }
}

/// All objects of an instance.
fn objects(config: &KubernetesConfig, spec: &InstanceSpec) -> Vec<Value> {
    let hosts = spec.hosts(config.base_domain()).expect("hosts");
    let blueprint = blueprint(config, spec, &hosts);
    let owner = owner(spec);
    let mut objects = vec![
        blueprint.deployment(),
        blueprint.claim(),
        blueprint.secret(&owner),
        blueprint.service(&owner),
    ];
    objects.extend(blueprint.route(&owner).map(|(_, route)| route));
    objects.extend(blueprint.network_policy(&owner));
    if let Some(source) = &config.adoption {
        let path = "odoo_data_acme".parse().expect("a path");
        let (name, volume) = blueprint.adopted_volume(source, &path);
        objects.push(volume);
        objects.push(blueprint.adopting_claim(&name));
    }
    objects
}

/// A spec with the defaults.
fn plain() -> InstanceSpec {
    InstanceSpec::new(
        InstanceId::random(),
        "acme".parse().expect("a name"),
        "odoo:17".parse().expect("an image"),
    )
}

fn read(config: &KubernetesConfig, spec: &InstanceSpec) -> Instance {
    let mut objects = objects(config, spec).into_iter();
    let (deployment, claim) = (objects.next().expect("first"), objects.next().expect("second"));
    observed(config, deployment, claim)
}

fn observed(config: &KubernetesConfig, deployment: Value, claim: Value) -> Instance {
    let deployment: DeploymentView = serde_json::from_value(deployment).expect("a view");
    let claim: ClaimView = serde_json::from_value(claim).expect("a view");
    observe(
        &Observer::new(config),
        &deployment,
        &[],
        ClaimSeen::Found(&claim),
        Source::Live,
        Timestamp::UNIX_EPOCH,
    )
}

fn withheld(mut spec: InstanceSpec) -> InstanceSpec {
    if let Some(database) = &mut spec.database {
        database.password = Secret::withheld();
    }
    if let Some(admin) = &mut spec.admin {
        admin.password = Secret::withheld();
    }
    spec
}

prop_compose! {
    fn database()(name in "[a-z][a-z0-9_]{0,20}", port in 1u16.., password in "[ -~]{1,20}") -> DatabaseEndpoint {
        let mut database = DatabaseEndpoint::new("db.internal", name.clone(), format!("{name}_user"), password.into());
        database.port = port;
        database
    }
}

prop_compose! {
    fn basics()(
        id: u128,
        name in "[A-Za-z0-9][A-Za-z0-9_-]{0,48}[A-Za-z0-9]",
        display in "[^\\p{Cc}]{0,30}",
        customer in proptest::option::of(any::<u128>()),
        version in proptest::option::of(10u16..30),
        database in proptest::option::of(database()),
        admin in proptest::option::of("[!-~]{1,20}"),
        demo: bool,
    ) -> InstanceSpec {
        let id = InstanceId::new(uuid::Uuid::from_u128(id));
        let name = format!("t{name}");
        let mut spec = InstanceSpec::new(id, name[..name.len().min(50)].parse().expect("a name"), "odoo:17".parse().expect("an image"));
        spec.display_name = display;
        spec.customer_id = customer.map(|id| saasodoo_core::CustomerId::new(uuid::Uuid::from_u128(id)));
        spec.odoo_version = version.map(saasodoo_core::OdooVersion::new);
        spec.database = database;
        spec.admin = admin.map(|password| AdminAccount { email: "a@b.example".to_owned(), password: password.into() });
        spec.demo_data = demo;
        spec
    }
}

prop_compose! {
    fn spec()(
        mut spec in basics(),
        cpu in 10u32..64_000,
        memory in 16u32..65_536,
        requests: (bool, bool),
        storage in 1u32..1_000_000,
        env in proptest::collection::btree_map("[A-Z]{1,6}_X", "\\PC{0,20}", 0..4),
        subdomain in proptest::option::of("s[a-z0-9]{0,20}"),
        domains in proptest::collection::btree_set("[a-z]{1,10}\\.example", 0..3),
        path in "/[a-z]{1,10}",
        period in 1u16..300,
        startup in 300u16..7200,
        liveness: bool,
        addons in proptest::collection::btree_set("[a-z_]{1,10}", 0..3),
        labels in proptest::collection::btree_map("[a-z]{3,6}", "[a-z0-9]{0,10}", 0..3),
        selector in proptest::collection::btree_map("node/[a-z]{1,6}", "[a-z0-9]{1,10}", 0..3),
        tolerations in proptest::collection::btree_set("taint/[a-z]{1,6}", 0..3),
        class in proptest::option::of("[a-z]{1,10}"),
        grace in 1u16..=600,
    ) -> InstanceSpec {
        spec.resources.cpu = Cpu::from_millis(cpu);
        spec.resources.memory = Bytes::from_mib(memory);
        spec.resources.cpu_request = requests.0.then(|| Cpu::from_millis(cpu / 2 + 1));
        spec.resources.memory_request = requests.1.then(|| Bytes::from_mib(memory));
        spec.storage = Bytes::from_mib(storage);
        spec.environment = env.into_iter().map(|(key, value)| (key.parse().expect("a name"), value)).collect();
        spec.route.subdomain = subdomain.and_then(|label| label.parse().ok());
        spec.route.custom_domains = domains.iter().map(|host| host.parse().expect("a host")).collect();
        spec.probes.path = path.parse().expect("a path");
        spec.probes.period_seconds = period;
        spec.probes.startup_seconds = startup;
        spec.probes.liveness = liveness;
        spec.addons.custom.clone_from(&addons);
        spec.addons.disabled = addons.into_iter().take(1).collect();
        let label = |(key, value): (String, String)| (key.parse().expect("a key"), value.parse().expect("a value"));
        spec.labels = labels.into_iter().filter(|(key, _)| key != "app" && key != "database").map(label).collect();
        spec.scheduling.node_selector = selector.into_iter().map(label).collect();
        spec.scheduling.tolerations = tolerations.iter().map(|key| key.parse().expect("a key")).collect();
        spec.scheduling.priority_class = class.map(|class| class.parse().expect("a name"));
        spec.scheduling.stop_grace_seconds = grace;
        spec
    }
}

proptest! {
    #[test]
    fn what_is_rendered_is_read_back(spec in spec()) {
        prop_assert!(spec.validate().is_ok(), "{:?}", spec.validate());
        let config = config();
        let instance = read(&config, &spec);
        prop_assert_eq!(&instance.unparsed, &vec![]);
        prop_assert_eq!(instance.spec, withheld(spec.clone()));
        prop_assert_eq!(instance.endpoints.hosts, spec.hosts(config.base_domain()).expect("hosts"));
        prop_assert_eq!(instance.provenance.origin, Origin::Saasodoo);
    }

    #[test]
    fn specs_that_differ_are_rendered_differently(a in spec(), b in spec()) {
        let config = config();
        if a != b {
            prop_assert_ne!(objects(&config, &a), objects(&config, &b));
        }
    }

    #[test]
    fn names_and_labels_are_what_the_server_takes(spec in spec()) {
        for object in objects(&config(), &spec) {
            let metadata = &object["metadata"];
            let name = metadata["name"].as_str().expect("a name");
            prop_assert!(name.len() <= 253 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            for (key, value) in metadata["labels"].as_object().expect("labels") {
                prop_assert!(key.parse::<saasodoo_core::LabelKey>().is_ok(), "{}", key);
                prop_assert!(value.as_str().expect("a text").parse::<saasodoo_core::LabelValue>().is_ok(), "{} {}", key, value);
            }
        }
    }

    #[test]
    fn secrets_are_in_the_secret_and_nowhere_else(spec in basics()) {
        let mut spec = spec;
        spec.database = Some(DatabaseEndpoint::new("h", "d", "u", "s3ntinel-one".into()));
        spec.admin = Some(AdminAccount { email: "a@b.example".to_owned(), password: "s3ntinel-two".into() });
        for object in objects(&config(), &spec) {
            let encoded = ["czNudGluZWwtb25l", "czNudGluZWwtdHdv"];
            let text = object.to_string();
            prop_assert!(!text.contains("s3ntinel"));
            prop_assert_eq!(encoded.iter().all(|secret| text.contains(secret)), object["kind"] == "Secret");
        }
    }
}

/// Each field by itself: the observation shows it, or, for secrets, the Secret does.
#[test]
fn every_field_reaches_an_object() {
    type Change = fn(&mut InstanceSpec);
    let base = {
        let id: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse().expect("a UUID");
        InstanceSpec::new(
            id,
            "acme".parse().expect("a name"),
            "odoo:17".parse().expect("an image"),
        )
        .with_database(DatabaseEndpoint::new("h", "d", "u", "p".into()))
        .with_admin("a@b.example", "p".into())
    };
    let changes: &[(&str, Change)] = &[
        ("id", |s| s.id = InstanceId::random()),
        ("database_name", |s| s.database_name = "other".parse().expect("a name")),
        ("display_name", |s| s.display_name = "Acme".to_owned()),
        ("customer_id", |s| {
            s.customer_id = Some(saasodoo_core::CustomerId::random())
        }),
        ("image", |s| s.image = "odoo:18".parse().expect("an image")),
        ("odoo_version", |s| {
            s.odoo_version = Some(saasodoo_core::OdooVersion::new(18))
        }),
        ("database", |s| s.database = None),
        ("database.host", |s| {
            s.database.as_mut().expect("one").host = "other".to_owned()
        }),
        ("database.port", |s| s.database.as_mut().expect("one").port = 1),
        ("database.name", |s| {
            s.database.as_mut().expect("one").name = "other".to_owned()
        }),
        ("database.user", |s| {
            s.database.as_mut().expect("one").user = Some("other".to_owned())
        }),
        ("database.password", |s| {
            s.database.as_mut().expect("one").password = "other".into()
        }),
        ("admin", |s| s.admin = None),
        ("admin.email", |s| {
            s.admin.as_mut().expect("one").email = "c@d.example".to_owned()
        }),
        ("admin.password", |s| {
            s.admin.as_mut().expect("one").password = "other".into()
        }),
        ("demo_data", |s| s.demo_data = true),
        ("resources.cpu", |s| s.resources.cpu = Cpu::from_millis(1001)),
        ("resources.memory", |s| s.resources.memory = Bytes::from_gib(3)),
        ("resources.cpu_request", |s| {
            s.resources.cpu_request = Some(Cpu::from_millis(100))
        }),
        ("resources.cpu_request as the default", |s| {
            s.resources.cpu_request = Some(Cpu::from_millis(250))
        }),
        ("resources.memory_request", |s| {
            s.resources.memory_request = Some(Bytes::from_mib(100))
        }),
        ("storage", |s| s.storage = Bytes::from_gib(11)),
        ("environment", |s| {
            drop(s.environment.insert("A".parse().expect("a name"), "b".to_owned()))
        }),
        ("route.subdomain", |s| {
            s.route.subdomain = Some("shop".parse().expect("a label"))
        }),
        ("route.custom_domains", |s| {
            s.route.custom_domains = ["a.example".parse().expect("a host")].into()
        }),
        ("probes.path", |s| s.probes.path = "/other".parse().expect("a path")),
        ("probes.period_seconds", |s| s.probes.period_seconds = 11),
        ("probes.startup_seconds", |s| s.probes.startup_seconds = 601),
        ("probes.liveness", |s| s.probes.liveness = false),
        ("addons.custom", |s| s.addons.custom = ["x".to_owned()].into()),
        ("addons.disabled", |s| s.addons.disabled = ["x".to_owned()].into()),
        ("labels", |s| {
            drop(
                s.labels
                    .insert("a".parse().expect("a key"), "b".parse().expect("a value")),
            )
        }),
        ("scheduling.node_selector", |s| {
            drop(
                s.scheduling
                    .node_selector
                    .insert("a".parse().expect("a key"), "b".parse().expect("a value")),
            );
        }),
        ("scheduling.tolerations", |s| {
            s.scheduling.tolerations = ["a".parse().expect("a key")].into()
        }),
        ("scheduling.priority_class", |s| {
            s.scheduling.priority_class = Some("high".parse().expect("a name"))
        }),
        ("scheduling.stop_grace_seconds", |s| {
            s.scheduling.stop_grace_seconds = 61
        }),
    ];
    let config = config();
    let before = objects(&config, &base);
    let mut seen = BTreeSet::new();
    for (field, change) in changes {
        let mut changed = base.clone();
        change(&mut changed);
        changed.validate().expect(field);
        assert_ne!(objects(&config, &changed), before, "{field} changes no object");
        assert_eq!(
            read(&config, &changed).spec,
            withheld(changed.clone()),
            "{field} is not read back"
        );
        assert!(
            seen.insert(serde_json::to_string(&objects(&config, &changed)).expect("json")),
            "{field}"
        );
    }
}

/// The objects hold no field that the API does not know: reading them through its types loses nothing.
#[test]
fn the_api_knows_every_field() {
    fn same<T: Serialize + DeserializeOwned>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).expect("an object of the API");
        let mut again = serde_json::to_value(typed).expect("json");
        // Empty maps are left out by the types.
        let mut object = object.clone();
        prune(&mut object);
        prune(&mut again);
        assert_eq!(again, object);
    }
    fn prune(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.values_mut().for_each(prune);
                map.retain(|_, value| *value != json!({}) && !value.is_null());
            }
            Value::Array(items) => items.iter_mut().for_each(prune),
            _ => {}
        }
    }
    let mut config = config();
    config.network_policy = Some(NetworkPolicy::from_namespaces([("name", "traefik")]));
    config.image_pull_secrets = vec!["registry".parse().expect("a name")];
    config.pod_security = PodSecurity::restricted(1001);
    let mut spec = InstanceSpec::new(
        InstanceId::random(),
        "acme".parse().expect("a name"),
        "odoo:17".parse().expect("an image"),
    )
    .with_admin("a@b.example", "p".into());
    spec.scheduling
        .node_selector
        .insert("a".parse().expect("a key"), "b".parse().expect("a value"));
    spec.scheduling.tolerations.insert("a".parse().expect("a key"));
    spec.scheduling.priority_class = Some("high".parse().expect("a name"));
    let sources = [
        AdoptionSource::HostPath {
            root: "/mnt".to_owned(),
        },
        AdoptionSource::Nfs {
            server: "nas".to_owned(),
            root: "/export/".to_owned(),
        },
        AdoptionSource::CephFsCsi {
            driver: "cephfs.csi.ceph.com".to_owned(),
            cluster_id: "c".to_owned(),
            fs_name: "f".to_owned(),
            node_stage_secret: SecretRef {
                namespace: "n".to_owned(),
                name: "s".to_owned(),
            },
            root: "/odoo_instances".to_owned(),
        },
    ];
    let tls = Some(RoutingTls::Secret("wildcard".parse().expect("a name")));
    let class = Some("nginx".parse().expect("a name"));
    let mut kinds = BTreeSet::new();
    for source in sources {
        config.adoption = Some(source);
        for routing in [
            Routing::default(),
            Routing::Ingress {
                class: class.clone(),
                tls: tls.clone(),
                annotations: [("a".to_owned(), "b".to_owned())].into(),
            },
            Routing::None,
        ] {
            config.routing = routing;
            for object in objects(&config, &spec) {
                let kind = object["kind"].as_str().expect("a kind").to_owned();
                match kind.as_str() {
                    "Deployment" => same::<Deployment>(&object),
                    "PersistentVolumeClaim" => same::<PersistentVolumeClaim>(&object),
                    "PersistentVolume" => same::<PersistentVolume>(&object),
                    "Secret" => same::<KubeSecret>(&object),
                    "Service" => same::<Service>(&object),
                    "NetworkPolicy" => same::<KubePolicy>(&object),
                    "Ingress" => same::<Ingress>(&object),
                    "IngressRoute" => {}
                    other => panic!("{other} is not tested"),
                }
                kinds.insert(kind);
            }
        }
    }
    assert_eq!(kinds.len(), 8);
}

#[test]
fn no_two_instances_share_a_directory() {
    let (config, spec) = (
        config(),
        InstanceSpec::new(
            InstanceId::random(),
            "acme".parse().expect("a name"),
            "odoo:17".parse().expect("an image"),
        ),
    );
    let hosts = spec.hosts(config.base_domain()).expect("hosts");
    let source = AdoptionSource::HostPath {
        root: "/mnt/cephfs/odoo_instances".to_owned(),
    };
    let path = "odoo_data_acme_0a1b2c3d".parse().expect("a path");
    let other = spec.clone();
    let (name, volume) = blueprint(&config, &spec, &hosts).adopted_volume(&source, &path);
    let (same, _) = blueprint(&config, &other, &hosts).adopted_volume(&source, &path);
    assert_eq!(name, same, "the name is the directory's");
    assert_eq!(
        volume["spec"]["hostPath"],
        json!({"path": "/mnt/cephfs/odoo_instances/odoo_data_acme_0a1b2c3d", "type": "Directory"})
    );
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(directory_record(&path), "directory:odoo_data_acme_0a1b2c3d");
}

#[test]
fn readiness_is_asked_more_often_and_lost_no_sooner() {
    for (period, rendered) in [(1, (1, 3)), (5, (5, 3)), (7, (5, 5)), (10, (5, 6)), (300, (5, 180))] {
        let mut probes = Probes::default();
        probes.period_seconds = period;
        let probe = Rendered::of(&probes).readiness;
        let (every, failures) = (&probe["periodSeconds"], &probe["failureThreshold"]);
        assert_eq!((every, failures), (&json!(rendered.0), &json!(rendered.1)), "{period}");
    }
    // What somebody changed by hand is what counts, and what somebody wrote by hand is not believed.
    for (recorded, every, failures, read) in [
        ("10", 5, 6, 10),
        ("10", 4, 6, 4),
        ("10", 5, 3, 5),
        ("0", 5, 3, 5),
        ("65535", 5, 9, 5),
    ] {
        let made = objects(&config(), &plain());
        let mut deployment = made[0].clone();
        deployment["metadata"]["annotations"][PROBE_PERIOD] = json!(recorded);
        let probe = &mut deployment["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
        probe["periodSeconds"] = json!(every);
        probe["failureThreshold"] = json!(failures);
        let seen = observed(&config(), deployment, made[1].clone())
            .spec
            .probes
            .period_seconds;
        assert_eq!(seen, read, "{recorded} {every} {failures}");
    }
}

#[test]
fn the_pod_is_hardened() {
    let (config, spec) = (config(), plain());
    let deployment = &objects(&config, &spec)[0];
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["enableServiceLinks"], false);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let context = &pod["containers"][0]["securityContext"];
    assert_eq!(context["allowPrivilegeEscalation"], false);
    assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
    // The selector holds the whole UUID.
    assert_eq!(
        deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/instance"],
        *spec.id.to_string()
    );
    assert!(
        objects(&config, &spec)[1]["metadata"].get("ownerReferences").is_none(),
        "nothing owns the data"
    );
}
