//! `list`: what exists, from the registries themselves.

use crate::manifest::{Loaded, tables};
use crate::{Error, Result, methods};
use clap::ValueEnum;
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
pub(crate) fn text(what: What, experiments: &Path, json: bool) -> Result<String> {
    Ok(match what {
        _ if json => format!("{}\n", Value::from(entries(what, experiments)?)),
        What::Methods => methods::table(&methods::rows()),
        _ => plain(&entries(what, experiments)?),
    })
}

/// One object an entry.
fn entries(what: What, experiments: &Path) -> Result<Vec<Value>> {
    match what {
        What::Methods => Ok(methods::rows().iter().map(|row| json!(row)).collect()),
        What::Models => retort_models::registry().iter().map(model).collect(),
        What::Datasets => Ok(retort_datasets::registry().iter().map(dataset).collect()),
        What::Tables => tables(experiments)?.iter().map(|name| table(experiments, name)).collect(),
    }
}

fn model(info: &retort_models::ModelInfo) -> Result<Value> {
    let config = ModelConfig::CIFAR100;
    let seed = retort_nn::Seed::root(0);
    let params = retort_nn::Params::new(seed, candle_core::DType::F32, &candle_core::Device::Cpu);
    retort_models::build(info.name, &config, &params.root()).map_err(Error::request)?;
    let multiply_adds = info.multiply_adds(&config).map_err(Error::request)?;
    Ok(json!({
        "name": info.name, "parameters": params.parameter_count(), "multiply_adds": multiply_adds,
        "counted_at": "100 classes, 3x32x32", "source": info.source,
    }))
}

fn dataset(info: &retort_datasets::DatasetInfo) -> Value {
    let shape = format!("{}x{}x{}", info.shape.channels, info.shape.height, info.shape.width);
    json!({
        "name": info.name, "title": info.title, "classes": info.classes, "shape": shape, "train": info.train, "test": info.test,
        "embedded": info.embedded, "licence": info.licence, "source": info.source,
    })
}

fn table(experiments: &Path, name: &str) -> Result<Value> {
    let loaded = Loaded::table(experiments, name)?;
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
