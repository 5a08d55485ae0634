//! Host names: what a tenant types never reaches a routing rule unchecked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{MAX_LABEL, quoted, serde_as_text};
use crate::{Error, Result};

/// First labels that belong to the platform itself and that no tenant may take under the base domain: the hosts of
/// the system in production, and the ones that mail and browsers treat specially.
pub const RESERVED_LABELS: &[&str] = &[
    "admin",
    "api",
    "app",
    "auth",
    "autoconfig",
    "autodiscover",
    "billing",
    "billing-admin",
    "dashboard",
    "docs",
    "ftp",
    "grafana",
    "imap",
    "killbill",
    "localhost",
    "mail",
    "mx",
    "notification",
    "ns1",
    "ns2",
    "pgadmin",
    "pop",
    "postmaster",
    "prometheus",
    "rabbitmq",
    "registry",
    "smtp",
    "status",
    "support",
    "traefik",
    "wpad",
    "www",
];

/// A full host name in lower case: labels of letters, digits and inner hyphens, at least two of them, 253 bytes at most
/// (RFC 1123). International names are given in their ASCII form (`xn--…`).
///
/// ```
/// use saasodoo_core::Host;
///
/// assert_eq!("Shop.Example.com".parse::<Host>()?.as_str(), "shop.example.com");
/// assert!("shop.example.com`) || Host(`evil.com".parse::<Host>().is_err());
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

impl Host {
    /// The host name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True when the name lies under `domain` (or is it).
    #[must_use]
    pub fn is_under(&self, domain: &Self) -> bool {
        self == domain || self.0.strip_suffix(&domain.0).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for Host {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: String| {
            Err(Error::invalid("host", format!("{} {why}", quoted(text)))
                .with_advice("use a full host name such as shop.example.com, international names as xn--…"))
        };
        if text.len() > 253 {
            return fail(format!("is {} bytes long, 253 is the limit", text.len()));
        }
        let lower = text.to_ascii_lowercase();
        if !lower.contains('.') {
            return fail("has no domain".to_owned());
        }
        for label in lower.split('.') {
            if let Err(why) = check_label(label) {
                return fail(why);
            }
        }
        if lower
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
        {
            return fail("is an IP address or ends in a number".to_owned());
        }
        Ok(Self(lower))
    }
}

/// A host given by its first label, to be completed with the base domain.
///
/// ```
/// use saasodoo_core::{Host, Subdomain};
///
/// let host = "shop".parse::<Subdomain>()?.under(&"saasodoo.example".parse()?)?;
/// assert_eq!(host.as_str(), "shop.saasodoo.example");
/// assert!("api".parse::<Subdomain>().is_err(), "reserved for the platform");
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subdomain(String);

impl Subdomain {
    /// The label.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The full host name under a base domain.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) when the whole is too long.
    pub fn under(&self, base: &Host) -> Result<Host> {
        format!("{}.{base}", self.0).parse()
    }
}

impl FromStr for Subdomain {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let lower = text.to_ascii_lowercase();
        let fail = |why: String| Err(Error::invalid("subdomain", format!("{} {why}", quoted(text))));
        if let Err(why) = check_label(&lower) {
            return fail(why);
        }
        if RESERVED_LABELS.contains(&lower.as_str()) {
            return fail("is reserved for the platform".to_owned());
        }
        Ok(Self(lower))
    }
}

fn check_label(label: &str) -> Result<(), String> {
    if label.is_empty() {
        return Err("has an empty label".to_owned());
    }
    if label.len() > MAX_LABEL {
        return Err(format!(
            "has a label of {} bytes, {MAX_LABEL} is the limit",
            label.len()
        ));
    }
    if let Some(bad) = label.chars().find(|c| !(c.is_ascii_alphanumeric() || *c == '-')) {
        return Err(format!("contains {bad:?}"));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err("has a label that starts or ends with a hyphen".to_owned());
    }
    Ok(())
}

macro_rules! text_type {
    ($($type:ty),+) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    )+};
}

text_type!(Host, Subdomain);
serde_as_text!(Host, Subdomain);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_hosts_are_refused_with_the_reason() {
        for (host, reason) in [
            ("", "has no domain"),
            ("localhost", "has no domain"),
            ("a..b", "empty label"),
            ("a.b.", "empty label"),
            ("-a.example", "hyphen"),
            ("a`.example", "contains '`'"),
            ("a b.example", "contains ' '"),
            ("a/b.example", "contains '/'"),
            ("bücher.example", "contains 'ü'"),
            ("*.example", "contains '*'"),
            ("10.0.0.1", "IP address"),
            ("a.example:80", "contains ':'"),
        ] {
            let error = host.parse::<Host>().expect_err(host);
            assert!(error.message().contains(reason), "{host}: {error}");
        }
        let long = format!("{}.example", "a".repeat(64));
        assert!(long.parse::<Host>().expect_err("long").message().contains("64 bytes"));
    }

    #[test]
    fn reserved_labels_are_refused_in_any_case() {
        for label in ["api", "API", "auth", "app", "registry", "www"] {
            let error = label.parse::<Subdomain>().expect_err(label);
            assert!(error.message().contains("reserved"), "{error}");
        }
        assert!("api2".parse::<Subdomain>().is_ok());
    }

    #[test]
    fn under_is_by_label() {
        let base: Host = "saasodoo.example".parse().expect("a host");
        assert!("a.saasodoo.example".parse::<Host>().expect("a host").is_under(&base));
        assert!(!"asaasodoo.example".parse::<Host>().expect("a host").is_under(&base));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_safe_in_a_rule(text in "\\PC{0,40}") {
            for accepted in [text.parse::<Host>().map(|h| h.to_string()), text.parse::<Subdomain>().map(|s| s.to_string())]
                .into_iter()
                .flatten()
            {
                prop_assert!(accepted.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-'));
            }
        }
    }
}
