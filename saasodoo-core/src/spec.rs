//! What a caller asks for: the specification of one instance.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::quoted;
use crate::{
    Bytes, Cpu, CustomerId, DatabaseName, EnvName, Error, Host, HttpPath, ImageRef, InstanceId, LabelKey, LabelValue,
    ObjectName, OdooVersion, Result, Secret, Subdomain,
};

/// The variables that the image reads for its first start and that no tenant may set
/// ([bitnami/odoo](https://github.com/bitnami/containers/tree/main/bitnami/odoo#environment-variables)): a tenant who
/// could would reach another tenant's database.
pub const RESERVED_ENVIRONMENT: &[&str] = &[
    "ODOO_DATABASE_HOST",
    "ODOO_DATABASE_PORT_NUMBER",
    "ODOO_DATABASE_NAME",
    "ODOO_DATABASE_USER",
    "ODOO_DATABASE_PASSWORD",
    "ODOO_EMAIL",
    "ODOO_PASSWORD",
    "ODOO_LOAD_DEMO_DATA",
];

/// Everything that makes an instance what it is. Each field changes what a backend renders, or is refused as
/// [`Unsupported`](crate::ErrorKind::Unsupported).
///
/// Made by [`InstanceSpec::new`] or [`Config::instance`](crate::Config::instance), then changed by its `with_*`
/// methods or by its public fields; [`validate`](Self::validate) is called by every backend before anything else.
///
/// ```
/// use saasodoo_core::{Bytes, Cpu, InstanceId, InstanceSpec};
///
/// let spec = InstanceSpec::new(InstanceId::random(), "acme".parse()?, "bitnamilegacy/odoo:17".parse()?)
///     .with_cpu(Cpu::from_millis(2000))
///     .with_memory(Bytes::from_gib(4))
///     .with_storage(Bytes::from_gib(20))
///     .with_env("WORKERS".parse()?, "4");
/// spec.validate()?;
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct InstanceSpec {
    /// The identity.
    pub id: InstanceId,
    /// The tenant's slug, from which names and the default host come.
    pub database_name: DatabaseName,
    /// The name that people see; empty when there is none.
    #[serde(default)]
    pub display_name: String,
    /// Who pays.
    #[serde(default)]
    pub customer_id: Option<CustomerId>,
    /// The image to run.
    pub image: ImageRef,
    /// The version of Odoo in the image. `None`: read from the image's tag where it is one.
    #[serde(default)]
    pub odoo_version: Option<OdooVersion>,
    /// The PostgreSQL database allocated to the instance. `None`: the image's own defaults.
    #[serde(default)]
    pub database: Option<DatabaseEndpoint>,
    /// The first administrator. `None`: the image's own defaults, which are public.
    #[serde(default)]
    pub admin: Option<AdminAccount>,
    /// Whether the first start loads Odoo's demonstration data.
    #[serde(default)]
    pub demo_data: bool,
    /// Processor and memory.
    #[serde(default)]
    pub resources: Resources,
    /// The size of the data volume, or the quota of the data directory.
    pub storage: Bytes,
    /// More environment variables. Not for secrets: they are readable in the platform's API.
    #[serde(default)]
    pub environment: BTreeMap<EnvName, String>,
    /// Host names.
    #[serde(default)]
    pub route: Route,
    /// How the platform finds out that Odoo works.
    #[serde(default)]
    pub probes: Probes,
    /// Metadata about addons, kept with the instance and applied by the caller's own jobs.
    #[serde(default)]
    pub addons: Addons,
    /// More labels on the instance's objects.
    #[serde(default)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Where and how the workload is placed.
    #[serde(default)]
    pub scheduling: Scheduling,
}

/// The PostgreSQL database allocated to one instance.
///
/// After the first start the image keeps these in `odoo.conf`; a later change of the environment alone has no effect
/// there.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseEndpoint {
    /// Host name or address of the server.
    pub host: String,
    /// Port of the server.
    #[serde(default = "default_postgres_port")]
    pub port: u16,
    /// The PostgreSQL database, such as `odoo_4f2a…_0a1b2c3d`.
    pub name: String,
    /// The PostgreSQL role. `None` when it was observed only as a reference to a secret of somebody else.
    #[serde(default)]
    pub user: Option<String>,
    /// The role's password.
    #[serde(default)]
    pub password: Secret,
}

const fn default_postgres_port() -> u16 {
    5432
}

impl DatabaseEndpoint {
    /// An endpoint on port 5432.
    #[must_use]
    pub fn new(host: impl Into<String>, name: impl Into<String>, user: impl Into<String>, password: Secret) -> Self {
        Self {
            host: host.into(),
            port: default_postgres_port(),
            name: name.into(),
            user: Some(user.into()),
            password,
        }
    }
}

/// The first administrator of an instance.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdminAccount {
    /// The e-mail address, which is the login.
    pub email: String,
    /// The password.
    #[serde(default)]
    pub password: Secret,
}

/// Processor and memory of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Resources {
    /// The most processor the instance gets. Default: 1 core.
    pub cpu: Cpu,
    /// The most memory; beyond it the kernel kills the process. Default: 2 GiB.
    pub memory: Bytes,
    /// The processor set aside on the node, fixed at creation. `None`: a quarter of the limit on Kubernetes, nothing on
    /// Swarm.
    pub cpu_request: Option<Cpu>,
    /// The memory set aside on the node, fixed at creation. `None`: half of the limit on Kubernetes, nothing on Swarm.
    pub memory_request: Option<Bytes>,
}

impl Default for Resources {
    fn default() -> Self {
        Self {
            cpu: Cpu::from_millis(1000),
            memory: Bytes::from_gib(2),
            cpu_request: None,
            memory_request: None,
        }
    }
}

/// The host names of an instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Route {
    /// The label under the base domain. `None`: the one made from the database name.
    pub subdomain: Option<Subdomain>,
    /// More hosts, outside the base domain, which the tenant pointed here.
    pub custom_domains: BTreeSet<Host>,
}

/// How the platform finds out that Odoo works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Probes {
    /// The path asked on port 8069. Default: `/web/health`.
    pub path: HttpPath,
    /// Seconds between two questions. Default: 10.
    pub period_seconds: u16,
    /// How long the first start may take, database initialisation included, before the instance is restarted.
    /// Default: 600 s; the system in production allows 420 s.
    pub startup_seconds: u16,
    /// Whether an instance that stops answering is restarted. Default: true.
    pub liveness: bool,
}

impl Default for Probes {
    fn default() -> Self {
        Self {
            path: "/web/health".parse().unwrap_or_else(|_| unreachable!("a valid path")),
            period_seconds: 10,
            startup_seconds: 600,
            liveness: true,
        }
    }
}

/// Metadata about addons, as the system in production stores it (`custom_addons`, `disabled_modules`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Addons {
    /// Technical names of addons that the tenant brought.
    pub custom: BTreeSet<String>,
    /// Technical names of modules that are switched off.
    pub disabled: BTreeSet<String>,
}

/// Where and how the workload is placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Scheduling {
    /// Labels that a node must have; on Swarm, constraints on node labels.
    pub node_selector: BTreeMap<LabelKey, LabelValue>,
    /// Keys of taints that are tolerated. Kubernetes only.
    pub tolerations: BTreeSet<LabelKey>,
    /// The priority class. Kubernetes only.
    pub priority_class: Option<ObjectName>,
    /// How long Odoo may take to stop before it is killed, 1 to 600 s. Default: 45 s, below the minute
    /// after which Swarm starts the next process whether this one has ended or not; Docker's own default is 10 s.
    /// [`Deadlines::termination`](crate::Deadlines::termination) should be longer, or a deletion ends with a timeout
    /// while the process still stops.
    pub stop_grace_seconds: u16,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self {
            node_selector: BTreeMap::new(),
            tolerations: BTreeSet::new(),
            priority_class: None,
            stop_grace_seconds: 45,
        }
    }
}

impl Scheduling {
    /// The grace period as a duration.
    #[must_use]
    pub fn stop_grace(&self) -> Duration {
        Duration::from_secs(self.stop_grace_seconds.into())
    }
}

impl InstanceSpec {
    /// An instance with the default resources and 10 GiB of storage.
    #[must_use]
    pub fn new(id: InstanceId, database_name: DatabaseName, image: ImageRef) -> Self {
        Self {
            id,
            database_name,
            display_name: String::new(),
            customer_id: None,
            image,
            odoo_version: None,
            database: None,
            admin: None,
            demo_data: false,
            resources: Resources::default(),
            storage: Bytes::from_gib(10),
            environment: BTreeMap::new(),
            route: Route::default(),
            probes: Probes::default(),
            addons: Addons::default(),
            labels: BTreeMap::new(),
            scheduling: Scheduling::default(),
        }
    }

    /// Sets the database.
    #[must_use]
    pub fn with_database(mut self, database: DatabaseEndpoint) -> Self {
        self.database = Some(database);
        self
    }

    /// Sets the first administrator.
    #[must_use]
    pub fn with_admin(mut self, email: impl Into<String>, password: Secret) -> Self {
        self.admin = Some(AdminAccount {
            email: email.into(),
            password,
        });
        self
    }

    /// Sets the customer.
    #[must_use]
    pub fn with_customer(mut self, customer: CustomerId) -> Self {
        self.customer_id = Some(customer);
        self
    }

    /// Sets the name that people see.
    #[must_use]
    pub fn with_display_name(mut self, name: impl Into<String>) -> Self {
        self.display_name = name.into();
        self
    }

    /// Sets the image.
    #[must_use]
    pub fn with_image(mut self, image: ImageRef) -> Self {
        self.image = image;
        self
    }

    /// Sets the processor limit.
    #[must_use]
    pub fn with_cpu(mut self, cpu: Cpu) -> Self {
        self.resources.cpu = cpu;
        self
    }

    /// Sets the memory limit.
    #[must_use]
    pub fn with_memory(mut self, memory: Bytes) -> Self {
        self.resources.memory = memory;
        self
    }

    /// Sets the storage size.
    #[must_use]
    pub fn with_storage(mut self, storage: Bytes) -> Self {
        self.storage = storage;
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: EnvName, value: impl Into<String>) -> Self {
        self.environment.insert(name, value.into());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn with_label(mut self, key: LabelKey, value: LabelValue) -> Self {
        self.labels.insert(key, value);
        self
    }

    /// Sets the subdomain.
    #[must_use]
    pub fn with_subdomain(mut self, subdomain: Subdomain) -> Self {
        self.route.subdomain = Some(subdomain);
        self
    }

    /// Adds a custom domain.
    #[must_use]
    pub fn with_custom_domain(mut self, host: Host) -> Self {
        self.route.custom_domains.insert(host);
        self
    }

    /// The name of the instance's objects.
    #[must_use]
    pub fn object_name(&self) -> ObjectName {
        ObjectName::for_instance(&self.database_name, self.id)
    }

    /// The version of Odoo: the one given, else the one in the image's tag (`17`, `17.0`, `17.0-debian-12`).
    #[must_use]
    pub fn effective_version(&self) -> Option<OdooVersion> {
        self.odoo_version
            .or_else(|| self.image.tag()?.split(['-', '_']).next()?.parse().ok())
    }

    /// All hosts, the default one first.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the label made from the database name is reserved or no
    /// valid label, or when a custom domain lies under the base domain, where it could take another tenant's name.
    pub fn hosts(&self, base: &Host) -> Result<Vec<Host>> {
        let default = match &self.route.subdomain {
            Some(subdomain) => subdomain.under(base)?,
            None => self
                .database_name
                .host_label()
                .parse::<Subdomain>()
                .and_then(|label| label.under(base))
                .map_err(|error| {
                    Error::invalid("database_name", error.message().to_owned())
                        .with_advice("choose another database name, or give a subdomain")
                })?,
        };
        let mut hosts = vec![default];
        for host in &self.route.custom_domains {
            if host.is_under(base) {
                return Err(Error::invalid(
                    "route.custom_domains",
                    format!("{host} lies under the platform's own domain {base}"),
                )
                .with_advice("give it as the subdomain instead"));
            }
            hosts.push(host.clone());
        }
        Ok(hosts)
    }

    /// Checks what the types of the fields cannot: ranges, reserved names, texts that others will read.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput), naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.id.is_legacy() {
            return Err(Error::invalid(
                "id",
                "a new instance needs its whole UUID, not its first eight digits",
            ));
        }
        plain_text("display_name", &self.display_name, 255)?;
        if let Some(database) = &self.database {
            database.validate()?;
        }
        if let Some(admin) = &self.admin {
            plain_text("admin.email", &admin.email, 254)?;
            if !admin
                .email
                .split_once('@')
                .is_some_and(|(user, domain)| !user.is_empty() && domain.contains('.'))
            {
                return Err(Error::invalid(
                    "admin.email",
                    format!("{} is not an address", quoted(&admin.email)),
                ));
            }
            secret_given("admin.password", &admin.password)?;
        }
        self.resources.validate()?;
        range("storage", self.storage, Bytes::from_mib(1), Bytes::new(1 << 50))?;
        for (name, value) in &self.environment {
            let bare = name.as_str().strip_suffix("_FILE").unwrap_or(name.as_str());
            if RESERVED_ENVIRONMENT.contains(&bare) {
                return Err(Error::invalid("environment", format!("{name} is set by the platform"))
                    .with_advice("use the fields of the spec for the database, the administrator and demo data"));
            }
            if value.len() > 32 * 1024 || value.contains('\0') {
                return Err(Error::invalid(
                    "environment",
                    format!("the value of {name} is too long or contains NUL"),
                ));
            }
        }
        self.probes.validate()?;
        // Without any grace Kubernetes forgets a pod whose process may still write.
        range(
            "scheduling.stop_grace_seconds",
            self.scheduling.stop_grace_seconds,
            1,
            600,
        )?;
        for addon in self.addons.custom.iter().chain(&self.addons.disabled) {
            if addon.is_empty()
                || addon.len() > 128
                || !addon
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
            {
                return Err(Error::invalid(
                    "addons",
                    format!("{} is not the name of an addon", quoted(addon)),
                ));
            }
        }
        for key in self.labels.keys() {
            if is_our_label(key.as_str()) {
                return Err(Error::invalid("labels", format!("{key} is set by the platform")));
            }
        }
        Ok(())
    }
}

/// True for label keys that this library, the guide's tools, Traefik or the platforms themselves give a meaning.
fn is_our_label(key: &str) -> bool {
    // Traefik reads its labels whatever their case.
    let key = key.to_ascii_lowercase();
    let prefix = key.split('/').next().unwrap_or_default();
    matches!(key.as_str(), "app" | "managed-by" | "instance-id" | "database")
        || ["traefik.", "saasodoo.", "com.docker."]
            .iter()
            .any(|reserved| key.starts_with(reserved))
        || (key.contains('/') && (prefix.ends_with("kubernetes.io") || prefix.ends_with("k8s.io")))
}

impl DatabaseEndpoint {
    fn validate(&self) -> Result<()> {
        server_host(&self.host).map_err(|why| Error::invalid("database.host", why))?;
        server_port(self.port).map_err(|why| Error::invalid("database.port", why))?;
        identifier("database.name", &self.name)?;
        match &self.user {
            Some(user) => identifier("database.user", user)?,
            None => return Err(Error::invalid("database.user", "the role is missing")),
        }
        secret_given("database.password", &self.password)
    }
}

/// Whether this can be the host of a database server.
pub(crate) fn server_host(host: &str) -> Result<(), String> {
    let ok = (1..=253).contains(&host.len())
        && host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    if ok {
        Ok(())
    } else {
        Err(format!("{} is not a host or address", quoted(host)))
    }
}

/// Whether this can be the port of a database server.
pub(crate) fn server_port(port: u16) -> Result<(), String> {
    if port == 0 {
        return Err("0 is not a port between 1 and 65535".to_owned());
    }
    Ok(())
}

impl Resources {
    fn validate(&self) -> Result<()> {
        let Self {
            cpu,
            memory,
            cpu_request,
            memory_request,
        } = self;
        range("resources.cpu", *cpu, Cpu::from_millis(10), Cpu::from_millis(256_000))?;
        range("resources.memory", *memory, Bytes::from_mib(16), Bytes::new(1 << 44))?;
        if cpu_request.is_some_and(|request| request > *cpu) {
            return Err(Error::invalid("resources.cpu_request", "is more than the limit"));
        }
        if memory_request.is_some_and(|request| request > *memory) {
            return Err(Error::invalid("resources.memory_request", "is more than the limit"));
        }
        Ok(())
    }
}

impl Probes {
    fn validate(&self) -> Result<()> {
        range("probes.period_seconds", self.period_seconds, 1, 300)?;
        range(
            "probes.startup_seconds",
            self.startup_seconds,
            self.period_seconds,
            7200,
        )
    }
}

fn range<T: PartialOrd + fmt::Display>(field: &str, value: T, least: T, most: T) -> Result<()> {
    if value < least || value > most {
        return Err(Error::invalid(
            field,
            format!("{value} is not between {least} and {most}"),
        ));
    }
    Ok(())
}

fn identifier(field: &str, text: &str) -> Result<()> {
    let ok = (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if ok {
        Ok(())
    } else {
        Err(Error::invalid(
            field,
            format!("{} is not a PostgreSQL name of letters, digits, `_`, `-`", quoted(text)),
        ))
    }
}

fn plain_text(field: &str, text: &str, most: usize) -> Result<()> {
    if text.len() > most || text.chars().any(char::is_control) {
        return Err(Error::invalid(
            field,
            format!("is longer than {most} bytes or contains control characters"),
        ));
    }
    Ok(())
}

fn secret_given(field: &str, secret: &Secret) -> Result<()> {
    match secret.expose() {
        None => Err(Error::invalid(field, "is missing")),
        Some(value) if value.is_empty() || value.len() > 1024 || value.contains(['\0', '\n', '\r']) => Err(
            Error::invalid(field, "is empty, longer than 1024 bytes, or contains a line break"),
        ),
        Some(_) => Ok(()),
    }
}

/// Values of environment variables are left out: people put secrets there however often they are told not to.
impl fmt::Debug for InstanceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstanceSpec")
            .field("id", &self.id)
            .field("database_name", &self.database_name)
            .field("display_name", &self.display_name)
            .field("customer_id", &self.customer_id)
            .field("image", &self.image)
            .field("odoo_version", &self.odoo_version)
            .field("database", &self.database)
            .field("admin", &self.admin)
            .field("demo_data", &self.demo_data)
            .field("resources", &self.resources)
            .field("storage", &self.storage)
            .field("environment", &self.environment.keys().collect::<Vec<_>>())
            .field("route", &self.route)
            .field("probes", &self.probes)
            .field("addons", &self.addons)
            .field("labels", &self.labels)
            .field("scheduling", &self.scheduling)
            .finish()
    }
}

impl fmt::Debug for DatabaseEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            host,
            port,
            name,
            user,
            password,
        } = self;
        write!(
            f,
            "{}@{host}:{port}/{name} {password:?}",
            user.as_deref().unwrap_or("?")
        )
    }
}

impl fmt::Debug for AdminAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.email, self.password)
    }
}
