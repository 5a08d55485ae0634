//! What a container's process does: the testbed's stand-in for Odoo, by its environment, and its healthcheck.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

/// Memory that the stand-in needs for itself is not counted; a limit of 0 is none.
const NO_LIMIT: u64 = 0;

/// A process that runs.
#[derive(Debug)]
pub(super) struct Process {
    /// The directory that it writes its heartbeat to.
    pub(super) data: Option<PathBuf>,
    pub(super) beating: bool,
    pub(super) next_beat: Duration,
}

/// How a process goes on from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Course {
    /// It ends by itself after this time with this code.
    pub(super) ends: Option<(Duration, i32)>,
    /// What it says on its error output at its start.
    pub(super) complaint: Option<String>,
    /// It listens after this time.
    pub(super) listens: Option<Duration>,
    /// Its healthcheck succeeds for the first time. `Some(0)`: it has none.
    pub(super) healthy: Option<Duration>,
    /// Its healthcheck has failed too often.
    pub(super) given_up: Option<Duration>,
    /// How long it takes to end after SIGTERM. `None`: it does not listen to it.
    pub(super) stops: bool,
}

impl Course {
    /// From a container's spec, its memory limit, and the time that an image takes to listen.
    pub(super) fn of(container: &Value, memory: u64, start: Duration) -> Self {
        let entries = container.get("Env").and_then(Value::as_array);
        let set = |name: &str| {
            let found = entries
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .find_map(|entry| {
                    let (key, value) = entry.split_once('=')?;
                    (key == name && !value.is_empty()).then_some(value)
                });
            found.map(str::to_owned)
        };
        // A shell that is told to exit with something that is no number exits with 2.
        let crash = set("CRASH").map(|text| (text.parse::<u8>().map_or(2, i32::from), text));
        let eaten = set("EAT_MB").and_then(|text| text.parse::<u64>().ok());
        let killed = eaten.is_some_and(|mib| memory != NO_LIMIT && mib.saturating_mul(1 << 20) > memory);
        let slow = set("SLOW")
            .and_then(|text| text.parse().ok())
            .map_or(Duration::ZERO, Duration::from_secs);
        let mut course = Self {
            ends: None,
            complaint: None,
            listens: None,
            healthy: None,
            given_up: None,
            // A program that takes the shell's place takes its signal handlers away.
            stops: eaten.is_none(),
        };
        if let Some((code, text)) = crash {
            course.ends = Some((Duration::from_millis(50), code));
            course.complaint = Some(format!("odoo-stub: crashing with {text}"));
        } else if killed {
            course.ends = Some((Duration::from_millis(300), 137));
        } else if eaten.is_none() {
            course.listens = Some(start + slow);
        }
        let answers = course.listens.filter(|_| set("UNREADY").is_none());
        (course.healthy, course.given_up) = check(container, answers);
        course
    }
}

/// When a healthcheck succeeds first, and when it gives the container up.
fn check(container: &Value, answers: Option<Duration>) -> (Option<Duration>, Option<Duration>) {
    let check = container.get("Healthcheck").unwrap_or(&Value::Null);
    let kind = check.pointer("/Test/0").and_then(Value::as_str);
    if matches!(kind, None | Some("" | "NONE")) {
        return (Some(Duration::ZERO), None);
    }
    let nanos = |name: &str, default: u64| {
        let value = check.get(name).and_then(Value::as_u64).filter(|nanos| *nanos > 0);
        Duration::from_nanos(value.unwrap_or(default))
    };
    let interval = nanos("Interval", 30_000_000_000);
    let period = nanos("StartPeriod", 0);
    let retries = check
        .get("Retries")
        .and_then(Value::as_u64)
        .filter(|n| *n > 0)
        .unwrap_or(3);
    let after = |time: Duration| {
        let ticks = time.as_nanos().div_ceil(interval.as_nanos()).max(1);
        interval.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    };
    // Failures within the start period do not count.
    let first = after(period + Duration::from_nanos(1));
    let given_up = first.saturating_add(interval.saturating_mul(u32::try_from(retries - 1).unwrap_or(u32::MAX)));
    match answers.map(after) {
        Some(healthy) if healthy <= given_up => (Some(healthy), None),
        _ => (None, Some(given_up)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn course(env: &[&str], check: Value) -> Course {
        let container = json!({"Env": env, "Healthcheck": check});
        Course::of(&container, 64 << 20, Duration::from_millis(300))
    }

    #[test]
    fn the_environment_decides() {
        assert_eq!(course(&["CRASH=7"], Value::Null).ends.map(|(_, code)| code), Some(7));
        assert_eq!(course(&["CRASH=x"], Value::Null).ends.map(|(_, code)| code), Some(2));
        assert_eq!(course(&["CRASH="], Value::Null).ends, None);
        assert_eq!(
            course(&["EAT_MB=65"], Value::Null).ends.map(|(_, code)| code),
            Some(137)
        );
        let eats = course(&["EAT_MB=10"], Value::Null);
        assert_eq!((eats.ends, eats.listens, eats.stops), (None, None, false));
        assert_eq!(
            course(&["SLOW=5"], Value::Null).listens,
            Some(Duration::from_millis(5300))
        );
    }

    #[test]
    fn a_healthcheck_is_asked_at_its_interval() {
        let check = json!({"Test": ["CMD-SHELL", "x"], "Interval": SECOND, "Retries": 3, "StartPeriod": 10 * SECOND});
        let healthy = |env: &[&str]| {
            let course = course(env, check.clone());
            (course.healthy, course.given_up)
        };
        assert_eq!(healthy(&[]), (Some(Duration::from_secs(1)), None));
        assert_eq!(healthy(&["SLOW=5"]), (Some(Duration::from_secs(6)), None));
        // The failures at 11, 12 and 13 seconds count.
        assert_eq!(healthy(&["UNREADY=1"]), (None, Some(Duration::from_secs(13))));
        assert_eq!(healthy(&["SLOW=60"]), (None, Some(Duration::from_secs(13))));
        assert_eq!(course(&[], json!({"Test": ["NONE"]})).healthy, Some(Duration::ZERO));
    }
}
