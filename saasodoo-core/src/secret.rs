//! Values that must not be seen.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};

/// A password or another value that is kept out of every log, label, error and serialised form.
///
/// An observation that did not read the secret, because that would need a request for each instance, holds a
/// [withheld](Self::withheld) one: it equals nothing but another withheld one and cannot be exposed.
///
/// ```
/// use saasodoo_core::Secret;
///
/// let password = Secret::new("hunter2");
/// assert_eq!(format!("{password:?}"), "[redacted]");
/// assert_eq!(password.expose(), Some("hunter2"));
/// assert_eq!(Secret::withheld().expose(), None);
/// ```
#[derive(Clone, Default)]
pub struct Secret(Option<SecretString>);

impl Secret {
    /// Takes charge of a secret value. Its memory is wiped when it is dropped.
    #[must_use]
    pub fn new(value: impl Into<String>) -> Self {
        Self(Some(SecretString::from(value.into())))
    }

    /// A secret that exists and was not read.
    #[must_use]
    pub const fn withheld() -> Self {
        Self(None)
    }

    /// True when the value was not read.
    #[must_use]
    pub const fn is_withheld(&self) -> bool {
        self.0.is_none()
    }

    /// The value, for writing it to where it belongs. `None` when it was withheld.
    #[must_use]
    pub fn expose(&self) -> Option<&str> {
        self.0.as_ref().map(ExposeSecret::expose_secret)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.expose() == other.expose()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_withheld() { "[withheld]" } else { "[redacted]" })
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self::new(value)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self::new(value)
    }
}

/// Always writes `null`: a serialised spec never holds a secret.
impl serde::Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_none()
    }
}

/// Reads text as a secret and `null` as a withheld one, so that requests and config files can carry secrets in.
impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map_or_else(Self::withheld, Self::new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_format_shows_the_value() {
        let secret = Secret::new("s3ntinel");
        assert!(!format!("{secret:?}{secret:#?}").contains("s3ntinel"));
        assert_eq!(serde_json::to_string(&secret).expect("json"), "null");
        assert_eq!(serde_json::from_str::<Secret>("\"x\"").expect("json"), Secret::new("x"));
        assert!(serde_json::from_str::<Secret>("null").expect("json").is_withheld());
    }
}
