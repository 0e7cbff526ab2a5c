//! Finds the state dict among the values of a pickle.

use super::pickle::Pickled;
use super::value::{Id, Value};
use super::{MAX_NAME, Refusal, View, shown};
use std::collections::{BTreeMap, BTreeSet};

/// What a pickle is about.
pub(super) struct StateDict {
    pub(super) container: Option<&'static str>,
    pub(super) views: BTreeMap<String, View>,
    pub(super) others: BTreeSet<String>,
}

/// Keys under which training programs keep the state dict beside other things.
const CONTAINERS: [&str; 3] = ["model", "state_dict", "net"];

impl Pickled {
    /// The state dict: under one of the known keys, or the whole.
    pub(super) fn state_dict(&self) -> Result<StateDict, Refusal> {
        let Value::Dict(entries) = self.root() else {
            return Err("the file holds no dict of tensors; save model.state_dict()".into());
        };
        let mut found = Vec::new();
        for container in CONTAINERS {
            if let Some(Value::Dict(inner)) = self.under(entries, container)
                && self.has_tensors(inner)
            {
                found.push((Some(container), inner));
            }
        }
        if found.is_empty() && self.has_tensors(entries) {
            found.push((None, entries));
        }
        match found[..] {
            [(container, entries)] => self.collect(container, entries),
            [] => Err(format!(
                "no tensors, neither as a whole nor under {}; keys: {}",
                CONTAINERS.join(", "),
                self.keys(entries)
            )),
            _ => Err(format!("several state dicts: {}; save one of them alone", self.keys(entries))),
        }
    }

    fn has_tensors(&self, entries: &[(Id, Id)]) -> bool {
        entries.iter().any(|(_, value)| matches!(self.value(*value), Value::Tensor(_)))
    }

    /// The first keys, for messages.
    fn keys(&self, entries: &[(Id, Id)]) -> String {
        const SHOWN: usize = 10;
        let text = |(key, _): &(Id, Id)| match self.value(*key) {
            Value::Text(text) => format!("`{}`", shown(text)),
            _ => "(no text)".into(),
        };
        let mut keys: Vec<String> = entries.iter().take(SHOWN).map(text).collect();
        if entries.len() > SHOWN {
            keys.push("..".into());
        }
        if keys.is_empty() { "none".into() } else { keys.join(", ") }
    }

    fn collect(&self, container: Option<&'static str>, entries: &[(Id, Id)]) -> Result<StateDict, Refusal> {
        let mut dict = StateDict { container, views: BTreeMap::new(), others: BTreeSet::new() };
        for (key, value) in entries {
            let Value::Text(key) = self.value(*key) else {
                return Err("a key of the state dict is no text".into());
            };
            if key.len() > MAX_NAME {
                return Err(format!("a key of {} bytes: `{}`", key.len(), shown(key)));
            }
            match self.value(*value) {
                Value::Tensor(view) => {
                    if dict.views.insert(key.to_string(), view.clone()).is_some() {
                        return Err(format!("the key `{}` occurs twice", shown(key)));
                    }
                }
                _ => drop(dict.others.insert(key.to_string())),
            }
        }
        Ok(dict)
    }
}
