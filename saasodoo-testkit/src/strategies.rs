//! Strategies for property tests: names, specs and changes that are valid in every way the types allow.
//!
//! ```
//! use proptest::prelude::*;
//! use saasodoo_testkit::strategies;
//!
//! proptest!(|(spec in strategies::spec(), change in strategies::change())| {
//!     prop_assert!(spec.validate().is_ok());
//!     if let Ok(changed) = change.apply_to(&spec) {
//!         prop_assert!(changed.validate().is_ok());
//!     }
//! });
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use proptest::collection::{btree_map, btree_set};
use proptest::option;
use proptest::prelude::*;
use saasodoo_core::{
    Addons, AdminAccount, Bytes, Cpu, CustomerId, DatabaseEndpoint, DatabaseName, EnvName, Host, ImageRef,
    InstanceChange, InstanceId, InstanceSpec, LabelKey, LabelValue, OdooVersion, Probes, RESERVED_ENVIRONMENT,
    RESERVED_LABELS, Resources, Route, Scheduling, Subdomain,
};
use uuid::Uuid;

/// Turns text that is valid by construction into its type.
fn typed<T>(text: impl Strategy<Value = String>) -> impl Strategy<Value = T>
where
    T: FromStr + fmt::Debug,
{
    text.prop_filter_map("is no value of the type", |text| text.parse().ok())
}

fn free_label(label: &str) -> bool {
    !RESERVED_LABELS.contains(&label)
}

/// Any id.
pub fn instance_id() -> impl Strategy<Value = InstanceId> {
    any::<u128>().prop_map(|bits| InstanceId::new(Uuid::from_u128(bits)))
}

/// Any tenant's name whose default host is not reserved: short and long ones, with upper case, `_` and `-`.
pub fn database_name() -> impl Strategy<Value = DatabaseName> {
    typed::<DatabaseName>("[A-Za-z0-9][A-Za-z0-9_-]{0,49}")
        .prop_filter("its host is reserved", |name| free_label(&name.host_label()))
}

/// Any image that the simulation and the testbed's stub would take for one that exists.
pub fn image() -> impl Strategy<Value = ImageRef> {
    typed("([a-z]{1,8}\\.example(:[0-9]{2,4})?/)?[a-z0-9]{1,10}(/odoo)?:1[0-9](\\.0)?(@sha256:[0-9a-f]{64})?")
}

/// Any processor and memory within the limits, with requests that are not above them.
pub fn resources() -> impl Strategy<Value = Resources> {
    let cpu = (10u32..=256_000).prop_flat_map(|cpu| (Just(cpu), option::of(1..=cpu)));
    let memory = (16u32..=65_536).prop_flat_map(|memory| (Just(memory), option::of(1..=memory)));
    (cpu, memory).prop_map(|((cpu, cpu_request), (memory, memory_request))| {
        let mut resources = Resources::default();
        resources.cpu = Cpu::from_millis(cpu);
        resources.memory = Bytes::from_mib(memory);
        resources.cpu_request = cpu_request.map(Cpu::from_millis);
        resources.memory_request = memory_request.map(Bytes::from_mib);
        resources
    })
}

/// Any routing: with and without a subdomain, custom domains outside of every platform's own.
pub fn route() -> impl Strategy<Value = Route> {
    let subdomain = typed::<Subdomain>("[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?");
    let domain = typed::<Host>("([a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?\\.){1,3}custom");
    (option::of(subdomain), btree_set(domain, 0..3)).prop_map(|(subdomain, custom_domains)| {
        let mut route = Route::default();
        route.subdomain = subdomain;
        route.custom_domains = custom_domains;
        route
    })
}

/// Any probes within the limits.
pub fn probes() -> impl Strategy<Value = Probes> {
    (
        typed("/[a-z]{0,10}(/[a-z0-9._-]{1,5})?"),
        1u16..=300,
        300u16..=7200,
        any::<bool>(),
    )
        .prop_map(|(path, period, startup, liveness)| {
            let mut probes = Probes::default();
            probes.path = path;
            probes.period_seconds = period;
            probes.startup_seconds = startup;
            probes.liveness = liveness;
            probes
        })
}

/// Any metadata about addons.
pub fn addons() -> impl Strategy<Value = Addons> {
    let names = || btree_set("[a-z][a-z0-9_]{0,20}", 0..3);
    (names(), names()).prop_map(|(custom, disabled): (BTreeSet<String>, BTreeSet<String>)| {
        let mut addons = Addons::default();
        addons.custom = custom;
        addons.disabled = disabled;
        addons
    })
}

/// Any environment, with values that need quoting, without the reserved names and without those that make the stub
/// image misbehave.
pub fn environment() -> impl Strategy<Value = BTreeMap<EnvName, String>> {
    let name = typed::<EnvName>("[A-Z_][A-Z0-9_]{0,20}").prop_filter("is reserved", |name| {
        let bare = name.as_str().strip_suffix("_FILE").unwrap_or(name.as_str());
        !RESERVED_ENVIRONMENT.contains(&bare) && !["CRASH", "EAT_MB", "SLOW", "UNREADY"].contains(&bare)
    });
    let value = prop_oneof!["[ -~]{0,40}", Just("a=b \"c\" 'd' $E\n# ü".to_owned())];
    btree_map(name, value, 0..4)
}

/// Any labels that are the tenant's to choose.
pub fn labels() -> impl Strategy<Value = BTreeMap<LabelKey, LabelValue>> {
    let key = typed("x-[a-z0-9]{1,20}|tenant\\.example/[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?");
    btree_map(key, typed("([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?"), 0..3)
}

/// Any placement that every backend knows: without tolerations and priority.
pub fn scheduling() -> impl Strategy<Value = Scheduling> {
    let selector = btree_map(typed("[a-z]{1,10}"), typed("[a-z0-9]{1,10}"), 0..2);
    (selector, 1u16..=600).prop_map(|(node_selector, grace)| {
        let mut scheduling = Scheduling::default();
        scheduling.node_selector = node_selector;
        scheduling.stop_grace_seconds = grace;
        scheduling
    })
}

fn secret() -> impl Strategy<Value = saasodoo_core::Secret> {
    "[!-~]{1,40}".prop_map(saasodoo_core::Secret::new)
}

/// Any valid spec.
pub fn spec() -> impl Strategy<Value = InstanceSpec> {
    let identity = (instance_id(), database_name(), image(), option::of(any::<u128>()));
    let identifier = || "[a-z][a-z0-9_]{0,30}";
    let database =
        (identifier(), 1u16.., identifier(), identifier(), secret()).prop_map(|(host, port, name, user, password)| {
            let mut database = DatabaseEndpoint::new(host, name, user, password);
            database.port = port;
            database
        });
    let admin =
        ("[a-z]{1,10}@[a-z]{1,10}\\.example", secret()).prop_map(|(email, password)| AdminAccount { email, password });
    let first_start = (option::of(database), option::of(admin), any::<bool>(), "[ -~äöü]{0,30}");
    let sizes = (resources(), 1u32..=1_000_000);
    let rest = (environment(), route(), probes(), addons(), labels(), scheduling());
    (identity, first_start, sizes, rest).prop_map(
        |((id, name, image, customer), (database, admin, demo_data, display_name), (resources, storage), rest)| {
            let mut spec = InstanceSpec::new(id, name, image);
            spec.customer_id = customer.map(|bits| CustomerId::new(Uuid::from_u128(bits)));
            spec.database = database;
            spec.admin = admin;
            spec.demo_data = demo_data;
            spec.display_name = display_name;
            spec.resources = resources;
            spec.storage = Bytes::from_mib(storage);
            (
                spec.environment,
                spec.route,
                spec.probes,
                spec.addons,
                spec.labels,
                spec.scheduling,
            ) = rest;
            spec
        },
    )
}

/// Any change, of nothing, of one thing or of several. Storage may be smaller than what an instance has, which is
/// refused.
pub fn change() -> impl Strategy<Value = InstanceChange> {
    let sizes = (
        option::of((10u32..=256_000).prop_map(Cpu::from_millis)),
        option::of((16u32..=65_536).prop_map(Bytes::from_mib)),
        option::of((1u32..=1_000_000).prop_map(Bytes::from_mib)),
    );
    let image = (option::of(image()), option::of((10u16..=19).prop_map(OdooVersion::new)));
    let environment = (environment(), any::<bool>());
    let labels = (labels(), any::<bool>());
    let rest = (option::of(route()), option::of(probes()), option::of(addons()));
    (image, sizes, environment, labels, rest).prop_map(
        |((image, version), (cpu, memory, storage), (environment, set), (labels, set_labels), rest)| {
            let mut change = InstanceChange::new();
            change.image = image;
            change.odoo_version = version;
            change.cpu = cpu;
            change.memory = memory;
            change.storage = storage;
            change.environment = environment
                .into_iter()
                .map(|(name, value)| (name, set.then_some(value)))
                .collect();
            change.labels = labels
                .into_iter()
                .map(|(key, value)| (key, set_labels.then_some(value)))
                .collect();
            (change.route, change.probes, change.addons) = rest;
            change
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest! {
        #[test]
        fn what_is_made_is_valid(spec in spec(), change in change()) {
            let base: Host = "saasodoo.example".parse().expect("a host");
            prop_assert_eq!(spec.validate().map_err(|error| error.to_string()), Ok(()));
            prop_assert_eq!(spec.hosts(&base).map(|_| ()).map_err(|error| error.to_string()), Ok(()));
            if let Ok(changed) = change.apply_to(&spec) {
                prop_assert_eq!(changed.validate().map_err(|error| error.to_string()), Ok(()));
            }
        }
    }
}
