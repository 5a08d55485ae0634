//! What a spec accepts, and what its formats keep to themselves.

use crate::{AdminAccount, Bytes, Cpu, DatabaseEndpoint, Host, InstanceId, InstanceSpec, OdooVersion, Secret};

fn spec() -> InstanceSpec {
    InstanceSpec::new(
        InstanceId::random(),
        "acme".parse().expect("a name"),
        "odoo:17".parse().expect("an image"),
    )
}

#[test]
fn the_default_spec_is_valid() {
    spec().validate().expect("valid");
    assert_eq!(spec().effective_version(), Some(OdooVersion::new(17)));
    let bitnami = spec().with_image("bitnamilegacy/odoo:18.0-debian-12".parse().expect("an image"));
    assert_eq!(bitnami.effective_version(), Some(OdooVersion::new(18)));
    assert_eq!(
        spec()
            .with_image("odoo:latest".parse().expect("an image"))
            .effective_version(),
        None
    );
}

#[test]
fn bad_values_name_their_field() {
    type Change = fn(&mut InstanceSpec);
    let cases: &[(&str, Change)] = &[
        ("id", |s| s.id = "0a1b2c3d".parse().expect("eight digits")),
        ("display_name", |s| s.display_name = "a\nb".to_owned()),
        ("resources.cpu", |s| s.resources.cpu = Cpu::from_millis(0)),
        ("resources.memory", |s| s.resources.memory = Bytes::new(512)),
        ("resources.memory_request", |s| {
            s.resources.memory_request = Some(Bytes::from_gib(3))
        }),
        ("resources.cpu_request", |s| {
            s.resources.cpu_request = Some(Cpu::from_millis(1001))
        }),
        ("storage", |s| s.storage = Bytes::ZERO),
        ("probes.period_seconds", |s| s.probes.period_seconds = 0),
        ("probes.startup_seconds", |s| s.probes.startup_seconds = 1),
        ("scheduling.stop_grace_seconds", |s| s.scheduling.stop_grace_seconds = 0),
        ("scheduling.stop_grace_seconds", |s| {
            s.scheduling.stop_grace_seconds = 601
        }),
        ("admin.email", |s| {
            s.admin = Some(AdminAccount {
                email: "nobody".to_owned(),
                password: "x".into(),
            });
        }),
        ("admin.password", |s| {
            s.admin = Some(AdminAccount {
                email: "a@b.example".to_owned(),
                password: Secret::withheld(),
            });
        }),
        ("database.host", |s| {
            s.database = Some(DatabaseEndpoint::new("a b", "d", "u", "p".into()))
        }),
        ("database.port", |s| {
            let mut database = DatabaseEndpoint::new("h", "d", "u", "p".into());
            database.port = 0;
            s.database = Some(database);
        }),
        ("database.name", |s| {
            s.database = Some(DatabaseEndpoint::new("h", "d'; --", "u", "p".into()))
        }),
        ("database.user", |s| {
            s.database = Some(DatabaseEndpoint::new("h", "d", "", "p".into()))
        }),
        ("database.password", |s| {
            s.database = Some(DatabaseEndpoint::new("h", "d", "u", Secret::withheld()))
        }),
        ("environment", |s| {
            s.environment
                .insert("ODOO_DATABASE_HOST".parse().expect("a name"), "evil".to_owned());
        }),
        ("environment", |s| {
            s.environment
                .insert("ODOO_PASSWORD_FILE".parse().expect("a name"), "/etc/passwd".to_owned());
        }),
        ("labels", |s| {
            s.labels
                .insert("managed-by".parse().expect("a key"), "me".parse().expect("a value"));
        }),
        ("labels", |s| {
            s.labels.insert(
                "app.kubernetes.io/name".parse().expect("a key"),
                "x".parse().expect("a value"),
            );
        }),
        ("labels", |s| {
            s.labels.insert(
                "traefik.enable".parse().expect("a key"),
                "true".parse().expect("a value"),
            );
        }),
        ("labels", |s| {
            s.labels.insert(
                "Traefik.HTTP.routers.x.rule".parse().expect("a key"),
                "x".parse().expect("a value"),
            );
        }),
        ("addons", |s| {
            s.addons.custom.insert("../x".to_owned());
        }),
    ];
    for (field, change) in cases {
        let mut spec = spec();
        change(&mut spec);
        let error = spec.validate().expect_err(field);
        assert_eq!(error.field(), Some(*field), "{error}");
        assert_eq!(error.kind(), crate::ErrorKind::InvalidInput);
    }
}

#[test]
fn hosts_are_default_then_custom() {
    let base: Host = "saasodoo.example".parse().expect("a host");
    let hosts = |spec: InstanceSpec| {
        spec.hosts(&base)
            .map(|h| h.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(hosts(spec()).expect("hosts"), ["acme.saasodoo.example"]);
    let custom = spec()
        .with_subdomain("shop".parse().expect("a label"))
        .with_custom_domain("a.example".parse().expect("a host"));
    assert_eq!(hosts(custom).expect("hosts"), ["shop.saasodoo.example", "a.example"]);
    let stolen = spec().with_custom_domain("other.saasodoo.example".parse().expect("a host"));
    assert_eq!(hosts(stolen).expect_err("stolen").field(), Some("route.custom_domains"));
    let mut reserved = spec();
    reserved.database_name = "API".parse().expect("a name");
    assert!(hosts(reserved).expect_err("reserved").message().contains("reserved"));
}

#[test]
fn no_format_shows_a_secret() {
    let spec = spec()
        .with_database(DatabaseEndpoint::new("h", "d", "u", "s3ntinel".into()))
        .with_admin("a@b.example", "s3ntinel".into())
        .with_env("TOKEN".parse().expect("a name"), "s3ntinel");
    assert!(!format!("{spec:?}{spec:#?}").contains("s3ntinel"));
    let mut json = serde_json::to_value(&spec).expect("json");
    json["environment"].take();
    assert!(!json.to_string().contains("s3ntinel"));
}
