//! Specs for tests, ready to use.

use saasodoo_core::{CustomerId, DatabaseEndpoint, EnvName, InstanceId, InstanceSpec};

/// The image of [`spec`]: the testbed's stand-in for Odoo, which the in-memory backend imitates.
pub const IMAGE: &str = "saasodoo/odoo-stub:17";

/// A valid spec under a new random id, with a database and an administrator. Two specs of different names have
/// different hosts.
///
/// ```
/// let spec = saasodoo_testkit::fixtures::spec("acme");
/// assert!(spec.validate().is_ok());
/// ```
///
/// # Panics
/// When the name is no database name.
#[must_use]
pub fn spec(name: &str) -> InstanceSpec {
    spec_with_id(name, InstanceId::random())
}

/// As [`spec`], under this id.
///
/// # Panics
/// When the name is no database name.
#[must_use]
pub fn spec_with_id(name: &str, id: InstanceId) -> InstanceSpec {
    let short = id.short();
    let database = DatabaseEndpoint::new(
        "postgres",
        format!("odoo_{short}"),
        format!("odoo_{short}"),
        "database-password".into(),
    );
    InstanceSpec::new(id, parsed(name), parsed(IMAGE))
        .with_database(database)
        .with_admin("admin@tenant.example", "admin-password".into())
}

/// As [`spec`], with a variable that makes the image misbehave: `CRASH`, `EAT_MB`, `SLOW` or `UNREADY`.
///
/// # Panics
/// When the name is no database name, or the variable's is none.
#[must_use]
pub fn misbehaving(name: &str, variable: &str, value: &str) -> InstanceSpec {
    spec(name).with_env(parsed::<EnvName>(variable), value)
}

/// So many specs of one customer, under ids and names that are the same in every run.
#[must_use]
pub fn fleet(size: u32) -> Vec<InstanceSpec> {
    let customer = CustomerId::new(uuid::Uuid::from_u128(1));
    (1..=size)
        .map(|number| spec_with_id(&format!("tenant-{number}"), id(number)).with_customer(customer))
        .collect()
}

/// An id that is the same in every run.
#[must_use]
pub fn id(number: u32) -> InstanceId {
    InstanceId::new(uuid::Uuid::from_u64_pair(u64::from(number) << 32, u64::from(number)))
}

pub(crate) fn image(text: &str) -> saasodoo_core::ImageRef {
    parsed(text)
}

fn parsed<T: std::str::FromStr<Err = saasodoo_core::Error>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_fleet_is_valid_and_has_no_clashes() {
        let fleet = fleet(100);
        let base = "saasodoo.example".parse().expect("a host");
        let mut names = BTreeSet::new();
        for spec in &fleet {
            spec.validate().expect("valid");
            assert!(names.insert(spec.object_name().to_string()));
            assert!(names.insert(spec.hosts(&base).expect("hosts")[0].to_string()));
        }
        assert_eq!(fleet, super::fleet(100));
    }
}
