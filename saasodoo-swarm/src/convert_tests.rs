//! What is sent, what comes back of it, and what a change touches.

use proptest::prelude::*;
use saasodoo_core::{Bytes, Config, Cpu, InstanceChange, InstanceSpec, Origin};
use saasodoo_testkit::strategies;
use serde_json::{Value, json};

use crate::config::SwarmConfig;
use crate::convert::{self, Creation, SecretFile};
use crate::facts_tests::{as_shown, legacy, read_back, spec};
use crate::patch::{self, Patch};

fn config() -> SwarmConfig {
    SwarmConfig::new(Config::default())
}

fn render(spec: &InstanceSpec, secrets: &[SecretFile], config: &SwarmConfig) -> Value {
    let name = convert::service_name(&spec.database_name, spec.id).expect("a name");
    let hosts = spec.hosts(&config.common.base_domain).expect("hosts");
    let directory = config.data_root.join(convert::directory_name(spec));
    convert::service(
        &Creation {
            spec,
            name: &name,
            hosts: &hosts,
            directory: &directory,
            adopted: false,
            stopped: false,
            secrets,
            resolved: None,
        },
        config,
    )
    .expect("a body")
}

#[test]
fn the_body_is_todays_and_more() {
    let spec = spec()
        .with_display_name("Acme Ltd")
        .with_customer("11111111-2222-4333-8444-555555555555".parse().expect("an id"))
        .with_database(saasodoo_core::DatabaseEndpoint::new(
            "postgres-pool-1",
            "odoo_x",
            "odoo_x_user",
            "pw".into(),
        ))
        .with_admin("a@b.example", "pw2".into())
        .with_cpu(Cpu::from_millis(1000))
        .with_memory(Bytes::from_gib(1));
    let body = render(&spec, &[], &config());
    assert_eq!(body["Name"], "odoo-acme-0a1b2c3d");
    let container = &body["TaskTemplate"]["ContainerSpec"];
    assert_eq!(container["Image"], "bitnamilegacy/odoo:17");
    assert_eq!(
        container["Env"],
        json!([
            "ODOO_DATABASE_HOST=postgres-pool-1",
            "ODOO_DATABASE_PORT_NUMBER=5432",
            "ODOO_DATABASE_NAME=odoo_x",
            "ODOO_DATABASE_USER=odoo_x_user",
            "ODOO_DATABASE_PASSWORD=pw",
            "ODOO_EMAIL=a@b.example",
            "ODOO_PASSWORD=pw2",
            "ODOO_LOAD_DEMO_DATA=no"
        ])
    );
    assert_eq!(
        container["Mounts"],
        json!([{
            "Target": "/bitnami/odoo", "Type": "bind", "ReadOnly": false,
            "Source": "/mnt/cephfs/odoo_instances/odoo_data_acme_0a1b2c3d"
        }])
    );
    assert_eq!(
        body["TaskTemplate"]["Resources"],
        json!({"Limits": {"NanoCPUs": 1_000_000_000, "MemoryBytes": 1_073_741_824}})
    );
    assert_eq!(
        body["TaskTemplate"]["Networks"],
        json!([{"Target": "saasodoo-network"}])
    );
    assert_eq!(body["Mode"], json!({"Replicated": {"Replicas": 1}}));
    assert_eq!(body["Labels"]["saasodoo.instance.name"], "Acme Ltd");
    assert_eq!(
        body["Labels"]["traefik.http.routers.odoo-acme-0a1b2c3d.rule"],
        "Host(`acme.saasodoo.com`)"
    );
    // The improvements.
    assert_eq!(body["TaskTemplate"]["RestartPolicy"]["Delay"], 5_000_000_000_u64);
    assert_eq!(body["UpdateConfig"]["Order"], "stop-first");
    assert_eq!(container["StopGracePeriod"], 45_000_000_000_u64);
    assert_eq!(container["Healthcheck"]["Retries"], 3);
}

#[test]
fn passwords_are_mounted_and_withheld() {
    let spec = spec().with_admin("a@b.example", "s3ntinel".into());
    let secrets = [SecretFile {
        variable: convert::ADMIN_PASSWORD,
        id: "secret1".to_owned(),
        name: "saasodoo-x".to_owned(),
    }];
    let body = render(&spec, &secrets, &config());
    assert!(!body.to_string().contains("s3ntinel"));
    let container = &body["TaskTemplate"]["ContainerSpec"];
    assert!(
        container["Env"]
            .as_array()
            .expect("a list")
            .contains(&json!("ODOO_PASSWORD_FILE=/run/secrets/odoo_password"))
    );
    assert_eq!(container["Secrets"][0]["SecretID"], "secret1");
    assert_eq!(container["Secrets"][0]["File"]["Name"], "odoo_password");
    let instance = read_back(&body, &config());
    assert!(instance.spec.admin.expect("an account").password.is_withheld());
    assert_eq!(instance.unparsed, []);
}

#[test]
fn names_too_long_for_swarm_are_cut() {
    let id = spec().id;
    let name = |slug: &str| {
        let slug = slug.parse().expect("a name");
        convert::service_name(&slug, id).expect("a name").to_string()
    };
    assert_eq!(name("Acme_Corp"), "odoo-Acme_Corp-0a1b2c3d");
    assert_eq!(name(&"a".repeat(49)).len(), 63);
    let cut = name(&"a".repeat(50));
    assert!(cut.len() <= 63 && cut.ends_with("-0a1b2c3d"), "{cut}");
}

/// The paths at which two documents differ.
fn differing(a: &Value, b: &Value) -> Vec<String> {
    fn walk(a: &Value, b: &Value, path: &str, into: &mut Vec<String>) {
        match (a, b) {
            (Value::Object(x), Value::Object(y)) => {
                let keys: std::collections::BTreeSet<_> = x.keys().chain(y.keys()).collect();
                for key in keys {
                    let null = &Value::Null;
                    walk(
                        x.get(key).unwrap_or(null),
                        y.get(key).unwrap_or(null),
                        &format!("{path}/{key}"),
                        into,
                    );
                }
            }
            _ if a != b => into.push(path.to_owned()),
            _ => {}
        }
    }
    let mut paths = Vec::new();
    walk(a, b, "", &mut paths);
    paths
}

/// A body with parts that no spec has a field for, and that no model of today's client knows.
fn foreign() -> Value {
    let mut body = render(&spec().with_env("A".parse().expect("a name"), "1"), &[], &config());
    body["Labels"]
        .as_object_mut()
        .expect("labels")
        .remove("saasodoo.managed-by");
    body["Labels"]
        .as_object_mut()
        .expect("labels")
        .remove("saasodoo.storage.bytes");
    body["TaskTemplate"]["Resources"]["Reservations"] = json!({"MemoryBytes": 1024, "GenericResources": [{"X": 1}]});
    body["TaskTemplate"]["ContainerSpec"]["FieldOfTheFuture"] = json!({"deep": [1, 2.5, null]});
    body["TaskTemplate"]["LogDriver"] = json!({"Name": "json-file", "Options": {"max-size": "10m"}});
    body["EndpointSpec"] = json!({"Mode": "vip"});
    body
}

/// The body after a change.
fn apply(change: &InstanceChange, body: &Value, hosts: &[saasodoo_core::Host], config: &SwarmConfig) -> Value {
    let seen = read_back(body, config);
    let after = change.apply_to(&seen.spec).expect("a change");
    let mut new = body.clone();
    let patch = Patch {
        asked: change,
        before: &seen.spec,
        after: &after,
        hosts,
        resolved: None,
        unread: &patch::unread(change, &seen.unparsed, body),
        config,
    };
    patch.apply(&mut new).expect("patched");
    new
}

fn patched(change: &InstanceChange) -> Vec<String> {
    let config = config();
    let body = foreign();
    let before = read_back(&body, &config).spec;
    let after = change.apply_to(&before).expect("a change");
    let hosts = after.hosts(&config.common.base_domain).expect("hosts");
    let new = apply(change, &body, &hosts, &config);
    // And it is read back as asked; the storage of a foreign service is its quota and no part of the body.
    let mut asked = after.clone();
    asked.storage = before.storage;
    let seen = read_back(&new, &config).spec;
    assert!(seen.diff(&asked).is_empty(), "{:?}", seen.diff(&asked));
    differing(&body, &new)
}

#[test]
fn a_change_touches_what_was_asked_and_nothing_else() {
    let name = |text: &str| text.parse().expect("a name");
    for (change, paths) in [
        (InstanceChange::new(), vec![]),
        (
            InstanceChange::new().image("odoo:18".parse().expect("an image")),
            vec!["/TaskTemplate/ContainerSpec/Image"],
        ),
        (
            InstanceChange::new().memory(Bytes::from_gib(4)),
            vec!["/TaskTemplate/Resources/Limits/MemoryBytes"],
        ),
        (
            InstanceChange::new().cpu(Cpu::from_millis(500)),
            vec!["/TaskTemplate/Resources/Limits/NanoCPUs"],
        ),
        (
            InstanceChange::new().set_env(name("A"), "2").set_env(name("B"), "x=y"),
            vec!["/TaskTemplate/ContainerSpec/Env"],
        ),
        (InstanceChange::new().storage(Bytes::from_gib(100)), vec![]),
        (
            InstanceChange::new().odoo_version(saasodoo_core::OdooVersion::new(16)),
            vec!["/Labels/saasodoo.odoo.version"],
        ),
        (
            InstanceChange::new().set_label("team".parse().expect("a key"), "blue".parse().expect("a value")),
            vec!["/Labels/team"],
        ),
    ] {
        assert_eq!(patched(&change), paths, "{change:?}");
    }
    let mut route = saasodoo_core::Route::default();
    route.subdomain = Some("shop".parse().expect("a label"));
    let paths = patched(&InstanceChange::new().route(route));
    assert!(
        paths
            .iter()
            .all(|path| path.contains(".rule") || path.contains("saasodoo.host.") || path.contains("subdomain")),
        "{paths:?}"
    );
}

#[test]
fn the_order_of_the_environment_stays() {
    let body = foreign();
    let before = read_back(&body, &config()).spec;
    let change = InstanceChange::new()
        .set_env("A".parse().expect("a name"), "2")
        .set_env("B".parse().expect("a name"), "3");
    assert_eq!(before.environment.len(), 1);
    let new = apply(&change, &body, &[], &config());
    let env = |body: &Value| {
        body["TaskTemplate"]["ContainerSpec"]["Env"]
            .as_array()
            .cloned()
            .expect("a list")
    };
    let (old, new) = (env(&body), env(&new));
    assert_eq!(new.len(), old.len() + 1);
    assert_eq!(new[new.len() - 2..], [json!("A=2"), json!("B=3")]);
    assert_eq!(new[..new.len() - 2], old[..old.len() - 1]);
}

/// A body of today without its limits and its router, and with an entry twice.
fn bare() -> Value {
    let mut body = legacy(1)["Spec"].clone();
    body["TaskTemplate"]
        .as_object_mut()
        .expect("a template")
        .remove("Resources");
    let labels = body["Labels"].as_object_mut().expect("labels");
    labels.retain(|key, _| !key.starts_with("traefik."));
    labels.insert("odd".to_owned(), json!("not a label's value!"));
    body["TaskTemplate"]["ContainerSpec"]["Env"] = json!(["A=1", "B=2", "A=3"]);
    body
}

#[test]
fn what_was_not_read_is_written_when_asked_for() {
    let config = config();
    let body = bare();
    let seen = read_back(&body, &config);
    // Equal to what observation puts in the place of a limit that is not there.
    let change = InstanceChange::new()
        .memory(seen.spec.resources.memory)
        .cpu(seen.spec.resources.cpu)
        .probes(seen.spec.probes.clone())
        .route(seen.spec.route.clone())
        .storage(seen.spec.storage)
        .unset_label("odd".parse().expect("a key"));
    let unread = patch::unread(&change, &seen.unparsed, &body);
    let fields: Vec<String> = patch::fields(&change, &seen.spec, &seen.spec, &unread, &body)
        .into_iter()
        .map(|change| change.field)
        .collect();
    assert_eq!(
        fields,
        [
            "labels.odd",
            "probes",
            "resources.cpu",
            "resources.memory",
            "route",
            "storage"
        ]
    );
    let hosts = seen.spec.hosts(&config.common.base_domain).expect("hosts");
    let new = apply(&change, &body, &hosts, &config);
    let limits = &new["TaskTemplate"]["Resources"]["Limits"];
    assert_eq!(limits["MemoryBytes"], json!(seen.spec.resources.memory.get()));
    assert_eq!(limits["NanoCPUs"], json!(seen.spec.resources.cpu.nano_cpus()));
    assert!(new["TaskTemplate"]["ContainerSpec"]["Healthcheck"].is_object());
    assert!(new["Labels"].get("odd").is_none());
    let again = read_back(&new, &config);
    assert_eq!(again.endpoints.hosts, hosts, "it is routed now");
    assert!(
        patch::unread(&change, &again.unparsed, &new)
            .iter()
            .all(|field| *field == "storage")
    );
}

#[test]
fn a_variable_that_is_there_twice_is_there_once_afterwards() {
    let body = bare();
    let name = |text: &str| -> saasodoo_core::EnvName { text.parse().expect("a name") };
    let env =
        |change: InstanceChange| apply(&change, &body, &[], &config())["TaskTemplate"]["ContainerSpec"]["Env"].clone();
    assert_eq!(
        env(InstanceChange::new().set_env(name("A"), "4")),
        json!(["A=4", "B=2"])
    );
    assert_eq!(env(InstanceChange::new().unset_env(name("A"))), json!(["B=2"]));
    assert_eq!(
        env(InstanceChange::new().set_env(name("C"), "{{.Node.Hostname}}")),
        json!(["A=1", "B=2", "A=3", r#"C={{"{{"}}.Node.Hostname}}"#]),
        "Swarm would put the node's name there"
    );
}

#[test]
fn templates_of_others_stay_as_they_are() {
    let mut body = bare();
    let template = "HOST={{.Node.Hostname}}";
    body["TaskTemplate"]["ContainerSpec"]["Env"] = json!([template, "A=1"]);
    let seen = read_back(&body, &config());
    let host = seen
        .spec
        .environment
        .get(&"HOST".parse().expect("a name"))
        .map(String::as_str);
    assert_eq!(host, Some("{{.Node.Hostname}}"));
    let new = apply(
        &InstanceChange::new().set_env("A".parse().expect("a name"), "2"),
        &body,
        &[],
        &config(),
    );
    assert_eq!(new["TaskTemplate"]["ContainerSpec"]["Env"], json!([template, "A=2"]));
    for value in ["{{", "{{{", "{{{{{", r#"{{"{{"}}x"#, "{ {}} }}"] {
        let entry = convert::variable_entry("X", value);
        let (_, text) = entry.split_once('=').expect("an entry");
        assert_eq!(convert::variable_value(text), value, "{entry}");
    }
}

#[test]
fn other_routers_of_a_service_are_not_touched() {
    let mut body = legacy(1)["Spec"].clone();
    let redirect = "traefik.http.routers.acme-redirect.rule";
    body["Labels"][redirect] = json!("Host(`old.example`)");
    let main = "traefik.http.routers.odoo-acme-0a1b2c3d.rule";
    body["Labels"][main] = json!("Host(`acme.saasodoo.com`) && !PathPrefix(`/web/database`)");
    let mut route = saasodoo_core::Route::default();
    route.subdomain = Some("shop".parse().expect("a label"));
    let host = "shop.saasodoo.com".parse().expect("a host");
    let new = apply(&InstanceChange::new().route(route), &body, &[host], &config());
    assert_eq!(
        differing(&body, &new),
        [
            "/Labels/saasodoo.host.shop.saasodoo.com",
            "/Labels/saasodoo.route.subdomain",
            &format!("/Labels/{main}"),
        ]
    );
    assert_eq!(
        new["Labels"][main],
        "Host(`shop.saasodoo.com`) && !PathPrefix(`/web/database`)"
    );
}

#[test]
fn a_selector_that_swarm_refuses_is_refused_first() {
    for (key, value, fits) in [
        ("disk", "ssd", true),
        ("saasodoo.example", "a_b-c", true),
        ("example.com/disk", "ssd", false),
        ("disk", "", false),
    ] {
        let mut spec = spec();
        spec.scheduling
            .node_selector
            .insert(key.parse().expect("a key"), value.parse().expect("a value"));
        let answer = convert::check_supported(&spec);
        assert_eq!(answer.is_ok(), fits, "{key}={value}: {answer:?}");
        if let Err(error) = answer {
            assert_eq!(error.field(), Some("scheduling.node_selector"));
        }
    }
}

#[test]
fn what_may_be_secret_is_not_in_what_could_not_be_read() {
    let mut body = legacy(1)["Spec"].clone();
    let container = &mut body["TaskTemplate"]["ContainerSpec"];
    container["Command"] = json!(["odoo", "--password=s3ntinel"]);
    container["Args"] = json!(["s3ntinel"]);
    container["Healthcheck"] = json!({"Test": ["CMD", "curl", "-u", "s3ntinel"]});
    let seen = read_back(&body, &config());
    for field in ["command", "args", "probes"] {
        let left = seen.unparsed.iter().find(|left| left.field == field).expect(field);
        assert_eq!(left.raw, "");
    }
    assert!(!format!("{:?}", seen.unparsed).contains("s3ntinel"));
}

#[test]
fn a_resolved_digest_is_no_part_of_the_spec() {
    let config = config();
    let spec = spec();
    let mut body = render(&spec, &[], &config);
    body["TaskTemplate"]["ContainerSpec"]["Image"] = json!("bitnamilegacy/odoo:17@sha256:00ff");
    body["Labels"]["saasodoo.image.resolved"] = json!("true");
    assert!(spec.diff(&read_back(&body, &config).spec).is_empty());
    body["Labels"]
        .as_object_mut()
        .expect("labels")
        .remove("saasodoo.image.resolved");
    assert_eq!(spec.diff(&read_back(&body, &config).spec)[0].field, "image");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Accepted means applied: whatever is accepted is read back from what was sent.
    #[test]
    fn every_accepted_spec_survives_its_service(spec in strategies::spec(), mounted: bool) {
        let config = config();
        prop_assume!(spec.validate().is_ok() && convert::check_supported(&spec).is_ok());
        prop_assume!(spec.hosts(&config.common.base_domain).is_ok());
        let secrets: Vec<SecretFile> = convert::passwords(&spec)
            .into_iter()
            .filter(|_| mounted)
            .map(|(variable, _)| SecretFile { variable, id: variable.to_owned(), name: variable.to_owned() })
            .collect();
        let body = render(&spec, &secrets, &config);
        let instance = read_back(&body, &config);
        prop_assert!(instance.spec.diff(&spec).is_empty(), "{:?}", instance.spec.diff(&spec));
        prop_assert_eq!(&instance.unparsed, &vec![]);
        prop_assert_eq!(instance.provenance.origin, Origin::Saasodoo);
        prop_assert_eq!(instance.endpoints.hosts, spec.hosts(&config.common.base_domain).expect("hosts"));
        let directory = config.data_root.join(convert::directory_name(&spec));
        let shown = as_shown(&body);
        prop_assert_eq!(crate::facts::data_source(&shown), directory.to_str());
    }
}
