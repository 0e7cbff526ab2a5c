//! The committed manifests are valid, and the committed results are what their records say.

use retort_datasets::Sources;
use retort_lab::manifest::Loaded;
use retort_lab::plan::{Plan, Selection, Splits};
use retort_lab::record::Record;
use retort_lab::table::Table;
use std::fs;
use std::path::PathBuf;

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_committed_manifest_is_valid() {
    let folder = workspace().join("experiments");
    let names = retort_lab::manifest::tables(&folder).unwrap();
    assert!(!names.is_empty());
    for name in names {
        let loaded = Loaded::table(&folder, &name).unwrap();
        for profile in loaded.manifest.profiles.keys() {
            loaded.profile(Some(profile)).unwrap();
        }
    }
}

/// Folders are called `TABLE-PROFILE`.
#[test]
fn every_committed_table_is_rendered_from_its_records() {
    let mut folders: Vec<PathBuf> =
        fs::read_dir(workspace().join("docs/results")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.retain(|folder| folder.is_dir());
    assert!(!folders.is_empty());
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let (table, profile) = name.split_once('-').unwrap();
        let loaded = Loaded::table(&workspace().join("experiments"), table).unwrap();
        let data = &loaded.profile(Some(profile)).unwrap().1.data;
        let test = data.test.as_ref().map(|n| *n.as_ref());
        let splits = Splits::load(data.name.as_ref(), None, &data.subset(), test, &Sources::default()).unwrap();
        let plan = Plan::new(&loaded, profile, &splits, &Selection::default()).unwrap();
        let load = |id: String| (id.clone(), Record::load(&Record::path(&folder.join("records"), &id)).unwrap());
        let rendered = Table::new(&loaded, &plan, &plan.by_id().into_keys().map(load).collect()).unwrap();
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        assert!(read("terminal.txt").starts_with(rendered.terminal().trim_end()), "{name}: {}", rendered.terminal());
        assert_eq!(read("table.md"), rendered.markdown(), "{name}");
        assert_eq!(read("table.csv"), rendered.csv().unwrap(), "{name}");
        assert_eq!(read("table.tex"), rendered.latex(), "{name}");
    }
}
