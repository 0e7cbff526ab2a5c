//! `list`: what exists, from the registries themselves.

use crate::import::Trained;
use crate::manifest::{collection, tables};
use crate::{Error, Result, methods};
use clap::ValueEnum;
use retort_datasets::Split;
use retort_models::ModelConfig;
use serde_json::{Value, json};
use std::path::Path;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum What {
    Methods,
    Models,
    Datasets,
    Tables,
}

/// The list as text, for people or as one JSON array.
pub(crate) fn text(what: What, experiments: &Path, models: &Path, json: bool) -> Result<String> {
    Ok(match what {
        _ if json => format!("{}\n", Value::from(entries(what, experiments, models)?)),
        What::Methods => methods::table(&methods::rows()),
        _ => plain(&entries(what, experiments, models)?),
    })
}

/// One object an entry.
fn entries(what: What, experiments: &Path, models: &Path) -> Result<Vec<Value>> {
    match what {
        What::Methods => Ok(methods::rows().iter().map(|row| json!(row)).collect()),
        What::Models => {
            let trained = Trained::find(models);
            let listed = retort_models::registry().iter().map(|info| model(info, trained.of(info.name)));
            // Which architecture a broken folder would be is unknown, so they stand together at the end.
            let broken = || Ok(json!({ "name": "broken", "folders": trained.broken }));
            listed.chain((!trained.broken.is_empty()).then(broken)).collect()
        }
        What::Datasets => Ok(retort_datasets::registry().iter().map(dataset).collect()),
        What::Tables => tables(experiments)?.iter().map(|name| table(experiments, name)).collect(),
    }
}

fn model(info: &retort_models::ModelInfo, trained: &[String]) -> Result<Value> {
    let config = ModelConfig::CIFAR100;
    let parameters = info.parameter_count(&config).map_err(Error::request)?;
    let spec = info.spec(&config).map_err(Error::request)?;
    let maps: Vec<String> =
        spec.maps.iter().map(|map| format!("{}x{}x{}", map.channels, map.height, map.width)).collect();
    Ok(json!({
        "name": info.name, "parameters": parameters, "multiply_adds": spec.multiply_adds, "maps": maps.join(" "),
        "embedding": spec.embedding, "counted_at": "100 classes, 3x32x32", "source": info.source,
        "weights": trained,
    }))
}

fn dataset(info: &retort_datasets::DatasetInfo) -> Value {
    let shape = format!("{}x{}x{}", info.shape.channels, info.shape.height, info.shape.width);
    let origins: Vec<String> = info.origins.iter().map(crate::data::origin).collect();
    json!({
        "name": info.name, "title": info.title, "classes": info.classes, "shape": shape, "train": info.rows(Split::Train), "test": info.rows(Split::Test),
        "embedded": info.embedded(), "origins": origins, "licence": info.licence, "source": info.source,
    })
}

fn table(experiments: &Path, name: &str) -> Result<Value> {
    let loaded = match collection(experiments, name)? {
        (Some(title), parts) => {
            let parts: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
            return Ok(json!({ "name": name, "title": title, "parts": parts }));
        }
        (None, parts) => parts,
    };
    let [loaded] = loaded.as_slice() else { return Err(Error::Failed(format!("`{name}` is no table"))) };
    let manifest = &loaded.manifest;
    Ok(json!({
        "name": name, "title": manifest.title, "paper": manifest.paper,
        "profiles": manifest.profiles.keys().collect::<Vec<_>>(), "default_profile": manifest.default_profile.as_ref(),
        "methods": loaded.method_ids().collect::<Vec<_>>(),
    }))
}

/// `key: value` pairs, an entry a line.
fn plain(entries: &[Value]) -> String {
    let text = |value: &Value| match value {
        Value::String(s) => s.clone(),
        Value::Array(values) if values.is_empty() => "none".into(),
        other => other.to_string(),
    };
    let line = |entry: &Value| match entry {
        Value::Object(fields) => {
            // The name first, whatever the order of the keys.
            let first = ["id", "name"].iter().find_map(|key| fields.get(*key)).map(text).unwrap_or_default();
            let rest = fields.iter().filter(|(key, _)| !["id", "name"].contains(&key.as_str()));
            let rest: Vec<String> = rest.map(|(key, value)| format!("{key}: {}", text(value))).collect();
            format!("{first:<20} {}\n", rest.join("; "))
        }
        other => format!("{other}\n"),
    };
    entries.iter().map(line).collect()
}
