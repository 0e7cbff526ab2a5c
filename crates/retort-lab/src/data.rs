//! `data`: what data sets there are, whether the files are the right ones, and what the images look like.

use crate::{Error, Result};
use clap::{Args, Subcommand};
use retort_datasets::{Dataset, DatasetInfo, Origin, Sources, Split, contact_sheet, info, registry, write_png};
use std::path::PathBuf;

/// Where data sets are looked for.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct DataArgs {
    /// Folder with the official files of data sets that are not embedded (or with a folder of the set's name); looked into
    /// before the cache of the Hugging Face hub (HF_HUB_CACHE, HF_HOME).
    #[arg(long, env = "RETORT_DATA", hide_env_values = true)]
    pub(crate) data: Option<PathBuf>,
    /// Never use the network.
    #[arg(long)]
    pub(crate) offline: bool,
}

impl DataArgs {
    pub(crate) fn sources(&self) -> Result<Sources> {
        if let Some(missing) = self.data.as_ref().filter(|folder| !folder.is_dir()) {
            return Err(Error::file(missing, "`--data` must be a folder"));
        }
        Ok(Sources { folder: self.data.clone(), offline: self.offline, ..Sources::default() })
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum DataCommand {
    /// Every data set, its splits, and where it is found on this machine.
    List {
        #[command(flatten)]
        data: DataArgs,
    },
    /// Read all splits of the named sets (or of those that are found) and compare them with what is known of them.
    Verify {
        /// Names; all sets that are found where none is given.
        names: Vec<String>,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Write a contact sheet: the first images of every class, a row a class.
    Show {
        /// Name of the data set.
        name: String,
        /// Which split.
        #[arg(long, default_value = "train", value_parser = split)]
        split: Split,
        /// Images of each class.
        #[arg(long, default_value_t = 10)]
        columns: usize,
        /// File to write [default: NAME-SPLIT.png].
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
        #[command(flatten)]
        data: DataArgs,
    },
}

fn split(text: &str) -> std::result::Result<Split, String> {
    let all = [Split::Train, Split::Test, Split::Extra, Split::Unlabelled];
    let found = all.into_iter().find(|split| split.to_string() == text);
    found.ok_or_else(|| format!("expected one of {}", all.map(|split| split.to_string()).join(", ")))
}

impl DataCommand {
    pub(crate) fn execute(&self) -> Result<String> {
        match self {
            Self::List { data } => Ok(list(&data.sources()?)),
            Self::Verify { names, data } => verify(names, &data.sources()?),
            Self::Show { name, split, columns, to, data } => {
                let rows = data.sources()?.load(name, *split).map_err(Error::request)?;
                let (shape, pixels) = contact_sheet(&rows, *columns).map_err(Error::request)?;
                let file = to.clone().unwrap_or_else(|| format!("{}-{split}.png", name.replace('/', "--")).into());
                write_png(&file, shape, &pixels).map_err(Error::request)?;
                Ok(format!("{}\nwritten to {}\n", summary(&rows), crate::cli::from_here(&file).display()))
            }
        }
    }
}

fn list(sources: &Sources) -> String {
    let line = |info: &DatasetInfo| {
        let splits: Vec<String> = info.splits.iter().map(|split| format!("{} {}", split.split, split.rows)).collect();
        let found = sources.find(info.name).unwrap_or_else(|reason| format!("not found: {reason}"));
        format!(
            "{:<20} {:>3} classes  {:<9} {}\n{:21}{found}\n",
            info.name,
            info.classes,
            info.shape.to_string(),
            splits.join(", "),
            ""
        )
    };
    registry().iter().map(line).collect()
}

/// A line a split; an error at the end if something was not as it should be, or not there though it was named.
fn verify(names: &[String], sources: &Sources) -> Result<String> {
    let chosen: Vec<&DatasetInfo> = match names {
        [] => registry().iter().filter(|info| sources.find(info.name).is_ok()).collect(),
        names => names.iter().map(|name| info(name).map_err(Error::request)).collect::<Result<_>>()?,
    };
    let (mut text, mut wrong) = (String::new(), 0);
    for info in chosen {
        for split in info.splits {
            let checked = sources.load(info.name, split.split).and_then(|rows| Ok((rows.verify(info)?, rows)));
            match checked {
                Ok((verdict, rows)) => text += &format!("{verdict}: {}\n", summary(&rows)),
                // The smaller splits are often the only ones that somebody has.
                Err(error) if names.is_empty() && error.is_absence() => {
                    text += &format!("absent: {} {}\n", info.name, split.split);
                }
                Err(error) => {
                    wrong += 1;
                    text += &format!("WRONG: {} {}: {error}\n", info.name, split.split);
                }
            }
        }
    }
    if wrong > 0 {
        return Err(Error::Failed(format!("{text}{wrong} split(s) are not what they should be")));
    }
    Ok(text)
}

fn summary(rows: &Dataset) -> String {
    let kinds = match (rows.is_labelled(), rows.unit()) {
        (true, Some(unit)) => format!("{} classes and a target in {unit}", rows.classes()),
        (true, None) => format!("{} classes", rows.classes()),
        (false, Some(unit)) => format!("a target in {unit}"),
        (false, None) => "no labels".into(),
    };
    format!(
        "{} {}, {} images {}, {kinds}, digest {}",
        rows.name(),
        rows.split(),
        rows.len(),
        rows.shape(),
        rows.digest()
    )
}

/// Where a data set can come from, for lists and pages.
pub(crate) fn origin(origin: &Origin) -> String {
    match origin {
        Origin::Embedded => "embedded".into(),
        Origin::Folder(_) => "folder".into(),
        Origin::Hub(copy) => format!("hub {}", copy.repository),
        Origin::Derived { from } => format!("made from {from}"),
    }
}
