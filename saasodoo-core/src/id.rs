//! Who an instance is: its id, its customer, and the names derived from it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{Error, Result};

/// The longest DNS label, and so the longest name of a Kubernetes Service and of a Swarm service (RFC 1035).
pub const MAX_LABEL: usize = 63;

/// The identity of an instance: a UUID.
///
/// Objects written by the migration guide's Python client carry only the first eight hexadecimal digits. Such an
/// instance is listed under a [legacy](Self::is_legacy) id of those digits; it can be operated by that id, and by the
/// full UUID that the calling service knows, as long as only one instance [matches](Self::matches).
///
/// ```
/// use saasodoo_core::InstanceId;
///
/// let id: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse()?;
/// assert_eq!(id.short().to_string(), "0a1b2c3d");
/// let legacy: InstanceId = "0a1b2c3d".parse()?;
/// assert!(legacy.is_legacy() && legacy.matches(id) && legacy != id);
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(Repr);

#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Full(Uuid),
    Legacy(ShortId),
}

/// The first eight hexadecimal digits of an [`InstanceId`], as names and the guide's `instance-id` label carry them.
/// Two of 10,000 instances share one with a probability of about 1.2 %: it identifies nothing by itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShortId(u32);

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl InstanceId {
    /// The id that is this UUID.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(Repr::Full(uuid))
    }

    /// A new random id (UUID version 4).
    #[must_use]
    pub fn random() -> Self {
        Self::new(Uuid::new_v4())
    }

    /// The first eight hexadecimal digits.
    #[must_use]
    pub fn short(self) -> ShortId {
        match self.0 {
            Repr::Full(uuid) => ShortId(uuid.as_fields().0),
            Repr::Legacy(short) => short,
        }
    }

    /// The whole UUID, unless only eight digits are known.
    #[must_use]
    pub fn uuid(self) -> Option<Uuid> {
        match self.0 {
            Repr::Full(uuid) => Some(uuid),
            Repr::Legacy(_) => None,
        }
    }

    /// True when only the first eight digits are known. A new instance cannot be created under such an id.
    #[must_use]
    pub fn is_legacy(self) -> bool {
        matches!(self.0, Repr::Legacy(_))
    }

    /// True when both can be the same instance: they are equal, or one is legacy and the digits agree.
    #[must_use]
    pub fn matches(self, other: Self) -> bool {
        self == other || ((self.is_legacy() || other.is_legacy()) && self.short() == other.short())
    }
}

impl From<Uuid> for InstanceId {
    fn from(uuid: Uuid) -> Self {
        Self::new(uuid)
    }
}

impl FromStr for InstanceId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let short = u32::from_str_radix(text, 16).map_err(|e| Error::invalid("id", e.to_string()))?;
            return Ok(Self(Repr::Legacy(ShortId(short))));
        }
        // `parse_str` also takes braces and URNs; those are not written anywhere in this system.
        let plain = matches!(text.len(), 32 | 36) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        plain
            .then(|| Uuid::parse_str(text).ok())
            .flatten()
            .map(Self::new)
            .ok_or_else(|| {
                Error::invalid("id", format!("{} is not a UUID", quoted(text)))
                    .with_advice("give the instance's UUID, or its first eight hexadecimal digits in lower case")
            })
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Repr::Full(uuid) => fmt::Display::fmt(&uuid, f),
            Repr::Legacy(short) => fmt::Display::fmt(&short, f),
        }
    }
}

impl fmt::Debug for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The customer who pays for an instance: a UUID of the billing system.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CustomerId(Uuid);

impl CustomerId {
    /// The id that is this UUID.
    #[must_use]
    pub const fn new(uuid: Uuid) -> Self {
        Self(uuid)
    }

    /// A new random id (UUID version 4).
    #[must_use]
    pub fn random() -> Self {
        Self(Uuid::new_v4())
    }

    /// The UUID.
    #[must_use]
    pub const fn uuid(self) -> Uuid {
        self.0
    }
}

impl FromStr for CustomerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Uuid::parse_str(text)
            .map(Self)
            .map_err(|_| Error::invalid("customer_id", format!("{} is not a UUID", quoted(text))))
    }
}

impl fmt::Display for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for CustomerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The tenant's slug, called `database_name` in the system in production: 1 to 50 letters, digits, `_` and `-`, the
/// first a letter or digit. It is not the name of the PostgreSQL database: that is
/// [`DatabaseEndpoint::name`](crate::DatabaseEndpoint::name).
///
/// ```
/// use saasodoo_core::{DatabaseName, InstanceId};
///
/// let name: DatabaseName = "Acme_Corp".parse()?;
/// assert_eq!(name.host_label(), "acme-corp");
/// assert!("../etc".parse::<DatabaseName>().is_err());
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The longest name, in bytes.
    pub const MAX: usize = 50;

    /// The name as the tenant chose it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as a DNS label for the default host: lower case, `_` as `-`, no `-` at the ends. Two names can share
    /// one, which is why hosts are checked for uniqueness.
    #[must_use]
    pub fn host_label(&self) -> String {
        let mapped: String = self
            .0
            .chars()
            .map(|c| if c == '_' { '-' } else { c.to_ascii_lowercase() })
            .collect();
        mapped.trim_matches('-').to_owned()
    }

    /// The part of an object's name that stands for the tenant: the host label, at most `max` bytes, with a hash of
    /// the original when the mapping lost something, so that different names stay different.
    fn slug(&self, max: usize) -> String {
        let label = self.host_label();
        if label == self.0 && label.len() <= max {
            return label;
        }
        let hash = Sha256::digest(self.0.as_bytes());
        let hash = format!("{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2]);
        let kept = label
            .get(..max - hash.len() - 1)
            .unwrap_or(&label)
            .trim_end_matches('-');
        format!("{kept}-{hash}")
    }
}

impl FromStr for DatabaseName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: &str| {
            Err(Error::invalid("database_name", format!("{} {why}", quoted(text)))
                .with_advice("use 1 to 50 ASCII letters, digits, `_` and `-`, starting with a letter or digit"))
        };
        let Some(first) = text.bytes().next() else {
            return fail("is empty");
        };
        if text.len() > Self::MAX {
            return fail(&format!("is {} bytes long", text.len()));
        }
        if !first.is_ascii_alphanumeric() {
            return fail("does not start with a letter or digit");
        }
        if let Some(bad) = text
            .chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
        {
            return fail(&format!("contains {bad:?}"));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The name of an instance's objects on a backend: a DNS-1035 label of at most 63 characters.
///
/// ```
/// use saasodoo_core::ObjectName;
///
/// let id = "0a1b2c3d-1111-4222-8333-444455556666".parse()?;
/// assert_eq!(ObjectName::for_instance(&"acme".parse()?, id).as_str(), "odoo-acme-0a1b2c3d");
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName(String);

impl ObjectName {
    /// `odoo-{slug}-{short}`, with the slug mapped and cut so that the whole is a valid label.
    #[must_use]
    pub fn for_instance(database_name: &DatabaseName, id: InstanceId) -> Self {
        let fixed = "odoo--".len() + 8;
        Self(format!("odoo-{}-{}", database_name.slug(MAX_LABEL - fixed), id.short()))
    }

    /// Accepts a name that exists on a backend, after checking that it can be put into a URL path: a DNS-1123
    /// subdomain of at most 253 bytes on Kubernetes; Swarm also allows `_` and upper case.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for anything else.
    pub fn existing(text: &str) -> Result<Self> {
        let ok = (1..=253).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
            && text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && !text.contains("..");
        if ok {
            Ok(Self(text.to_owned()))
        } else {
            Err(Error::invalid(
                "name",
                format!("{} is not a name of an object", quoted(text)),
            ))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// The text as an error shows it: quoted, escaped and cut.
pub(crate) fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// Serde by way of `Display` and `FromStr`, for the types whose text is their only form.
macro_rules! serde_as_text {
    ($($type:ty),+ $(,)?) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}
pub(crate) use serde_as_text;

impl FromStr for ObjectName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::existing(text)
    }
}

serde_as_text!(InstanceId, CustomerId, DatabaseName, ObjectName);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn is_dns_1035_label(text: &str) -> bool {
        (1..=MAX_LABEL).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && text.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
            && !text.ends_with('-')
    }

    proptest! {
        #[test]
        fn every_accepted_name_gives_a_valid_label(name in "[A-Za-z0-9][A-Za-z0-9_-]{0,49}", id: u128) {
            let name: DatabaseName = name.parse().expect("the grammar of the type");
            let id = InstanceId::new(Uuid::from_u128(id));
            let object = ObjectName::for_instance(&name, id);
            prop_assert!(is_dns_1035_label(object.as_str()), "{object}");
            prop_assert!(object.as_str().ends_with(&id.short().to_string()));
            let label = name.host_label();
            prop_assert!(!label.is_empty() && !label.starts_with('-') && !label.ends_with('-'));
        }

        #[test]
        fn names_that_differ_stay_different(
            names in proptest::collection::hash_set("[aA][bB_-]{0,3}[a-b]{0,46}", 2..40), id: u128,
        ) {
            let id = InstanceId::new(Uuid::from_u128(id));
            let mut seen = HashMap::new();
            for name in names {
                let object = ObjectName::for_instance(&name.parse().expect("the grammar of the type"), id);
                if let Some(other) = seen.insert(object.clone(), name.clone()) {
                    return Err(TestCaseError::fail(format!("{name} and {other} both give {object}")));
                }
            }
        }

        #[test]
        fn anything_else_is_refused_and_nothing_panics(text in "\\PC{0,70}") {
            if let Ok(name) = text.parse::<DatabaseName>() {
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-'));
            }
            let _ = text.parse::<InstanceId>();
            if let Ok(name) = ObjectName::existing(&text) {
                prop_assert!(!name.as_str().contains('/') && !name.as_str().contains('?'));
            }
        }

        #[test]
        fn ids_survive_their_text(id: u128) {
            let id = InstanceId::new(Uuid::from_u128(id));
            prop_assert_eq!(id, id.to_string().parse().expect("its own text"));
            let legacy: InstanceId = id.short().to_string().parse().expect("eight digits");
            prop_assert!(legacy.is_legacy() && legacy.matches(id) && id.matches(legacy) && legacy != id);
        }
    }

    #[test]
    fn hostile_names_are_refused_with_the_reason() {
        for (name, reason) in [
            ("", "is empty"),
            ("../x", "does not start with a letter or digit"),
            ("a/../b", "contains '/'"),
            ("a`b", "contains '`'"),
            ("a\"b", "contains '\"'"),
            ("a b", "contains ' '"),
            ("café", "contains 'é'"),
            (&"a".repeat(64), "is 64 bytes long"),
        ] {
            let error = name.parse::<DatabaseName>().expect_err(name);
            assert!(error.message().contains(reason), "{error}");
            assert_eq!(error.field(), Some("database_name"));
        }
    }

    #[test]
    fn ids_in_other_notations_are_refused() {
        for text in [
            "",
            "0A1B2C3D",
            "0a1b2c3",
            "{0a1b2c3d-1111-4222-8333-444455556666}",
            "urn:uuid:x",
            "0a1b2c3d/..",
        ] {
            assert!(text.parse::<InstanceId>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_that_are_both_full_match_only_when_equal() {
        let a: InstanceId = "0a1b2c3d-1111-4222-8333-444455556666".parse().expect("a UUID");
        let b: InstanceId = "0a1b2c3d-1111-4222-8333-444455556667".parse().expect("a UUID");
        assert!(!a.matches(b) && a.matches(a) && a.short() == b.short());
    }
}
