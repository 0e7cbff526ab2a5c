//! Weights that other code bases have trained, under the names of the networks here.

use crate::{Error, ModelConfig, Result, info};
use candle_core::{DType, Device, Tensor};
use retort_nn::{Params, Tensors, WeightFile, nearest, shown};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// How a code base names the parameters that have another name here.
struct Naming {
    /// The code base, and what is different there.
    name: &'static str,
    /// Stands before every name.
    prefix: &'static str,
    /// Whole parts between dots that are called otherwise: theirs, ours; nothing where the part is left out here.
    rules: &'static [(&'static str, &'static str)],
}

/// The first one that fits best is taken, so a file with the names of this crate is read as it is.
static NAMINGS: [Naming; 7] = [
    Naming { name: "RepDistiller, mdistiller: as here", prefix: "", rules: &[] },
    Naming { name: "HSAKD, MixSKD, SSKD: `backbone.` before each name", prefix: "backbone.", rules: &[] },
    Naming {
        name: "HSAKD: `backbone.` before each name, one linear layer as `classifier`",
        prefix: "backbone.",
        rules: &[("classifier", "classifier.0")],
    },
    Naming { name: "one linear layer as `classifier`", prefix: "", rules: &[("classifier", "classifier.0")] },
    Naming { name: "MCL: `classifier` for `fc`", prefix: "", rules: &[("classifier", "fc")] },
    Naming {
        name: "torchvision: `downsample` and `fc` for `shortcut` and `linear`",
        prefix: "",
        rules: &[("downsample", "shortcut"), ("fc", "linear")],
    },
    Naming {
        name: "KD2M: `feature_extractor.` before each name but `classifier`, which stands for `fc`",
        prefix: "",
        rules: &[("feature_extractor", ""), ("classifier", "fc")],
    },
];

/// Heads of a method, which the network has no place for and does not need.
const HEADS: [&str; 3] = ["auxiliary_classifier", "final_aux_classifier", "proj_head"];

/// Counters of batches and of averaged models, by the last part of their names.
const COUNTERS: [&str; 2] = ["num_batches_tracked", "n_averaged"];

fn is_counter(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| COUNTERS.contains(&last))
}

/// What a file gives to a network.
#[derive(Debug)]
pub struct Imported {
    /// Every parameter and buffer of the network, float32 on the CPU.
    pub tensors: Tensors,
    /// Whose names the file has, for people.
    pub naming: &'static str,
    /// Names of the file that the network needs nothing of: counters, heads of a training method.
    pub left_out: Vec<String>,
}

/// Takes the weights of the network `model` from a file of another code base.
///
/// `module.` before all names (data parallel training, averaged models) is dropped. `num_batches_tracked`, `n_averaged`
/// and the heads of a method (`auxiliary_classifier`, `final_aux_classifier`, `proj_head`) are left out. Names are
/// translated by the convention that fits best: RepDistiller's and mdistiller's (the names of this crate), HSAKD's,
/// MCL's, torchvision's, KD2M's. With a `prefix`, only names behind `prefix.` are looked at, for example
/// `module_list.0`, the first network of an MCL pair.
///
/// # Errors
///
/// An unknown model, numbers that it cannot be built with, or a file of more than 2^16 tensors. [`Error::Weights`] says
/// all that does not fit: names that are missing, unexpected, of another shape or no floating-point numbers; and the
/// prefix behind which the network would fit. A value that is not finite, a negative running variance, and a batch norm
/// that would not be finite as a part of its convolution are refused by name.
pub fn import_weights(file: &WeightFile, model: &str, config: &ModelConfig, prefix: Option<&str>) -> Result<Imported> {
    let wanted = declared(model, config)?;
    let names = Names::of(file, prefix)?;
    let best = Fit::best(file, &wanted, &names);
    if !best.is_whole(file, &wanted) {
        let mut report = best.report(file, &wanted);
        if let Some(fitting) = fitting_prefix(file, &wanted, prefix) {
            report.push_str(&format!("\n  the network is there, but elsewhere: try `--prefix {}`", shown(&fitting)));
        }
        return Err(best.error(file, model, &wanted, &report));
    }
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
    let fit = Fit::new(file, &wanted, &Names { names, left_out: vec![] }, (&NAMINGS[0], &[]));
    match fit.is_whole(file, &wanted) {
        true => fit.read(file),
        false => Err(fit.error(file, model, &wanted, &fit.report(file, &wanted))),
    }
}

/// What must stand before the names, beside `prefix` where there is one, so that everything fits.
fn fitting_prefix(file: &WeightFile, wanted: &Shapes, prefix: Option<&str>) -> Option<String> {
    let names = Names::of(file, prefix).ok()?;
    // Whatever stands before one of the network's first names; the shortest is not inside of the network.
    let mut starts = BTreeSet::new();
    for end in wanted.keys().take(3).map(|name| format!(".{name}")) {
        starts.extend(names.names.iter().filter_map(|(_, name)| name.strip_suffix(&end)).map(|s| (s.len(), s)));
    }
    let given = prefix.map(|prefix| format!("{}.", prefix.trim_end_matches('.'))).unwrap_or_default();
    let mut longer = starts.into_iter().take(SHOWN).map(|(_, start)| format!("{given}{start}"));
    longer.find(|prefix| {
        let names = Names::of(file, Some(prefix));
        names.is_ok_and(|names| Fit::best(file, wanted, &names).is_whole(file, wanted))
    })
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

/// More tensors than a file of several networks has; each is compared under every convention.
const MOST_NAMES: usize = 1 << 16;

impl<'a> Names<'a> {
    fn of(file: &'a WeightFile, prefix: Option<&str>) -> Result<Self> {
        let count = file.entries().len();
        if count > MOST_NAMES {
            let message = format!("expected at most {MOST_NAMES} tensors, found {count}");
            return Err(Error::File { path: file.path().display().to_string(), message });
        }
        let mut names: Vec<(&str, &str)> = file.entries().keys().map(|name| (name.as_str(), name.as_str())).collect();
        behind(&mut names, "module.");
        if let Some(prefix) = prefix {
            let dotted = format!("{}.", prefix.trim_end_matches('.'));
            let before = starts(names.iter().map(|(_, name)| *name));
            names.retain(|(_, name)| name.starts_with(&dotted));
            if names.is_empty() {
                let dotted = shown(&dotted);
                let message = format!("no name begins with the prefix `{dotted}`; the names begin with {before}");
                return Err(Error::File { path: file.path().display().to_string(), message });
            }
            behind(&mut names, &dotted);
        }
        let (counters, names): (Vec<_>, Vec<_>) = names.into_iter().partition(|(_, name)| is_counter(name));
        let left_out = counters.into_iter().map(|(full, _)| full).chain(file.others()).collect();
        Ok(Self { names, left_out })
    }
}

/// Drops what all names begin with; a counter may stand beside the network.
fn behind(names: &mut [(&str, &str)], prefix: &str) {
    if names.iter().all(|(_, name)| is_counter(name) || name.starts_with(prefix)) {
        names.iter_mut().for_each(|(_, name)| *name = name.strip_prefix(prefix).unwrap_or(name));
    }
}

/// The first parts of the names, for messages.
fn starts<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let starts: BTreeSet<&str> = names.filter_map(|name| name.split('.').next()).collect();
    let mut lines: Vec<String> = starts.iter().take(SHOWN).map(|start| format!("`{}`", shown(start))).collect();
    if starts.len() > SHOWN {
        lines.push("..".into());
    }
    lines.join(", ")
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
    fn best(file: &'a WeightFile, wanted: &Shapes, names: &Names<'a>) -> Self {
        let fits = NAMINGS.iter().map(|naming| Self::new(file, wanted, names, (naming, &HEADS)));
        let best = fits.reduce(|best, next| if next.score() > best.score() { next } else { best });
        best.expect("there are conventions")
    }

    fn new(
        file: &'a WeightFile,
        wanted: &Shapes,
        names: &Names<'a>,
        (naming, heads): (&'static Naming, &[&str]),
    ) -> Self {
        let mut fit = Self { naming, places: BTreeMap::new(), unexpected: vec![], left_out: vec![], same_shape: 0 };
        for (full, name) in &names.names {
            let ours = name.strip_prefix(naming.prefix).map(|name| naming.translate(name));
            match ours.and_then(|ours| wanted.get_key_value(ours.as_ref())) {
                Some((ours, shape)) if !fit.places.contains_key(ours) => {
                    fit.same_shape += usize::from(file.entries()[*full].shape == *shape);
                    fit.places.insert(ours.clone(), full);
                }
                _ if name.split_once('.').is_some_and(|(first, _)| heads.contains(&first)) => fit.left_out.push(full),
                _ => fit.unexpected.push(full),
            }
        }
        fit
    }

    fn score(&self) -> (usize, usize, Reverse<usize>) {
        (self.same_shape, self.places.len(), Reverse(self.unexpected.len()))
    }

    /// Whether every tensor of the network is there with its shape, and nothing is left over.
    fn is_whole(&self, file: &WeightFile, wanted: &Shapes) -> bool {
        let floats = self.places.values().all(|full| file.entries()[*full].is_float);
        self.same_shape == wanted.len() && self.unexpected.is_empty() && floats
    }

    /// Everything that does not fit.
    fn report(&self, file: &WeightFile, wanted: &Shapes) -> String {
        let missing = wanted.iter().filter(|(name, _)| !self.places.contains_key(*name));
        let differing = self.places.iter().filter(|(name, full)| file.entries()[**full].shape != wanted[*name]);
        let no_float = self.places.values().filter(|full| !file.entries()[**full].is_float);
        let mut text = String::new();
        list(&mut text, "missing", missing, |(name, shape)| format!("`{name}` {shape:?}{}", self.nearest(file, name)));
        list(&mut text, "unexpected", self.unexpected.iter(), |full| entry(file, full));
        list(&mut text, "other shape", differing, |(name, full)| {
            format!("{}, expected {:?}", entry(file, full), wanted[name])
        });
        list(&mut text, "no floating-point numbers", no_float, |full| {
            format!("{} is {}", entry(file, full), file.entries()[*full].dtype)
        });
        if let Some(classes) = self.other_classes(file, wanted) {
            text.push_str(&format!("\n  only the classifier differs: the file's network has {classes} classes"));
        }
        text
    }

    fn error(&self, file: &WeightFile, model: &str, wanted: &Shapes, report: &str) -> Error {
        let (found, all) = (self.same_shape, wanted.len());
        Error::Weights {
            path: file.path().display().to_string(),
            model: model.to_string(),
            report: format!("{found} of {all} tensors fit ({}){report}", self.naming.name),
        }
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
        // Only as many are compared as a network has; `nearest` passes over those of quite another length.
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
                    let message = format!("`{}`: a running variance must not be negative, found {lowest}", shown(full));
                    return Err(Error::File { path: file.path().display().to_string(), message });
                }
            }
            Ok((name.clone(), tensor))
        };
        let tensors = self.places.iter().map(read).collect::<Result<Tensors>>()?;
        match unfoldable(&tensors)? {
            Some(message) => Err(Error::File { path: file.path().display().to_string(), message }),
            None => Ok(tensors),
        }
    }
}

impl Naming {
    fn translate<'a>(&self, name: &'a str) -> Cow<'a, str> {
        // Most names of a large file are no network's: nothing is made for them.
        if !name.split('.').any(|part| self.rules.iter().any(|(theirs, _)| *theirs == part)) {
            return Cow::Borrowed(name);
        }
        // Dots at both ends, so that only whole parts are found.
        let mut dotted = format!(".{name}.");
        for (theirs, ours) in self.rules {
            let ours = if ours.is_empty() { ".".to_string() } else { format!(".{ours}.") };
            dotted = dotted.replace(&format!(".{theirs}."), &ours);
        }
        Cow::Owned(dotted.trim_matches('.').to_string())
    }
}

fn lowest(tensor: &Tensor) -> retort_nn::Result<f32> {
    Ok(tensor.flatten_all()?.to_vec1::<f32>()?.into_iter().fold(0.0, f32::min))
}

/// What a batch norm adds to the variance.
const EPS: f64 = 1e-5;

/// The largest absolute value.
fn largest(tensor: &Tensor) -> retort_nn::Result<f64> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Ok(values.into_iter().fold(0f64, |most, value| most.max(f64::from(value).abs())))
}

/// Which batch norm of finite numbers is not finite in float32 as a scale and a shift, or with a convolution that it
/// may follow folded into one; a network with it would answer NaN or infinity when it is frozen.
///
/// Which convolution a norm follows is not known here, so all with as many outputs are compared by their largest
/// weights: what is refused in this way is some 30 orders of magnitude beyond any trained network.
pub(crate) fn unfoldable(tensors: &Tensors) -> Result<Option<String>> {
    let most = f64::from(f32::MAX);
    let wide =
        |tensor: &Tensor| -> retort_nn::Result<Vec<f64>> { Ok(tensor.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?) };
    let mut norms = Vec::new();
    for (name, variance) in tensors {
        let Some(stem) = name.strip_suffix("running_var") else { continue };
        let part = |key: &str| tensors.get(&format!("{stem}{key}"));
        let (Some(weight), Some(bias), Some(mean)) = (part("weight"), part("bias"), part("running_mean")) else {
            continue;
        };
        let (mut scale, mut shift) = (0f64, 0f64);
        let rows = wide(weight)?.into_iter().zip(wide(bias)?).zip(wide(mean)?).zip(wide(variance)?);
        for (((weight, bias), mean), variance) in rows {
            if variance < 0.0 {
                let message = format!("`{}`: a running variance must not be negative, found {variance}", shown(name));
                return Ok(Some(message));
            }
            let factor = weight / (variance + EPS).sqrt();
            scale = scale.max(factor.abs());
            shift = shift.max((bias - mean * factor).abs());
        }
        if scale > most || shift > most {
            let message = format!(
                "`{}`: the batch norm is not finite in float32: a scale of {scale:e}, a shift of {shift:e}",
                shown(name)
            );
            return Ok(Some(message));
        }
        norms.push((variance.dims().to_vec(), stem.trim_end_matches('.'), scale, shift));
    }
    for (name, tensor) in tensors.iter().filter(|(name, tensor)| tensor.rank() == 4 && name.ends_with("weight")) {
        let weight = largest(tensor)?;
        let bias = tensors.get(&format!("{}bias", name.trim_end_matches("weight"))).map(largest).transpose()?;
        let follows = |(channels, ..): &&(Vec<usize>, _, _, _)| channels[..] == tensor.dims()[..1];
        for (_, norm, scale, shift) in norms.iter().filter(follows) {
            if scale * weight > most || scale * bias.unwrap_or(0.0) + shift > most {
                let (name, norm) = (shown(name), shown(norm));
                let message = format!(
                    "`{name}` and the batch norm `{norm}` are not finite in float32 when they are folded: weights up \
                     to {weight:e}, a scale of {scale:e}"
                );
                return Ok(Some(message));
            }
        }
    }
    Ok(None)
}

/// A name and shape of the file.
fn entry(file: &WeightFile, full: &str) -> String {
    format!("`{}` {}", shown(full), shape_shown(&file.entries()[full].shape))
}

/// A shape, cut off after as many dimensions as any tensor of a network has.
fn shape_shown(shape: &[usize]) -> String {
    match shape.get(..SHOWN) {
        Some(first) if shape.len() > SHOWN => format!("{first:?}.. of {} dimensions", shape.len()),
        _ => format!("{shape:?}"),
    }
}

/// Lines that a list is cut off after.
const SHOWN: usize = 8;

/// Appends a line for each of the first items, and how many there are beyond them: a line may be dear.
fn list<T>(text: &mut String, what: &str, mut items: impl Iterator<Item = T>, line: impl Fn(T) -> String) {
    for item in items.by_ref().take(SHOWN) {
        text.push_str(&format!("\n  {what}: {}", line(item)));
    }
    let hidden = items.count();
    if hidden > 0 {
        text.push_str(&format!("\n  {what}: {hidden} more"));
    }
}
