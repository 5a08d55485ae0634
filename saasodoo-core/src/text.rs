//! Small validated texts: image references, versions, names of environment variables, labels, paths.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{quoted, serde_as_text};
use crate::{Error, Result};

macro_rules! text_newtype {
    ($(#[$meta:meta])* $name:ident, $field:literal, $check:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self> {
                let check: fn(&str) -> Result<(), String> = $check;
                match check(text) {
                    Ok(()) => Ok(Self(text.to_owned())),
                    Err(why) => Err(Error::invalid($field, format!("{} {why}", quoted(text)))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        serde_as_text!($name);
    };
}

text_newtype! {
    /// A container image: `[registry[:port]/]repository[:tag][@digest]`
    /// ([reference grammar](https://pkg.go.dev/github.com/distribution/reference)).
    ///
    /// ```
    /// use saasodoo_core::ImageRef;
    ///
    /// let image: ImageRef = "bitnamilegacy/odoo:17".parse()?;
    /// assert_eq!(image.tag(), Some("17"));
    /// assert_eq!("odoo@sha256:0f".parse::<ImageRef>()?.tag(), None);
    /// assert!("odoo:17; rm -rf".parse::<ImageRef>().is_err());
    /// # Ok::<(), saasodoo_core::Error>(())
    /// ```
    ImageRef, "image", check_image
}

impl ImageRef {
    /// The tag, when there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        let name = self.0.split('@').next()?;
        name.rsplit('/').next()?.split_once(':').map(|(_, tag)| tag)
    }

    /// The digest (`sha256:…`), when there is one.
    #[must_use]
    pub fn digest(&self) -> Option<&str> {
        self.0.split_once('@').map(|(_, digest)| digest)
    }

    /// The same image without its digest, which is how Swarm shows an image whose digest it resolved.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self(self.0.split('@').next().unwrap_or_default().to_owned())
    }
}

fn check_image(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.len() > 255 {
        return Err(format!("is {} bytes long, 255 is the limit", text.len()));
    }
    let (name, digest) = text
        .split_once('@')
        .map_or((text, None), |(name, digest)| (name, Some(digest)));
    if let Some(digest) = digest {
        let ok = digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty()
                && algorithm.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
                && !hex.is_empty()
                && hex.bytes().all(|b| b.is_ascii_hexdigit())
        });
        if !ok {
            return Err("has a digest that is not like sha256:0f…".to_owned());
        }
    }
    let (path, tag) = match name.rsplit_once('/') {
        Some((_, last)) => match last.split_once(':') {
            Some((_, tag)) => (&name[..name.len() - tag.len() - 1], Some(tag)),
            None => (name, None),
        },
        None => name
            .split_once(':')
            .map_or((name, None), |(path, tag)| (path, Some(tag))),
    };
    if let Some(tag) = tag {
        let ok = (1..=128).contains(&tag.len())
            && tag
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && !tag.starts_with(['.', '-']);
        if !ok {
            return Err("has a tag that is not one".to_owned());
        }
    }
    for (index, part) in path.split('/').enumerate() {
        // Only the first part can be a registry, with a port and upper case.
        let (part, port) = if index == 0 && path.contains('/') {
            part.split_once(':')
                .map_or((part, None), |(host, port)| (host, Some(port)))
        } else {
            (part, None)
        };
        let ok = !part.is_empty()
            && part.bytes().all(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || matches!(b, b'.' | b'_' | b'-')
                    || (index == 0 && b.is_ascii_uppercase() && path.contains('/'))
            })
            && part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.ends_with(|c: char| c.is_ascii_alphanumeric())
            && !part.contains("..")
            && port.is_none_or(|port| !port.is_empty() && port.len() <= 5 && port.bytes().all(|b| b.is_ascii_digit()));
        if !ok {
            return Err("is not an image reference such as bitnamilegacy/odoo:17".to_owned());
        }
    }
    Ok(())
}

text_newtype! {
    /// The name of an environment variable: letters, digits and `_`, not starting with a digit.
    EnvName, "environment", |text| {
        let ok = (1..=128).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
            && !text.starts_with(|c: char| c.is_ascii_digit());
        if ok { Ok(()) } else { Err("is not the name of an environment variable".to_owned()) }
    }
}

text_newtype! {
    /// The key of a label: an optional DNS prefix and `/`, then at most 63 letters, digits, `-`, `_` and `.`
    /// ([syntax](https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set)).
    LabelKey, "labels", |text| {
        let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
        check_label_text(name)?;
        if name.is_empty() {
            return Err("is empty".to_owned());
        }
        match prefix {
            Some(prefix) if prefix.is_empty() || prefix.len() > 253
                || !prefix.split('.').all(|label| !label.is_empty() && label.len() <= 63
                    && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !label.starts_with('-') && !label.ends_with('-')) =>
                Err("has a prefix that is not a domain".to_owned()),
            _ => Ok(()),
        }
    }
}

text_newtype! {
    /// The value of a label: at most 63 letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit,
    /// or nothing.
    LabelValue, "labels", check_label_text
}

fn check_label_text(text: &str) -> Result<(), String> {
    let edge = |c: char| c.is_ascii_alphanumeric();
    let ok = text.len() <= 63
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && (text.is_empty() || (text.starts_with(edge) && text.ends_with(edge)));
    if ok {
        Ok(())
    } else {
        Err("is not a label of at most 63 letters, digits, `-`, `_` and `.`".to_owned())
    }
}

text_newtype! {
    /// An absolute path of a URL without query or fragment, such as `/web/health`.
    HttpPath, "path", |text| {
        let ok = text.starts_with('/') && text.len() <= 255 && !text.contains("..")
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'-' | b'_' | b'.' | b'~' | b'%'));
        if ok { Ok(()) } else { Err("is not a path such as /web/health".to_owned()) }
    }
}

text_newtype! {
    /// The path of a data directory relative to the root that a backend is configured with, such as
    /// `odoo_data_acme_0a1b2c3d`: plain names joined by `/`, never `..` and never absolute.
    DataPath, "data_path", |text| {
        let ok = (1..=1024).contains(&text.len()) && text.split('/').all(|part| {
            !part.is_empty() && part.len() <= 255 && part != "." && part != ".."
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        });
        if ok { Ok(()) } else { Err("is not a relative path of plain names".to_owned()) }
    }
}

/// A version of Odoo, `17` or `17.0`; both are the same.
///
/// ```
/// use saasodoo_core::OdooVersion;
///
/// assert_eq!("17.0".parse::<OdooVersion>()?, OdooVersion::new(17));
/// assert!(OdooVersion::new(17) < "18".parse()?);
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OdooVersion(u16);

impl OdooVersion {
    /// The major version.
    #[must_use]
    pub const fn new(major: u16) -> Self {
        Self(major)
    }

    /// The major version.
    #[must_use]
    pub const fn major(self) -> u16 {
        self.0
    }
}

impl FromStr for OdooVersion {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let major = text.strip_suffix(".0").unwrap_or(text);
        let known = major.len() == 2 && major.bytes().all(|b| b.is_ascii_digit());
        known
            .then(|| major.parse().ok())
            .flatten()
            .filter(|major| *major >= 10)
            .map(Self)
            .ok_or_else(|| {
                Error::invalid("odoo_version", format!("{} is not a version of Odoo", quoted(text)))
                    .with_advice("write the major version, such as 17 or 17.0")
            })
    }
}

impl fmt::Display for OdooVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for OdooVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

serde_as_text!(OdooVersion);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn images() {
        for good in [
            "odoo",
            "odoo:17",
            "bitnamilegacy/odoo:17.0",
            "localhost:5000/a/b:c",
            "Registry.example.com/a:1",
            "saasodoo/odoo-stub:17",
            "odoo@sha256:00ff",
            "a.b/c_d/e--f:1@sha256:aa",
        ] {
            assert!(good.parse::<ImageRef>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "odoo:",
            "Odoo",
            "a//b",
            "a/../b",
            "odoo 17",
            "odoo:17?x",
            "-a",
            "a@b",
            "a:b:c",
            "a@sha256:zz",
            "ö",
        ] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
        assert_eq!("localhost:5000/odoo".parse::<ImageRef>().expect("an image").tag(), None);
        assert_eq!(
            "localhost:5000/odoo:18".parse::<ImageRef>().expect("an image").tag(),
            Some("18")
        );
    }

    #[test]
    fn other_texts() {
        assert!(
            "ODOO_X".parse::<EnvName>().is_ok()
                && "1X".parse::<EnvName>().is_err()
                && "A=B".parse::<EnvName>().is_err()
        );
        assert!(
            "saasodoo.io/x".parse::<LabelKey>().is_ok()
                && "/x".parse::<LabelKey>().is_err()
                && "".parse::<LabelKey>().is_err()
        );
        assert!("".parse::<LabelValue>().is_ok() && "a b".parse::<LabelValue>().is_err());
        assert!(
            "/web/health".parse::<HttpPath>().is_ok()
                && "/a?b".parse::<HttpPath>().is_err()
                && "/../x".parse::<HttpPath>().is_err()
        );
        assert!("odoo_data_a_b/c".parse::<DataPath>().is_ok());
        for bad in ["", "/etc", "a/../b", "..", "a//b", "a b", "."] {
            assert!(bad.parse::<DataPath>().is_err(), "{bad}");
        }
        for bad in ["", "17.1", "9", "170", "x", "17.0.0"] {
            assert!(bad.parse::<OdooVersion>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            let _ = (text.parse::<ImageRef>(), text.parse::<LabelKey>(), text.parse::<HttpPath>(), text.parse::<OdooVersion>());
            if let Ok(path) = text.parse::<DataPath>() {
                prop_assert!(!path.as_str().starts_with('/') && !path.as_str().split('/').any(|part| part == ".."));
            }
        }
    }
}
