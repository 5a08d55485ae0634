//! Amounts of processor and of bytes, in the two dialects that the fleet uses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::id::{quoted, serde_as_text};
use crate::{Error, Result};

/// An amount of processor, in thousandths of a core.
///
/// Reads `1000m` (Kubernetes) and `0.5` or `2` (Docker, the plans of the system in production); writes `500m` or `2`.
///
/// ```
/// use saasodoo_core::Cpu;
///
/// assert_eq!("0.5".parse::<Cpu>()?, Cpu::from_millis(500));
/// assert_eq!(Cpu::from_millis(1500).to_string(), "1500m");
/// assert_eq!(Cpu::from_millis(1000).nano_cpus(), 1_000_000_000);
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cpu(u32);

impl Cpu {
    /// So many thousandths of a core.
    #[must_use]
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    /// Thousandths of a core.
    #[must_use]
    pub const fn millis(self) -> u32 {
        self.0
    }

    /// Billionths of a core, the unit of Docker's `NanoCPUs`.
    #[must_use]
    pub const fn nano_cpus(self) -> i64 {
        self.0 as i64 * 1_000_000
    }

    /// From Docker's `NanoCPUs`; `None` for a negative amount or one that is not a whole thousandth of a core.
    #[must_use]
    pub fn from_nano_cpus(nano: i64) -> Option<Self> {
        (nano % 1_000_000 == 0)
            .then(|| u32::try_from(nano / 1_000_000).ok().map(Self))
            .flatten()
    }
}

impl FromStr for Cpu {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fail = |why: &str| {
            Error::invalid("cpu", format!("{} {why}", quoted(text)))
                .with_advice("write cores as 0.5 or 2, or thousandths of a core as 500m")
        };
        let (number, scale) = match text.strip_suffix('m') {
            Some(number) => (number, 1),
            None => (text, 1000),
        };
        let millis = decimal(number, scale).map_err(fail)?;
        u32::try_from(millis)
            .map(Self)
            .map_err(|_| fail("is more than any machine has"))
    }
}

impl fmt::Display for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            write!(f, "{}", self.0 / 1000)
        } else {
            write!(f, "{}m", self.0)
        }
    }
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An amount of memory or storage, in bytes.
///
/// Reads `2Gi` and `512Mi` (Kubernetes), and `2G`, `512M`, `1T` as **binary** units, which is what the system in
/// production has always meant by them: `2G` is 2 GiB. A number without a unit is bytes. Writes the largest binary unit
/// that is exact.
///
/// ```
/// use saasodoo_core::Bytes;
///
/// assert_eq!("2G".parse::<Bytes>()?, "2Gi".parse::<Bytes>()?);
/// assert_eq!(Bytes::from_gib(2).to_string(), "2Gi");
/// assert!("1.5Q".parse::<Bytes>().is_err());
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bytes(u64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;
const EIB: u64 = 1 << 60;

impl Bytes {
    /// No bytes.
    pub const ZERO: Self = Self(0);

    /// So many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many mebibytes (2²⁰ bytes).
    #[must_use]
    pub const fn from_mib(mib: u32) -> Self {
        Self(mib as u64 * MIB)
    }

    /// So many gibibytes (2³⁰ bytes).
    #[must_use]
    pub const fn from_gib(gib: u32) -> Self {
        Self(gib as u64 * GIB)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes as Docker's API counts them.
    #[must_use]
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// Reads a quantity as the Kubernetes API means it, where `2G` is 2·10⁹ bytes
    /// ([resource.Quantity](https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/)): with
    /// every suffix, with exponents, and with parts of a byte rounded up, as the API does.
    /// For objects that others wrote; what callers give is read by `FromStr`.
    ///
    /// # Errors
    /// [`InvalidInput`](crate::ErrorKind::InvalidInput) for what the API would refuse, for a negative amount, and for more
    /// than 2⁶⁴ bytes.
    pub fn from_kubernetes(text: &str) -> Result<Self> {
        quantity(text)
            .map(Self)
            .map_err(|why| Error::invalid("size", format!("{} {why}", quoted(text))))
    }

    fn with_units(text: &str, units: &[(&str, u64)]) -> Result<Self> {
        let (number, scale) = units
            .iter()
            .find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, *scale)))
            .unwrap_or((text, 1));
        decimal(number, scale).map(Self).map_err(|why| {
            Error::invalid("size", format!("{} {why}", quoted(text)))
                .with_advice("write a size as 512M, 512Mi, 2G, 2Gi or 1T; all units are binary")
        })
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let units = [
            ("Ki", KIB),
            ("Mi", MIB),
            ("Gi", GIB),
            ("Ti", TIB),
            ("K", KIB),
            ("M", MIB),
            ("G", GIB),
            ("T", TIB),
        ];
        Self::with_units(text, &units)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, scale) in [("Ti", TIB), ("Gi", GIB), ("Mi", MIB), ("Ki", KIB)] {
            if self.0 != 0 && self.0.is_multiple_of(scale) {
                return write!(f, "{}{unit}", self.0 / scale);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `number × scale`, exactly: digits, optionally a point and digits. No sign, no exponent, no rounding.
fn decimal(number: &str, scale: u64) -> Result<u64, &'static str> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || number.ends_with('.') {
        return Err(if number.starts_with('-') {
            "is negative"
        } else {
            "is not a number with a known unit"
        });
    }
    if fraction.len() > 9 {
        return Err("has more than nine decimals");
    }
    let parse = |text: &str| text.parse::<u128>().map_err(|_| "is too large");
    let power = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(u32::MAX));
    let parts = parse(whole)?.checked_mul(power).ok_or("is too large")?;
    let parts = parts + if fraction.is_empty() { 0 } else { parse(fraction)? };
    let scaled = parts.checked_mul(u128::from(scale)).ok_or("is too large")?;
    if !scaled.is_multiple_of(power) {
        return Err("is not a whole number of its smallest unit");
    }
    u64::try_from(scaled / power).map_err(|_| "is too large")
}

/// A quantity of the Kubernetes API, rounded up to a whole number.
fn quantity(text: &str) -> Result<u64, &'static str> {
    const NO_NUMBER: &str = "is not a quantity";
    if text.starts_with('-') {
        return Err("is negative");
    }
    let text = text.strip_prefix('+').unwrap_or(text);
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
        return Err(NO_NUMBER);
    }
    let (binary, decimal) = match suffix {
        "" => (1, 0),
        "Ki" => (KIB, 0),
        "Mi" => (MIB, 0),
        "Gi" => (GIB, 0),
        "Ti" => (TIB, 0),
        "Pi" => (PIB, 0),
        "Ei" => (EIB, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or(NO_NUMBER)?;
            (1, i64::from(exponent.parse::<i32>().map_err(|_| NO_NUMBER)?))
        }
    };
    // Zeros at either end say nothing and would only take the room of digits that do.
    let digits = format!("{whole}{}", fraction.trim_end_matches('0'));
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    let amount: u128 = digits.parse().map_err(|_| "has too many digits")?;
    let amount = amount.checked_mul(binary.into()).ok_or("is too large")?;
    let places = i64::try_from(fraction.trim_end_matches('0').len()).unwrap_or(i64::MAX);
    let power = decimal.saturating_sub(places);
    let scale = u32::try_from(power.unsigned_abs())
        .ok()
        .and_then(|power| 10u128.checked_pow(power));
    let exact = match (scale, power < 0) {
        (Some(scale), false) => amount.checked_mul(scale).ok_or("is too large")?,
        (Some(scale), true) => amount.div_ceil(scale),
        (None, false) => return Err("is too large"),
        // Less than any whole number, and more than none.
        (None, true) => 1,
    };
    u64::try_from(exact).map_err(|_| "is too large")
}

serde_as_text!(Cpu, Bytes);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_dialects_are_read() {
        for (text, bytes) in [
            ("2G", 2 * GIB),
            ("2Gi", 2 * GIB),
            ("512M", 512 * MIB),
            ("512Mi", 512 * MIB),
            ("1T", TIB),
            ("1.5Gi", 3 * GIB / 2),
            ("1024K", MIB),
            ("1073741824", GIB),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Bytes>().expect(text).get(), bytes, "{text}");
        }
        for (text, millis) in [
            ("1000m", 1000),
            ("0.5", 500),
            ("2", 2000),
            ("0.125", 125),
            ("1.0", 1000),
        ] {
            assert_eq!(text.parse::<Cpu>().expect(text).millis(), millis, "{text}");
        }
        assert_eq!(Bytes::from_kubernetes("2G").expect("decimal").get(), 2_000_000_000);
    }

    #[test]
    fn quantities_are_read_as_the_api_means_them() {
        for (text, bytes) in [
            ("1Pi", PIB),
            ("1Ei", EIB),
            ("2P", 2_000_000_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("1e3", 1000),
            ("1E3", 1000),
            ("+12e+2", 1200),
            ("5000e-3", 5),
            ("128974848000m", 128_974_848),
            ("1500m", 2),
            ("1n", 1),
            ("0.1Gi", 107_374_183),
            (".5k", 500),
            ("5.", 5),
            ("0", 0),
            ("0e99", 0),
            ("000001k", 1000),
            ("1e-99", 1),
        ] {
            assert_eq!(Bytes::from_kubernetes(text).expect(text).get(), bytes, "{text}");
        }
        for text in [
            "",
            ".",
            "-1",
            "1K",
            "1ki",
            "1e",
            "1e1.5",
            "1.2.3",
            "1 Gi",
            "Gi",
            "16Ei",
            "1e20",
            "20E",
            "1e99999999999",
            "٣",
        ] {
            let error = Bytes::from_kubernetes(text).expect_err(text);
            assert_eq!(
                (error.kind(), error.field()),
                (crate::ErrorKind::InvalidInput, Some("size"))
            );
        }
    }

    #[test]
    fn the_rest_is_refused_with_the_reason() {
        for (text, reason) in [
            ("1.5Q", "is not a number with a known unit"),
            ("-1G", "is negative"),
            ("", "is not a number"),
            ("G", "is not a number"),
            ("1e3", "is not a number"),
            (" 1G", "is not a number"),
            ("1 G", "is not a number"),
            ("1.Gi", "is not a number"),
            ("0.3", "is not a whole number"),
            ("99999999999T", "is too large"),
            ("٣G", "is not a number"),
        ] {
            let error = text.parse::<Bytes>().expect_err(text);
            assert!(error.message().contains(reason), "{text}: {error}");
        }
        for text in ["0.0005", "1.5m", "-1", "1core", "", "m", "99999999"] {
            assert!(text.parse::<Cpu>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn amounts_survive_their_text(bytes: u64, millis: u32) {
            prop_assert_eq!(Bytes::new(bytes), Bytes::new(bytes).to_string().parse().expect("its own text"));
            prop_assert_eq!(Cpu::from_millis(millis), Cpu::from_millis(millis).to_string().parse().expect("its own text"));
            prop_assert_eq!(Bytes::from_kubernetes(&Bytes::new(bytes).to_string()).expect("binary units").get(), bytes);
            prop_assert_eq!(Cpu::from_nano_cpus(Cpu::from_millis(millis).nano_cpus()), Some(Cpu::from_millis(millis)));
        }

        #[test]
        fn quantities_scale(n in 0u64..1_000_000, suffix in 0usize..13) {
            let (suffix, scale) = [
                ("", 1), ("k", 1_000), ("M", 1_000_000), ("G", 1_000_000_000), ("T", 1_000_000_000_000),
                ("e3", 1_000), ("E+6", 1_000_000),
                ("Ki", KIB), ("Mi", MIB), ("Gi", GIB), ("Ti", TIB), ("m", 0), ("u", 0),
            ][suffix];
            let read = |text: String| Bytes::from_kubernetes(&text).expect("a quantity").get();
            if scale == 0 {
                prop_assert_eq!(read(format!("{n}000000{suffix}")), if suffix == "m" { n * 1000 } else { n });
            } else {
                prop_assert_eq!(read(format!("{n}{suffix}")), n * scale);
                prop_assert_eq!(read(format!("{n}.0{suffix}")), n * scale);
            }
        }

        #[test]
        fn no_quantity_panics(text in "[+-]?[0-9]{0,45}\\.?[0-9]{0,45}[a-zA-Z]{0,2}[+-]?[0-9]{0,12}") {
            let _ = Bytes::from_kubernetes(&text);
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,30}") {
            let _ = (text.parse::<Bytes>(), text.parse::<Cpu>(), Bytes::from_kubernetes(&text));
        }
    }
}
