//! The ids that were given. Objects of the guide's client carry eight digits of theirs only, and people type no more.

use std::collections::{BTreeMap, BTreeSet};

use saasodoo_core::InstanceId;

/// An instance that the journal or the source has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) id: InstanceId,
    pub(crate) name: String,
}

/// The whole id that this one means among these; `None` when none fits.
///
/// # Errors
/// When there is more than one, or when only eight digits are known of it.
pub(crate) fn whole(given: InstanceId, known: &[Known]) -> Result<Option<InstanceId>, String> {
    let fits: Vec<&Known> = known.iter().filter(|known| known.id.matches(given)).collect();
    if !given.is_legacy() {
        return Ok((!fits.is_empty()).then_some(given));
    }
    let mut whole: BTreeMap<InstanceId, &str> = BTreeMap::new();
    for fit in fits.iter().filter(|fit| !fit.id.is_legacy()) {
        whole.insert(fit.id, &fit.name);
    }
    let mut ids = whole.keys();
    match (ids.next(), ids.next(), fits.first()) {
        (Some(id), None, _) => Ok(Some(*id)),
        (Some(_), Some(_), _) => {
            let all: Vec<String> = whole.iter().map(|(id, name)| format!("{id} {name}")).collect();
            Err(format!(
                "{given} fits several: {}: give the whole UUID",
                all.join(", ").trim_end()
            ))
        }
        (None, _, Some(there)) => Err(format!(
            "the source has only eight digits as the id of {given} {}: give the whole UUID, as the instance's row in \
             the database has it",
            there.name
        )),
        (None, ..) => Ok(None),
    }
}

/// The whole ids of those that were given, each once, in their order.
///
/// # Errors
/// When one is not known, said as `unknown` says it, or does not mean one instance: all of these together.
pub(crate) fn all(
    given: impl IntoIterator<Item = (InstanceId, Vec<Known>)>,
    unknown: &str,
) -> Result<Vec<InstanceId>, String> {
    let (mut seen, mut ids) = (BTreeSet::new(), Vec::new());
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    for (id, known) in given {
        match whole(id, &known) {
            Ok(Some(id)) if seen.insert(id) => ids.push(id),
            Ok(Some(_)) => {}
            Ok(None) => missing.push(id.to_string()),
            Err(why) => wrong.push(why),
        }
    }
    if !missing.is_empty() {
        wrong.insert(0, format!("{unknown} {}", missing.join(", ")));
    }
    if wrong.is_empty() {
        Ok(ids)
    } else {
        Err(wrong.join("; "))
    }
}
