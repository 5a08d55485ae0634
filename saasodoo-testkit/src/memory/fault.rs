//! Faults planned ahead, as data, and the record of the calls they are counted by.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use saasodoo_core::{Error, ErrorKind, InstanceId, OperationKind, Power, Retry};
use serde::{Deserialize, Serialize};

/// What goes wrong with a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fault {
    /// The call is answered with an error of this kind, and nothing was done.
    Fail(ErrorKind),
    /// What was asked is done, and the answer is lost: `Timeout`, with the outcome unknown.
    LoseResponse,
    /// The request takes this much longer to arrive.
    Delay(Duration),
    /// What was asked is done at once, and the answer takes this much longer to come back.
    DelayResponse(Duration),
    /// The request never arrives and is never answered.
    Hang,
    /// What was asked is done, and there is never an answer: for the caller's process this is how being killed looks.
    HangAfter,
    /// The backend's code panics before it has done anything.
    Panic,
}

/// A fault, and which calls it befalls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFault {
    /// Calls of this operation only; `None`: of any.
    pub operation: Option<OperationKind>,
    /// Calls about this instance only; `None`: about any. A list or a watch is about an instance when its filter names
    /// one.
    pub instance: Option<InstanceId>,
    /// The first of the matching calls that it befalls, counted from 1.
    pub first: u32,
    /// The last one; `None`: all that follow.
    pub last: Option<u32>,
    /// What happens to them.
    pub fault: Fault,
}

/// What will go wrong, as data: it can be generated, printed, stored and replayed.
///
/// The first planned fault that matches a call befalls it. Each counts the calls it matches by itself.
///
/// ```
/// use saasodoo_core::{ErrorKind, OperationKind};
/// use saasodoo_testkit::memory::{Fault, FaultPlan};
///
/// let plan = FaultPlan::new()
///     .on(OperationKind::Create, 1, Fault::LoseResponse)
///     .always(OperationKind::List, Fault::Fail(ErrorKind::Unavailable));
/// assert_eq!(plan.faults().len(), 2);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultPlan {
    faults: Vec<PlannedFault>,
}

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a fault.
    #[must_use]
    pub fn with(mut self, fault: PlannedFault) -> Self {
        self.faults.push(fault);
        self
    }

    /// The `nth` call of the operation (the first is 1) goes wrong.
    #[must_use]
    pub fn on(self, operation: OperationKind, nth: u32, fault: Fault) -> Self {
        self.with(PlannedFault {
            operation: Some(operation),
            instance: None,
            first: nth,
            last: Some(nth),
            fault,
        })
    }

    /// The `nth` call of the operation about this instance goes wrong.
    #[must_use]
    pub fn on_instance(self, operation: OperationKind, instance: InstanceId, nth: u32, fault: Fault) -> Self {
        self.with(PlannedFault {
            operation: Some(operation),
            instance: Some(instance),
            first: nth,
            last: Some(nth),
            fault,
        })
    }

    /// The `nth` call of all goes wrong, whatever it is.
    #[must_use]
    pub fn on_call(self, nth: u32, fault: Fault) -> Self {
        self.with(PlannedFault {
            operation: None,
            instance: None,
            first: nth,
            last: Some(nth),
            fault,
        })
    }

    /// Every call of the operation goes wrong.
    #[must_use]
    pub fn always(self, operation: OperationKind, fault: Fault) -> Self {
        self.with(PlannedFault {
            operation: Some(operation),
            instance: None,
            first: 1,
            last: None,
            fault,
        })
    }

    /// What is planned.
    #[must_use]
    pub fn faults(&self) -> &[PlannedFault] {
        &self.faults
    }
}

/// One call that was made, in the order in which they arrived.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Call {
    /// Which operation.
    pub operation: OperationKind,
    /// About which instance; `None` for those about all.
    pub instance: Option<InstanceId>,
    /// Which power action, for `set_power`.
    pub power: Option<Power>,
    /// When, since the simulation began.
    pub at: Duration,
    /// The fault that befell it.
    pub fault: Option<Fault>,
}

impl Call {
    pub(super) fn new(operation: OperationKind, instance: Option<InstanceId>) -> Self {
        Self {
            operation,
            instance,
            power: None,
            at: Duration::ZERO,
            fault: None,
        }
    }

    pub(super) fn with_power(mut self, power: Power) -> Self {
        self.power = Some(power);
        self
    }
}

/// A plan that is being carried out.
#[derive(Debug, Default)]
pub(super) struct Faults {
    planned: Vec<Planned>,
    added: u64,
}

#[derive(Debug)]
struct Planned {
    fault: PlannedFault,
    /// The calls that it matched.
    seen: u32,
    number: u64,
    struck: Arc<AtomicBool>,
}

impl Faults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        let mut faults = Self::default();
        for fault in plan.faults {
            faults.add(fault);
        }
        faults
    }

    /// Adds a fault: its number, by which it can be taken away, and whether it has struck.
    pub(super) fn add(&mut self, fault: PlannedFault) -> (u64, Arc<AtomicBool>) {
        self.added += 1;
        let struck = Arc::new(AtomicBool::new(false));
        self.planned.push(Planned {
            fault,
            seen: 0,
            number: self.added,
            struck: Arc::clone(&struck),
        });
        (self.added, struck)
    }

    pub(super) fn remove(&mut self, number: u64) {
        self.planned.retain(|planned| planned.number != number);
    }

    /// Counts the call and says what befalls it.
    pub(super) fn meet(&mut self, call: &Call) -> Option<Fault> {
        let mut hit = None;
        for Planned {
            fault: planned,
            seen,
            struck,
            ..
        } in &mut self.planned
        {
            let matches = planned.operation.is_none_or(|operation| operation == call.operation)
                && planned.instance.is_none_or(|instance| call.instance == Some(instance));
            if !matches {
                continue;
            }
            *seen = seen.saturating_add(1);
            if *seen >= planned.first && planned.last.is_none_or(|last| *seen <= last) && hit.is_none() {
                struck.store(true, Ordering::SeqCst);
                hit = Some(planned.fault.clone());
            }
        }
        hit
    }
}

pub(super) fn failed(kind: ErrorKind) -> Error {
    Error::new(kind, "a planned fault: nothing was done")
}

pub(super) fn lost() -> Error {
    Error::new(ErrorKind::Timeout, "a planned fault: the answer was lost").with_retry(Retry::OutcomeUnknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_counts_the_calls_it_matches() {
        let id = InstanceId::random();
        let get = Call::new(OperationKind::Get, Some(id));
        let list = Call::new(OperationKind::List, None);
        let mut faults = Faults::new(
            FaultPlan::new()
                .on(OperationKind::Get, 2, Fault::LoseResponse)
                .on_call(4, Fault::Hang)
                .always(OperationKind::List, Fault::Panic),
        );
        assert_eq!(faults.meet(&get), None);
        assert_eq!(faults.meet(&list), Some(Fault::Panic));
        assert_eq!(faults.meet(&get), Some(Fault::LoseResponse));
        assert_eq!(faults.meet(&get), Some(Fault::Hang), "the fourth call of all");
        assert_eq!(faults.meet(&get), None);
        assert_eq!(faults.meet(&list), Some(Fault::Panic));
    }

    #[test]
    fn faults_of_one_instance_leave_others_alone() {
        let (a, b) = (InstanceId::random(), InstanceId::random());
        let mut faults = Faults::new(FaultPlan::new().on_instance(OperationKind::Get, a, 1, Fault::Hang));
        assert_eq!(faults.meet(&Call::new(OperationKind::Get, Some(b))), None);
        assert_eq!(faults.meet(&Call::new(OperationKind::Get, Some(a))), Some(Fault::Hang));
    }

    #[test]
    fn a_plan_survives_its_text() {
        let plan = FaultPlan::new()
            .on(
                OperationKind::SetPower,
                3,
                Fault::DelayResponse(Duration::from_millis(1500)),
            )
            .on_instance(
                OperationKind::Get,
                InstanceId::random(),
                1,
                Fault::Fail(ErrorKind::Throttled),
            );
        let text = serde_json::to_string(&plan).expect("json");
        assert_eq!(serde_json::from_str::<FaultPlan>(&text).expect("json"), plan);
    }
}
