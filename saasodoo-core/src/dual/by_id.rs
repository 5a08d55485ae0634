//! A map that knows an instance under both its ids.

use std::collections::BTreeMap;

use crate::{InstanceId, ShortId};

/// By the first eight digits, which the same instance has under its other id too: the digits alone, or the whole UUID.
#[derive(Debug)]
pub(super) struct ById<T>(BTreeMap<ShortId, Vec<(InstanceId, T)>>);

impl<T> Default for ById<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

/// The same id before one that only matches.
fn position<T>(alike: &[(InstanceId, T)], id: InstanceId) -> Option<usize> {
    let same = alike.iter().position(|(known, _)| *known == id);
    same.or_else(|| alike.iter().position(|(known, _)| known.matches(id)))
}

impl<T> ById<T> {
    pub(super) fn get(&self, id: InstanceId) -> Option<&T> {
        let alike = self.0.get(&id.short())?;
        alike.get(position(alike, id)?).map(|(_, value)| value)
    }

    pub(super) fn get_mut(&mut self, id: InstanceId) -> Option<&mut T> {
        let alike = self.0.get_mut(&id.short())?;
        let at = position(alike, id)?;
        alike.get_mut(at).map(|(_, value)| value)
    }

    /// Keeps the longer of both ids.
    pub(super) fn put(&mut self, id: InstanceId, value: T) {
        let alike = self.0.entry(id.short()).or_default();
        match position(alike, id).and_then(|at| alike.get_mut(at)) {
            Some(entry) => *entry = (if id.is_legacy() { entry.0 } else { id }, value),
            None => alike.push((id, value)),
        }
    }

    pub(super) fn remove(&mut self, id: InstanceId) -> Option<T> {
        let alike = self.0.get_mut(&id.short())?;
        let at = position(alike, id)?;
        let (_, value) = alike.remove(at);
        if alike.is_empty() {
            self.0.remove(&id.short());
        }
        Some(value)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(InstanceId, T)> {
        self.0.values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::ById;
    use crate::InstanceId;

    #[test]
    fn an_instance_is_one_under_both_its_ids() {
        let whole = InstanceId::random();
        let digits: InstanceId = whole.short().to_string().parse().expect("eight digits");
        let mut map = ById::default();
        map.put(digits, 1);
        map.put(whole, 2);
        map.put(digits, 3);
        assert_eq!(map.iter().copied().collect::<Vec<_>>(), [(whole, 3)]);
        assert_eq!((map.get(whole), map.get(digits)), (Some(&3), Some(&3)));
        assert_eq!(map.get(InstanceId::random()), None);
        *map.get_mut(digits).expect("known") = 4;
        assert_eq!((map.remove(digits), map.remove(whole)), (Some(4), None));
    }
}
