//! Choosing the weights of losses on held-out training images.

use crate::manifest::{Loaded, MethodConfig};
use crate::plan::{Plan, Selection};
use crate::source::Source;
use crate::splits::ProfileData;
use crate::table::Records;
use crate::{Error, Result};
use retort_losses::LossConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Weights of the last losses of rows, by row.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weights {
    weights: BTreeMap<String, toml::Spanned<f64>>,
}

impl Weights {
    /// What was chosen for a profile; empty where nothing was.
    pub(crate) fn read(loaded: &Loaded, profile: &str) -> Result<Self> {
        let path = path(loaded, profile);
        if !path.exists() {
            return Ok(Self::default());
        }
        let source = Source::read(&path)?;
        let chosen: Self = source.parse()?;
        for (row, weight) in &chosen.weights {
            if !loaded.manifest.methods.iter().any(|method| method.tune && method.id.as_ref() == row) {
                let message = format!("`{row}` is no row with `tune = true` of {}", loaded.name);
                return Err(source.error(weight.span(), message));
            }
            if !(weight.as_ref().is_finite() && *weight.as_ref() > 0.0) {
                let message = format!("the weight of `{row}` must be a finite number > 0, found {}", weight.as_ref());
                return Err(source.error(weight.span(), message));
            }
        }
        Ok(chosen)
    }

    /// What a table says about its weights.
    pub(crate) fn note(&self, loaded: &Loaded) -> String {
        let rows = loaded.manifest.methods.iter().filter(|row| row.tune).map(|row| row.id.as_ref());
        let left: Vec<&str> = rows.filter(|id| !self.weights.contains_key(*id)).map(String::as_str).collect();
        match left.as_slice() {
            [] => "The weights of the methods were chosen on held-out training images (the file beside the manifest has all \
                   accuracies; where they differ by less than their standard error the choice is one of chance)."
                .into(),
            left => format!("The manifest's weights, chosen by nobody, are those of: {}.", left.join(", ")),
        }
    }

    /// The same weight for every row that is tuned.
    fn all(loaded: &Loaded, weight: f64) -> Self {
        let rows = loaded.manifest.methods.iter().filter(|method| method.tune);
        Self { weights: rows.map(|row| (row.id.as_ref().clone(), toml::Spanned::new(0..0, weight))).collect() }
    }

    /// A row's losses with the chosen weight, if there is one.
    pub(crate) fn applied(&self, row: &MethodConfig, mut losses: Vec<LossConfig>) -> Result<Vec<LossConfig>> {
        if let (true, Some(weight), Some(last)) = (row.tune, self.weights.get(row.id.as_ref()), losses.last_mut()) {
            *last = with_weight(last, *weight.as_ref())?;
        }
        Ok(losses)
    }
}

/// Every method has the field `weight`, so it is replaced as in a manifest.
pub(crate) fn with_weight(method: &LossConfig, weight: f64) -> Result<LossConfig> {
    let mut table = toml::Table::try_from(method).map_err(Error::request)?;
    table.insert("weight".into(), toml::Value::Float(weight));
    let method: LossConfig = table.try_into().map_err(Error::request)?;
    method.validate().map_err(Error::request)?;
    Ok(method)
}

/// `tuned/TABLE-PROFILE.toml` beside the manifest.
fn path(loaded: &Loaded, profile: &str) -> PathBuf {
    let folder = loaded.source.path.parent().unwrap_or(Path::new(""));
    folder.join("tuned").join(format!("{}-{profile}.toml", loaded.name))
}

/// All candidates of all rows as one plan over the training images without the held-out ones.
pub(crate) struct Search {
    profile: String,
    weights: Vec<f64>,
    data: ProfileData,
    plan: Plan,
}

impl Search {
    /// Plans the candidates.
    ///
    /// # Errors
    ///
    /// A profile without `tuning`, no row that is tuned, or what [`Plan::new`] refuses.
    pub(crate) fn new(loaded: &Loaded, profile: &str, data: &ProfileData) -> Result<Self> {
        let (name, config) = loaded.profile(Some(profile))?;
        let only: Vec<String> =
            loaded.manifest.methods.iter().filter(|row| row.tune).map(|row| row.id.as_ref().clone()).collect();
        let (Some(tuning), Some(held_out), false) = (&config.tuning, &config.data.validation, only.is_empty()) else {
            let message = format!("profile `{name}` has no `tuning`, or no row says `tune = true`: nothing to choose");
            return Err(Error::file(&loaded.source.path, message));
        };
        let data = data.validation(*held_out.as_ref())?;
        let selection = Selection { only, seeds: Some(tuning.as_ref().seeds) };
        let weights = tuning.as_ref().weights.clone();
        let mut plan: Option<Plan> = None;
        for &weight in &weights {
            let part = Plan::with_weights(loaded, profile, &data, &selection, &Weights::all(loaded, weight))?;
            match &mut plan {
                None => plan = Some(part),
                Some(plan) => plan.runs.extend(part.runs),
            }
        }
        let plan = plan.ok_or_else(|| Error::request("`tuning` names no weight"))?;
        Ok(Self { profile: name.to_string(), weights, data, plan })
    }

    pub(crate) fn data(&self) -> &ProfileData {
        &self.data
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The file of the winners: the highest mean accuracy over pairs and seeds, of equal ones the smallest weight. A
    /// candidate with a run that failed (a weight too large) is out.
    pub(crate) fn choose(
        &self,
        loaded: &Loaded,
        records: &Records,
        failures: &[(String, String)],
    ) -> Result<(PathBuf, String)> {
        let seeds = self.plan.runs.iter().map(|run| run.seed).max().unwrap_or(1);
        let data = self.data.students.spec();
        let mut text = format!(
            "# Weights chosen by `cargo xtask tune {} --profile {}`: accuracy in % on {} held-out of {} training images of\n\
             # {}, mean over pairs and seeds 1 to {seeds}.\n[weights]\n",
            loaded.name,
            self.profile,
            data.test,
            data.train + data.test,
            data.name,
        );
        for row in loaded.manifest.methods.iter().filter(|row| row.tune) {
            let mut tried: Vec<(f64, Option<f64>)> =
                self.weights.iter().map(|&w| Ok((w, self.accuracy(row, w, records)?))).collect::<Result<_>>()?;
            tried.sort_by(|a, b| a.0.total_cmp(&b.0));
            let best = tried.iter().filter_map(|(w, accuracy)| Some((*w, (*accuracy)?)));
            let best = best.reduce(|best, new| if new.1 > best.1 { new } else { best });
            let Some((weight, _)) = best else {
                let reasons: Vec<&str> = failures.iter().map(|(_, reason)| reason.as_str()).collect();
                let message = format!("no weight of `{}` came to an end: {}", row.id.as_ref(), reasons.join("; "));
                return Err(Error::Failed(message));
            };
            let shown = |(w, accuracy): &(f64, Option<f64>)| match accuracy {
                Some(accuracy) => format!("{w}: {:.2}", 100.0 * accuracy),
                None => format!("{w}: failed"),
            };
            let tried: Vec<String> = tried.iter().map(shown).collect();
            text += &format!("{:?} = {weight:?} # {}\n", row.id.as_ref(), tried.join(", "));
        }
        Ok((path(loaded, &self.profile), text))
    }

    /// Mean accuracy of a candidate; none if one of its runs is missing.
    fn accuracy(&self, row: &MethodConfig, weight: f64, records: &Records) -> Result<Option<f64>> {
        let mut accuracies = Vec::new();
        for run in self.plan.runs.iter().filter(|run| &run.method == row.id.as_ref()) {
            let Some(last) = run.spec.losses.last() else { continue };
            if last != &with_weight(last, weight)? {
                continue;
            }
            match records.get(&run.spec.id()) {
                Some(record) => accuracies.push(record.result.accuracy),
                None => return Ok(None),
            }
        }
        let n = accuracies.len();
        Ok((n > 0).then(|| accuracies.iter().sum::<f64>() / n as f64))
    }
}
