//! What a change of power does, decided from what was seen: the same rule for every backend.

use crate::{Error, ErrorKind, Facts, Hold, Power, Result, Transition};

/// What a change of power makes of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PowerChange {
    /// How many units shall run afterwards: 0 or 1.
    pub desired: u32,
    /// The hold afterwards.
    pub hold: Option<Hold>,
    /// What to note as asked last; `None` leaves the note as it is.
    pub transition: Option<Transition>,
    /// The present process, if there is one, ends.
    pub ends_process: bool,
}

/// Decides what a change of power does; `None` when the instance is like that already.
///
/// A hold refuses whatever would run the instance. Stopping is always allowed; suspending takes the place of a
/// maintenance; resuming takes away only a suspension and starts nothing. Whether the data is where it should be is for
/// the backend to see before it starts anything.
///
/// ```
/// use saasodoo_core::{ErrorKind, Facts, Hold, Power, decide_power};
///
/// let mut facts = Facts::new(0, jiff::Timestamp::UNIX_EPOCH);
/// assert_eq!(decide_power(&facts, Power::Stop)?, None);
/// assert_eq!(decide_power(&facts, Power::Start)?.map(|change| change.desired), Some(1));
/// facts.hold = Some(Hold::Suspended);
/// assert_eq!(decide_power(&facts, Power::Start).unwrap_err().kind(), ErrorKind::NotAllowed);
/// # Ok::<(), saasodoo_core::Error>(())
/// ```
///
/// # Errors
/// [`NotAllowed`](ErrorKind::NotAllowed) with what to do first: starting or restarting what is held, restarting what is
/// stopped, anything with what is being deleted.
pub fn decide_power(facts: &Facts, power: Power) -> Result<Option<PowerChange>> {
    if facts.deleting {
        return Err(Error::new(ErrorKind::NotAllowed, "the instance is being deleted"));
    }
    let refuse = |why: &str, advice: &str| Err(Error::new(ErrorKind::NotAllowed, why).with_advice(advice));
    let change = |desired, hold| PowerChange {
        desired,
        hold,
        transition: None,
        ends_process: facts.desired > 0 && desired == 0,
    };
    Ok(match (power, facts.hold) {
        (Power::Start | Power::Restart, Some(Hold::Suspended)) => {
            return refuse("the instance is suspended", "resume it first");
        }
        (Power::Start | Power::Restart, Some(_)) => {
            return refuse("the instance is held for maintenance", "end the maintenance first");
        }
        (Power::Start, None) if facts.desired > 0 => None,
        (Power::Start, None) => Some(PowerChange {
            transition: Some(Transition::Start),
            ..change(1, None)
        }),
        (Power::Restart, None) if facts.desired == 0 => return refuse("the instance is stopped", "start it instead"),
        (Power::Restart, None) => Some(PowerChange {
            transition: Some(Transition::Restart),
            ends_process: true,
            ..change(facts.desired, None)
        }),
        (Power::Stop, _) if facts.desired == 0 => None,
        (Power::Stop, hold) => Some(change(0, hold)),
        (Power::Suspend, Some(Hold::Suspended)) if facts.desired == 0 => None,
        (Power::Suspend, _) => Some(change(0, Some(Hold::Suspended))),
        (Power::Resume, Some(Hold::Suspended)) => Some(change(facts.desired, None)),
        (Power::Resume, _) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACTIONS: [Power; 5] = [Power::Start, Power::Stop, Power::Restart, Power::Suspend, Power::Resume];

    fn facts(desired: u32, hold: Option<Hold>) -> Facts {
        let mut facts = Facts::new(desired, jiff::Timestamp::UNIX_EPOCH);
        facts.hold = hold;
        facts
    }

    /// Each answer in short: `-` for nothing to do, the advice of a refusal, else what comes out.
    fn answers(desired: u32, hold: Option<Hold>) -> [String; 5] {
        ACTIONS.map(|power| match decide_power(&facts(desired, hold), power) {
            Ok(None) => "-".to_owned(),
            Ok(Some(change)) => format!(
                "{} {}{}",
                change.desired,
                change.hold.map_or("free", Hold::as_str),
                if change.ends_process { " ends" } else { "" }
            ),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotAllowed);
                error.advice().unwrap_or_default().to_owned()
            }
        })
    }

    #[test]
    fn every_action_on_every_state() {
        let (suspended, maintenance) = (Some(Hold::Suspended), Some(Hold::Maintenance));
        for (desired, hold, expected) in [
            (0, None, ["1 free", "-", "start it instead", "0 suspended", "-"]),
            (1, None, ["-", "0 free ends", "1 free ends", "0 suspended ends", "-"]),
            (0, suspended, ["resume it first", "-", "resume it first", "-", "0 free"]),
            (
                1,
                suspended,
                [
                    "resume it first",
                    "0 suspended ends",
                    "resume it first",
                    "0 suspended ends",
                    "1 free",
                ],
            ),
            (
                0,
                maintenance,
                [
                    "end the maintenance first",
                    "-",
                    "end the maintenance first",
                    "0 suspended",
                    "-",
                ],
            ),
            (
                1,
                maintenance,
                [
                    "end the maintenance first",
                    "0 maintenance ends",
                    "end the maintenance first",
                    "0 suspended ends",
                    "-",
                ],
            ),
        ] {
            assert_eq!(answers(desired, hold), expected, "{desired} {hold:?}");
        }
    }

    #[test]
    fn a_deletion_is_not_interfered_with() {
        let mut leaving = facts(1, None);
        leaving.deleting = true;
        for power in ACTIONS {
            let error = decide_power(&leaving, power).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::NotAllowed);
        }
    }
}
