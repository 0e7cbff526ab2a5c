//! Weights that other code bases have trained, under the names of the networks here.

use crate::{Error, ModelConfig, Result, info};
use candle_core::{DType, Device, Tensor};
use retort_nn::{Params, Tensors, WeightFile, nearest};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// How a code base names the parameters that have another name here.
struct Naming {
    /// The code base, and what is different there.
    name: &'static str,
    /// Stands before every name.
    prefix: &'static str,
    /// Whole parts between dots that are called otherwise: theirs, ours.
    rules: &'static [(&'static str, &'static str)],
    /// Heads of a method, which the network has no place for and does not need.
    leaves_out: &'static [&'static str],
}

/// The first one that fits best is taken, so a file with the names of this crate is read as it is.
static NAMINGS: [Naming; 6] = [
    Naming { name: "RepDistiller, mdistiller: as here", prefix: "", rules: &[], leaves_out: &[] },
    Naming {
        name: "HSAKD: `backbone.` before each name",
        prefix: "backbone.",
        rules: &[],
        leaves_out: &["auxiliary_classifier."],
    },
    Naming {
        name: "HSAKD: `backbone.` before each name, one linear layer as `classifier`",
        prefix: "backbone.",
        rules: &[("classifier", "classifier.0")],
        leaves_out: &["auxiliary_classifier."],
    },
    Naming {
        name: "one linear layer as `classifier`",
        prefix: "",
        rules: &[("classifier", "classifier.0")],
        leaves_out: &[],
    },
    Naming {
        name: "MCL: `classifier` for `fc`",
        prefix: "",
        rules: &[("classifier", "fc")],
        leaves_out: &["proj_head."],
    },
    Naming {
        name: "torchvision: `downsample` and `fc` for `shortcut` and `linear`",
        prefix: "",
        rules: &[("downsample", "shortcut"), ("fc", "linear")],
        leaves_out: &[],
    },
];

/// What a file gives to a network.
#[derive(Debug)]
pub struct Imported {
    /// Every parameter and buffer of the network, float32 on the CPU.
    pub tensors: Tensors,
    /// Whose names the file has, for people.
    pub naming: &'static str,
    /// Names of the file that the network needs nothing of: counters of batches, heads of a training method.
    pub left_out: Vec<String>,
}

/// Takes the weights of the network `model` from a file of another code base.
///
/// `module.` before all names (data parallel training) is dropped, `num_batches_tracked` is left out, and names are
/// translated by the convention that fits best: RepDistiller's and mdistiller's (the names of this crate), HSAKD's, MCL's,
/// torchvision's. With a `prefix`, only names behind `prefix.` are looked at, for example `module_list.0`, the first network
/// of an MCL pair.
///
/// # Errors
///
/// An unknown model, or numbers that it cannot be built with. [`Error::Weights`] says all that does not fit: names that are
/// missing, unexpected, of another shape or no floating-point numbers. A value that is not finite and a negative running
/// variance are refused by name.
pub fn import_weights(file: &WeightFile, model: &str, config: &ModelConfig, prefix: Option<&str>) -> Result<Imported> {
    let wanted = declared(model, config)?;
    let names = Names::of(file, prefix)?;
    let fits = NAMINGS.iter().map(|naming| Fit::new(file, &wanted, &names, naming));
    let best = fits.reduce(|best, next| if next.score() > best.score() { next } else { best });
    let best = best.expect("there are conventions");
    best.check(file, model, &wanted)?;
    Ok(Imported {
        tensors: best.read(file)?,
        naming: best.naming.name,
        left_out: best.left_out.into_iter().chain(names.left_out).map(String::from).collect(),
    })
}

/// Takes the weights of the network `model` from a file that has its names and nothing else.
pub(crate) fn exact_weights(file: &WeightFile, model: &str, config: &ModelConfig) -> Result<Tensors> {
    let wanted = declared(model, config)?;
    let names = file.entries().keys().map(|name| (name.as_str(), name.as_str())).collect();
    let fit = Fit::new(file, &wanted, &Names { names, left_out: vec![] }, &NAMINGS[0]);
    fit.check(file, model, &wanted)?;
    fit.read(file)
}

type Shapes = BTreeMap<String, Vec<usize>>;

/// Names and shapes of a network, found without drawing a weight.
fn declared(model: &str, config: &ModelConfig) -> Result<Shapes> {
    let params = Params::declared(DType::F32, &Device::Cpu);
    info(model)?.family.build(model, config, &params.root())?;
    Ok(params.shapes())
}

/// The names of a file that count: as they are in the file, and behind the prefix.
struct Names<'a> {
    names: Vec<(&'a str, &'a str)>,
    left_out: Vec<&'a str>,
}

impl<'a> Names<'a> {
    fn of(file: &'a WeightFile, prefix: Option<&str>) -> Result<Self> {
        let mut names: Vec<(&str, &str)> = file.entries().keys().map(|name| (name.as_str(), name.as_str())).collect();
        behind(&mut names, "module.");
        if let Some(prefix) = prefix {
            let dotted = format!("{}.", prefix.trim_end_matches('.'));
            let before = starts(names.iter().map(|(_, name)| *name));
            names.retain(|(_, name)| name.starts_with(&dotted));
            if names.is_empty() {
                let message = format!("no name begins with the prefix `{dotted}`; the names begin with {before}");
                return Err(Error::File { path: file.path().display().to_string(), message });
            }
            behind(&mut names, &dotted);
        }
        let counts = |name: &str| name.rsplit('.').next() == Some("num_batches_tracked");
        let (counters, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, name)| counts(name));
        let left_out = counters.into_iter().map(|(full, _)| full).chain(file.others()).collect();
        Ok(Self { names, left_out })
    }
}

/// Drops what all names begin with.
fn behind(names: &mut [(&str, &str)], prefix: &str) {
    if names.iter().all(|(_, name)| name.starts_with(prefix)) {
        names.iter_mut().for_each(|(_, name)| *name = &name[prefix.len()..]);
    }
}

/// The first parts of the names, for messages.
fn starts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let starts: BTreeSet<&str> = names.filter_map(|name| name.split('.').next()).collect();
    let mut shown: Vec<String> = starts.iter().take(SHOWN).map(|start| format!("`{}`", start.escape_debug())).collect();
    if starts.len() > SHOWN {
        shown.push("..".into());
    }
    shown.join(", ")
}

/// How a file fits a network under one convention.
struct Fit<'a> {
    naming: &'static Naming,
    /// Names of the network, and where the file has them.
    places: BTreeMap<String, &'a str>,
    unexpected: Vec<&'a str>,
    left_out: Vec<&'a str>,
    /// Places of the right shape.
    same_shape: usize,
}

impl<'a> Fit<'a> {
    fn new(file: &'a WeightFile, wanted: &Shapes, names: &Names<'a>, naming: &'static Naming) -> Self {
        let mut fit = Self { naming, places: BTreeMap::new(), unexpected: vec![], left_out: vec![], same_shape: 0 };
        for (full, name) in &names.names {
            let ours = name.strip_prefix(naming.prefix).map(|name| naming.translate(name));
            match ours.and_then(|ours| wanted.get_key_value(&ours)) {
                Some((ours, shape)) if !fit.places.contains_key(ours) => {
                    fit.same_shape += usize::from(file.entries()[*full].shape == *shape);
                    fit.places.insert(ours.clone(), full);
                }
                _ if naming.leaves_out.iter().any(|head| name.starts_with(head)) => fit.left_out.push(full),
                _ => fit.unexpected.push(full),
            }
        }
        fit
    }

    fn score(&self) -> (usize, usize, Reverse<usize>) {
        (self.same_shape, self.places.len(), Reverse(self.unexpected.len()))
    }

    /// Everything that does not fit, or nothing.
    fn check(&self, file: &WeightFile, model: &str, wanted: &Shapes) -> Result<()> {
        let missing = wanted.iter().filter(|(name, _)| !self.places.contains_key(*name));
        let differing = self.places.iter().filter(|(name, full)| file.entries()[**full].shape != wanted[*name]);
        let no_float = self.places.values().filter(|full| !file.entries()[**full].is_float);
        let mut report = Report::default();
        report.list("missing", missing.map(|(name, shape)| format!("`{name}` {shape:?}{}", self.nearest(file, name))));
        report.list("unexpected", self.unexpected.iter().map(|full| entry(file, full)));
        report.list(
            "other shape",
            differing.map(|(name, full)| format!("{}, expected {:?}", entry(file, full), wanted[name])),
        );
        report.list(
            "no floating-point numbers",
            no_float.map(|full| format!("{} is {}", entry(file, full), file.entries()[*full].dtype)),
        );
        if report.text.is_empty() {
            return Ok(());
        }
        if let Some(classes) = self.other_classes(file, wanted) {
            report.text.push_str(&format!("\n  only the classifier differs: the file's network has {classes} classes"));
        }
        let (found, all) = (self.same_shape, wanted.len());
        Err(Error::Weights {
            path: file.path().display().to_string(),
            model: model.to_string(),
            report: format!("{found} of {all} tensors fit ({}){}", self.naming.name, report.text),
        })
    }

    /// The first size of all tensors that differ, if they differ in nothing else and all names have a place.
    fn other_classes(&self, file: &WeightFile, wanted: &Shapes) -> Option<usize> {
        if self.places.len() < wanted.len() {
            return None;
        }
        let shapes = self.places.iter().map(|(name, full)| (&wanted[name], &file.entries()[*full].shape));
        let mut classes = BTreeSet::new();
        for (expected, found) in shapes.filter(|(expected, found)| expected != found) {
            let same_inputs = expected.len() == found.len() && expected.get(1..) == found.get(1..);
            classes.insert(*found.first().filter(|_| same_inputs)?);
        }
        classes.pop_first().filter(|_| classes.is_empty())
    }

    /// The name that may be meant, among those that have no place.
    fn nearest(&self, file: &WeightFile, name: &str) -> String {
        // Names of any other length are no slip, and only as many are compared as a network has.
        let candidates = self.unexpected.iter().copied().filter(|full| full.len() < 200).take(2000);
        let near = nearest(name, candidates);
        near.map(|near| format!(", nearest in the file: {}", entry(file, near))).unwrap_or_default()
    }

    fn read(&self, file: &WeightFile) -> Result<Tensors> {
        let read = |(name, full): (&String, &&str)| {
            let tensor = file.tensor(full)?;
            if name.ends_with("running_var") {
                let lowest = lowest(&tensor)?;
                if lowest < 0.0 {
                    let message = format!("`{full}`: a running variance must not be negative, found {lowest}");
                    return Err(Error::File { path: file.path().display().to_string(), message });
                }
            }
            Ok((name.clone(), tensor))
        };
        self.places.iter().map(read).collect()
    }
}

impl Naming {
    fn translate(&self, name: &str) -> String {
        // Dots at both ends, so that only whole parts are found.
        let mut dotted = format!(".{name}.");
        for (theirs, ours) in self.rules {
            dotted = dotted.replace(&format!(".{theirs}."), &format!(".{ours}."));
        }
        dotted[1..dotted.len() - 1].to_string()
    }
}

fn lowest(tensor: &Tensor) -> retort_nn::Result<f32> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().fold(0.0, f32::min))
}

/// A name and shape of the file.
fn entry(file: &WeightFile, full: &str) -> String {
    format!("`{}` {:?}", full.escape_debug(), file.entries()[full].shape)
}

/// Lines that a list is cut off after.
const SHOWN: usize = 8;

#[derive(Default)]
struct Report {
    text: String,
}

impl Report {
    fn list(&mut self, what: &str, lines: impl Iterator<Item = String>) {
        let mut hidden = 0;
        for (i, line) in lines.enumerate() {
            if i < SHOWN {
                self.text.push_str(&format!("\n  {what}: {line}"));
            } else {
                hidden += 1;
            }
        }
        if hidden > 0 {
            self.text.push_str(&format!("\n  {what}: {hidden} more"));
        }
    }
}
