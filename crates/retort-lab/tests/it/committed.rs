//! The committed manifests are valid, and the committed results are what their records say.

use retort_datasets::Sources;
use retort_lab::manifest::{Loaded, collection};
use retort_lab::plan::{Plan, Selection};
use retort_lab::record::Record;
use retort_lab::splits::ProfileData;
use retort_lab::table::Table;
use std::fs;
use std::path::{Path, PathBuf};

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_committed_manifest_is_valid() {
    let folder = workspace().join("experiments");
    let tables = Loaded::all(&folder).unwrap();
    assert!(!tables.is_empty());
    for loaded in tables {
        for profile in loaded.manifest.profiles.keys() {
            loaded.profile(Some(profile)).unwrap();
        }
    }
}

/// A row that does not fit its pair is found here, not by whoever runs the table first.
#[test]
fn every_profile_on_embedded_images_can_be_planned() {
    let mut planned = 0;
    for loaded in Loaded::all(&workspace().join("experiments")).unwrap() {
        for (name, profile) in &loaded.manifest.profiles {
            let Ok(info) = retort_datasets::info(profile.data.name.as_ref()) else { continue };
            if info.embedded() {
                let data = ProfileData::load(profile, &Sources::default()).unwrap();
                let plan = Plan::new(&loaded, name, &data, &Selection { seeds: Some(1), ..Selection::default() });
                assert!(!plan.unwrap().runs.is_empty());
                planned += 1;
            }
        }
    }
    assert!(planned >= 8, "{planned}");
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
        let (table, profile) = name.rsplit_once('-').unwrap();
        let (title, parts) = collection(&workspace().join("experiments"), table).unwrap();
        let rendered: Vec<Table> = parts.iter().map(|loaded| rendered(loaded, profile, &folder)).collect();
        let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap();
        let terminal = read("terminal.txt");
        for table in &rendered {
            assert!(terminal.contains(table.terminal().trim_end()), "{name}: {}", table.terminal());
        }
        let [markdown, csv, latex] = match (title, rendered.as_slice()) {
            (None, [table]) => [table.markdown(), table.csv().unwrap(), table.latex()],
            (title, tables) => Table::report(&title.unwrap(), &tables.iter().collect::<Vec<_>>()).unwrap(),
        };
        assert_eq!(read("table.md"), markdown, "{name}");
        assert_eq!(read("table.csv"), csv, "{name}");
        assert_eq!(read("table.tex"), latex, "{name}");
    }
}

fn rendered(loaded: &Loaded, profile: &str, folder: &Path) -> Table {
    let data = ProfileData::load(loaded.profile(Some(profile)).unwrap().1, &Sources::default()).unwrap();
    let plan = Plan::new(loaded, profile, &data, &Selection::default()).unwrap();
    let load = |id: String| (id.clone(), Record::load(&Record::path(&folder.join("records"), &id)).unwrap());
    Table::new(loaded, &plan, &plan.by_id().into_keys().map(load).collect()).unwrap()
}
