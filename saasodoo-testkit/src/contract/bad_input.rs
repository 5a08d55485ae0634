//! Clauses about bad input: each is refused with the field named, before any request, and nothing changes.

use saasodoo_core::{
    AdminAccount, Bytes, Cpu, CreateOptions, DatabaseEndpoint, EnsureOutcome, ErrorKind, Host, InstanceChange,
    InstanceId, InstanceSpec, Secret, UpdateOptions,
};

use super::clause::clause;
use super::ctx::{refused, same, same_spec};
use super::{Clause, Ctx, Stop, Verdict};

// Those that count requests run alone: the counter is everybody's.
pub(super) const CLAUSES: &[Clause] = &[
    clause!("bad_input.legacy_id", legacy_id, "a new instance needs its whole UUID").exclusive(),
    clause!(
        "bad_input.reserved_environment",
        reserved_environment,
        "also in its _FILE form"
    )
    .exclusive(),
    clause!(
        "bad_input.environment_value",
        environment_value,
        "no NUL, not beyond 32 KiB"
    )
    .exclusive(),
    clause!(
        "bad_input.custom_domain_under_base",
        custom_domain,
        "it could take another tenant's name"
    ),
    clause!(
        "bad_input.reserved_host",
        reserved_host,
        "the platform's own names, in any case"
    )
    .exclusive(),
    clause!(
        "bad_input.duplicate_custom_domain",
        duplicate_domain,
        "a custom domain that another instance has is a conflict"
    ),
    clause!(
        "bad_input.resources",
        resources,
        "tiny, huge, and requests above the limits"
    )
    .exclusive(),
    clause!("bad_input.storage", storage, "none, and more than a pebibyte").exclusive(),
    clause!(
        "bad_input.withheld_passwords",
        withheld,
        "a spec that was observed cannot be created with its passwords missing"
    )
    .exclusive(),
    clause!("bad_input.database", database, "hosts, names and roles that are none").exclusive(),
    clause!(
        "bad_input.admin",
        admin,
        "an address that is none, a password with a line break"
    )
    .exclusive(),
    clause!("bad_input.texts", texts, "control characters and endless names").exclusive(),
    clause!("bad_input.reserved_labels", labels, "labels that the platform reads").exclusive(),
    clause!("bad_input.addons", addons, "names that are paths").exclusive(),
    clause!(
        "bad_input.probes",
        probes,
        "periods that are none, and a grace that is none"
    )
    .exclusive(),
    clause!(
        "bad_input.update",
        update,
        "a change to a bad value leaves the instance as it was"
    ),
];

type Change = fn(&mut InstanceSpec);

/// Each change makes a good spec bad: the creation must be refused with this field, without a request.
async fn refuses(ctx: &Ctx, cases: &[(&str, &str, Change)]) -> Verdict {
    for (what, field, change) in cases {
        let mut spec = ctx.spec();
        change(&mut spec);
        let requests = ctx.subject().count_requests();
        let answer = ctx.orchestrator().create(&spec, CreateOptions::new()).await;
        let error = refused(what, answer, &[ErrorKind::InvalidInput])?;
        same(
            &format!("{what}: the field of the error"),
            &error.field(),
            &Some(*field),
        )?;
        same(
            &format!("{what}: the requests"),
            &ctx.subject().count_requests(),
            &requests,
        )?;
        if !spec.id.is_legacy() {
            ctx.nothing_of(spec.id).await.map_err(|stop| stop.within(what))?;
        }
    }
    Ok(())
}

async fn legacy_id(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[("eight digits", "id", |spec| {
            if let Ok(id) = spec.id.short().to_string().parse() {
                spec.id = id;
            }
        })],
    )
    .await
}

fn set(spec: &mut InstanceSpec, name: &str, value: impl Into<String>) {
    if let Ok(name) = name.parse() {
        spec.environment.insert(name, value.into());
    }
}

async fn reserved_environment(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a database host", "environment", |s| {
                set(s, "ODOO_DATABASE_HOST", "evil")
            }),
            ("a password file", "environment", |s| {
                set(s, "ODOO_PASSWORD_FILE", "/etc/passwd")
            }),
            ("a database password", "environment", |s| {
                set(s, "ODOO_DATABASE_PASSWORD", "x")
            }),
        ],
    )
    .await
}

async fn environment_value(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a NUL", "environment", |s| set(s, "A", "a\0b")),
            ("33 KiB", "environment", |s| set(s, "A", "a".repeat(33 * 1024))),
        ],
    )
    .await
}

async fn custom_domain(ctx: &Ctx) -> Verdict {
    let base = ctx.subject().base_domain();
    let domains: [Host; 2] = [format!("other.{base}").parse()?, base.clone()];
    for domain in domains {
        let what = format!("the custom domain {domain}");
        let spec = ctx.spec().with_custom_domain(domain);
        let answer = ctx.orchestrator().create(&spec, CreateOptions::new()).await;
        let error = refused(&what, answer, &[ErrorKind::InvalidInput])?;
        same("the field of the error", &error.field(), &Some("route.custom_domains"))?;
        ctx.nothing_of(spec.id).await?;
    }
    Ok(())
}

async fn reserved_host(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("the database name api", "database_name", |s| {
                if let Ok(name) = "api".parse() {
                    s.database_name = name;
                }
            }),
            ("the database name Billing", "database_name", |s| {
                if let Ok(name) = "Billing".parse() {
                    s.database_name = name;
                }
            }),
        ],
    )
    .await
}

async fn duplicate_domain(ctx: &Ctx) -> Verdict {
    let domain: Host = format!("{}.tenant.example", InstanceId::random().short()).parse()?;
    let first = ctx.spec().with_custom_domain(domain.clone());
    ctx.create_as(&first, CreateOptions::new().stopped(), EnsureOutcome::Created)
        .await?;
    let second = ctx.spec().with_custom_domain(domain);
    let answer = ctx.orchestrator().create(&second, CreateOptions::new()).await;
    refused("create with a taken custom domain", answer, &[ErrorKind::Conflict])?;
    ctx.nothing_of(second.id).await?;
    same_spec(&first, &ctx.get(first.id).await?)
}

async fn resources(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("one byte of memory", "resources.memory", |s| {
                s.resources.memory = Bytes::new(1)
            }),
            ("an exbibyte of memory", "resources.memory", |s| {
                s.resources.memory = Bytes::new(1 << 60)
            }),
            ("no processor", "resources.cpu", |s| {
                s.resources.cpu = Cpu::from_millis(0)
            }),
            ("a million processors", "resources.cpu", |s| {
                s.resources.cpu = Cpu::from_millis(1_000_000_000)
            }),
            ("a memory request above the limit", "resources.memory_request", |s| {
                s.resources.memory_request = Some(Bytes::new(s.resources.memory.get() + 1));
            }),
            ("a processor request above the limit", "resources.cpu_request", |s| {
                s.resources.cpu_request = Some(Cpu::from_millis(s.resources.cpu.millis() + 1));
            }),
        ],
    )
    .await
}

async fn storage(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("no storage", "storage", |s| s.storage = Bytes::ZERO),
            ("two pebibytes", "storage", |s| s.storage = Bytes::new(1 << 51)),
        ],
    )
    .await
}

async fn withheld(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a withheld database password", "database.password", |s| {
                s.database = Some(DatabaseEndpoint::new("db", "odoo", "odoo", Secret::withheld()));
            }),
            ("a withheld administrator's password", "admin.password", |s| {
                s.admin = Some(AdminAccount {
                    email: "admin@tenant.example".to_owned(),
                    password: Secret::withheld(),
                });
            }),
        ],
    )
    .await
}

async fn database(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a host with a blank", "database.host", |s| {
                s.database = Some(DatabaseEndpoint::new("a b", "odoo", "odoo", "p".into()));
            }),
            ("an SQL injection", "database.name", |s| {
                s.database = Some(DatabaseEndpoint::new("db", "d'; DROP TABLE x; --", "odoo", "p".into()));
            }),
            ("an empty role", "database.user", |s| {
                s.database = Some(DatabaseEndpoint::new("db", "odoo", "", "p".into()));
            }),
            ("port 0", "database.port", |s| {
                let mut database = DatabaseEndpoint::new("db", "odoo", "odoo", "p".into());
                database.port = 0;
                s.database = Some(database);
            }),
        ],
    )
    .await
}

async fn admin(ctx: &Ctx) -> Verdict {
    fn account(spec: &mut InstanceSpec, email: &str, password: &str) {
        spec.admin = Some(AdminAccount {
            email: email.to_owned(),
            password: password.into(),
        });
    }
    refuses(
        ctx,
        &[
            ("no address", "admin.email", |s| account(s, "nobody", "x")),
            ("an address of two lines", "admin.email", |s| {
                account(s, "a@b.example\nx", "x")
            }),
            ("a password of two lines", "admin.password", |s| {
                account(s, "a@b.example", "a\nb")
            }),
        ],
    )
    .await
}

async fn texts(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a name of two lines", "display_name", |s| {
                s.display_name = "a\nb".to_owned()
            }),
            ("a name of 300 characters", "display_name", |s| {
                s.display_name = "a".repeat(300)
            }),
        ],
    )
    .await
}

async fn labels(ctx: &Ctx) -> Verdict {
    fn label(spec: &mut InstanceSpec, key: &str) {
        if let (Ok(key), Ok(value)) = (key.parse(), "x".parse()) {
            spec.labels.insert(key, value);
        }
    }
    refuses(
        ctx,
        &[
            ("managed-by", "labels", |s| label(s, "managed-by")),
            ("instance-id", "labels", |s| label(s, "instance-id")),
            ("a label of Kubernetes", "labels", |s| {
                label(s, "app.kubernetes.io/name")
            }),
            ("a label of Traefik", "labels", |s| label(s, "traefik.enable")),
        ],
    )
    .await
}

async fn addons(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a path", "addons", |s| {
                s.addons.custom.insert("../x".to_owned());
            }),
            ("a comma", "addons", |s| {
                s.addons.disabled.insert("a,b".to_owned());
            }),
        ],
    )
    .await
}

async fn probes(ctx: &Ctx) -> Verdict {
    refuses(
        ctx,
        &[
            ("a period of 0", "probes.period_seconds", |s| {
                s.probes.period_seconds = 0
            }),
            ("a start of 0", "probes.startup_seconds", |s| {
                s.probes.startup_seconds = 0
            }),
            ("no time to stop", "scheduling.stop_grace_seconds", |s| {
                s.scheduling.stop_grace_seconds = 0
            }),
            ("hours to stop", "scheduling.stop_grace_seconds", |s| {
                s.scheduling.stop_grace_seconds = 7200
            }),
        ],
    )
    .await
}

async fn update(ctx: &Ctx) -> Verdict {
    let (spec, before) = ctx.resting().await?;
    let mut probes = spec.probes.clone();
    probes.period_seconds = 0;
    let mut addons = spec.addons.clone();
    addons.custom.insert("a/b".to_owned());
    let mut route = spec.route.clone();
    route
        .custom_domains
        .insert(format!("other.{}", ctx.subject().base_domain()).parse()?);
    let cases = [
        ("resources.memory", InstanceChange::new().memory(Bytes::new(1))),
        ("resources.cpu", InstanceChange::new().cpu(Cpu::from_millis(0))),
        ("storage", InstanceChange::new().storage(Bytes::new(1 << 52))),
        (
            "environment",
            InstanceChange::new().set_env("ODOO_DATABASE_PASSWORD".parse()?, "evil"),
        ),
        ("probes.period_seconds", InstanceChange::new().probes(probes)),
        ("addons", InstanceChange::new().addons(addons)),
        ("route.custom_domains", InstanceChange::new().route(route)),
    ];
    for (field, change) in cases {
        let answer = ctx.orchestrator().update(spec.id, &change, UpdateOptions::new()).await;
        let error = refused(
            &format!("update with a bad {field}"),
            answer,
            &[ErrorKind::InvalidInput],
        )?;
        same("the field of the error", &error.field(), &Some(field))?;
    }
    let after = ctx.get(spec.id).await?;
    same_spec(&spec, &after)?;
    same("the revision", &after.provenance.revision, &before.provenance.revision)?;
    let odd = InstanceId::random();
    let answer = ctx
        .orchestrator()
        .update(odd, &InstanceChange::new().memory(Bytes::new(1)), UpdateOptions::new())
        .await;
    match answer {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => Ok(()),
        other => Err(Stop::failed(format!(
            "expected a bad change of an absent instance to be refused, got {other:?}"
        ))),
    }
}
