//! How texts, times and numbers are written on the page.

use std::time::Duration;

use jiff::Timestamp;

/// Writing to a string cannot fail.
macro_rules! put {
    ($out:expr, $($arg:tt)*) => {{
        use std::fmt::Write as _;
        let _ = write!($out, $($arg)*);
    }};
}
pub(super) use put;

/// Text that can stand anywhere in a page, in an attribute too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Escaped, and not longer than so many characters.
pub(super) fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => escape(text.get(..end).unwrap_or_default()) + "…",
        None => escape(text),
    }
}

/// A duration in milliseconds, rounded to what one wants to read.
pub(super) fn shown(millis: u64) -> String {
    let rounded = |unit: u64| (millis + unit / 2) / unit;
    let both = |all: u64, per: u64, big: &str, small: &str| match all % per {
        0 => format!("{} {big}", all / per),
        rest => format!("{} {big} {rest} {small}", all / per),
    };
    if millis == 0 {
        "< 1 ms".to_owned()
    } else if millis < 1000 {
        format!("{millis} ms")
    } else if rounded(100) < 1200 {
        format!("{}.{} s", rounded(100) / 10, rounded(100) % 10)
    } else if rounded(1000) < 3600 {
        both(rounded(1000), 60, "min", "s")
    } else if rounded(60_000) < 48 * 60 {
        both(rounded(60_000), 60, "h", "min")
    } else {
        both(rounded(3_600_000), 24, "d", "h")
    }
}

/// How long one call took.
pub(super) fn shown_call(duration: Duration) -> String {
    let micros = micros(duration);
    if micros < 1000 {
        format!("{micros} µs")
    } else if micros < 999_950 {
        format!("{}.{} ms", (micros + 50) / 1000, (micros + 50) % 1000 / 100)
    } else {
        shown((micros + 500) / 1000)
    }
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// An instant to the second; the page says once that it is UTC.
pub(super) fn instant(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// The same for a text that flows: it is not broken into two lines.
pub(super) fn when(at: Timestamp) -> String {
    format!("<time>{}</time>", instant(at))
}

/// The milliseconds from one instant to another; 0 when it is before.
pub(super) fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.as_millisecond().saturating_sub(from.as_millisecond())).unwrap_or(0)
}

/// So many hundredths of a percent of the whole.
pub(super) fn share(part: u64, whole: u64) -> u64 {
    let share = u128::from(part) * 10_000 / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(10_000).min(10_000)
}

/// Hundredths of a percent as a length of CSS.
pub(super) fn percent(share: u64) -> String {
    format!("{}.{:02}%", share / 100, share % 100)
}
