//! Weights chosen on held-out images, and the report on features.

use super::{Lab, TINY};
use std::fs;

/// The tiny table with a row whose weight is open, for networks with features of one width.
fn manifest() -> String {
    let row = "[[methods]]\nid = \"w2\"\nlabel = \"W2\"\ntune = true\nlosses = [{ method = \"ce\" }, { method = \"w2-empirical\", weight = 7.0 }]\n\n";
    let profile = "tuning = { weights = [1.0, 0.01], seeds = 2 }\nfeatures = true\n[profiles.quick.teacher]";
    TINY.replacen("[profiles.quick]", &format!("{row}[profiles.quick]"), 1)
        .replacen("train = 60, test = 40", "train = 60, test = 40, validation = 20", 1)
        .replacen("[profiles.quick.teacher]", profile, 1)
}

#[test]
fn weights_are_chosen_written_down_and_used() {
    let lab = Lab::with(&manifest());
    let before = lab.ok(&["reproduce", "tiny", "--plan"]);
    let text = lab.ok(&["tune", "tiny"]);
    let path = lab.path("experiments/tuned/tiny-quick.toml");
    let file = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with(&file) && text.contains("tiny-quick.toml"), "{text}");
    assert!(file.contains("20 held-out of 60 training images") && file.contains("# 0.01: "), "{file}");
    let chosen = file.lines().find_map(|line| line.strip_prefix("\"w2\" = ")).unwrap();
    assert!(chosen.starts_with("0.01 # ") || chosen.starts_with("1.0 # "), "{chosen}");
    // Only the row with the open weight has new runs.
    let after = lab.ok(&["reproduce", "tiny", "--plan"]);
    for (old, new) in before.lines().zip(after.lines()) {
        assert_eq!(old == new, !old.contains(" w2, "), "{old}\n{new}");
    }
    // A second search finds everything done.
    assert_eq!(lab.ok(&["tune", "tiny"]), text);

    let table = lab.ok(&["reproduce", "tiny", "--only", "w2"]);
    assert!(table.contains("were chosen on held-out training images") && table.contains("features.csv"), "{table}");
    let features = fs::read_to_string(lab.path("runs/tables/tiny-quick/features.csv")).unwrap();
    let mut lines = features.lines().map(|line| line.split(',').collect::<Vec<_>>());
    let heading = lines.next().unwrap();
    let rows: Vec<_> = lines.collect();
    assert_eq!(rows.iter().map(|row| row[1]).collect::<Vec<_>>(), ["ce", "w2"]);
    let value =
        |row: &[&str], name: &str| -> f64 { row[heading.iter().position(|h| *h == name).unwrap()].parse().unwrap() };
    for row in &rows {
        assert!(value(row, "CE student features") <= value(row, "bound by class"));
        assert!(value(row, "CE student features") <= value(row, "joint bound"));
        assert!(value(row, "joint bound") <= value(row, "bound") * (1.0 + 1e-9));
        assert!(value(row, "W2^2") <= value(row, "paired L2") * (1.0 + 1e-6) && value(row, "MMD RBF") > 0.0);
    }
    // The report is kept beside the records, and the same when it is made again.
    let again = lab.ok(&["reproduce", "tiny", "--only", "w2"]);
    assert_eq!(again, table);
    fs::remove_dir_all(lab.path("runs/features")).unwrap();
    lab.ok(&["reproduce", "tiny", "--only", "w2"]);
    assert_eq!(fs::read_to_string(lab.path("runs/tables/tiny-quick/features.csv")).unwrap(), features);
}

#[test]
fn figures_show_features_bounds_and_distances() {
    let lab = Lab::with(&manifest());
    let text = lab.ok(&["reproduce", "tiny", "--only", "w2"]);
    assert!(text.contains("3 figures"), "{text}");
    let figure = |name: &str| fs::read_to_string(lab.path("runs/tables/tiny-quick/figures").join(name)).unwrap();
    let (distances, bounds, pca) =
        (figure("accuracy-distance.svg"), figure("bound-risk.svg"), figure("features-w2.svg"));
    assert!(
        distances.contains("energy, rank correlation")
            && bounds.contains("paired bound")
            && pca.contains("component 1")
    );
    // 40 test images in each of three panels, and ten classes in the legend.
    assert_eq!(pca.matches("<circle").count(), 3 * 40 + 10);
    // Every evaluated epoch of a student has its bounds, so that the figure needs the records alone; a teacher has none.
    let records: Vec<String> = fs::read_dir(lab.path("runs/records"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for record in &records {
        let evaluations = record.matches("\"accuracy\":").count() - 1;
        let student = record.contains("\"teacher\":{");
        assert_eq!(record.matches("\"by_class\":").count(), if student { evaluations } else { 0 }, "{record}");
    }
    lab.ok(&["reproduce", "tiny", "--only", "w2", "--embedding", "tsne"]);
    assert!(figure("features-w2.svg").contains("t-SNE 1"));
    assert_eq!((figure("accuracy-distance.svg"), figure("bound-risk.svg")), (distances, bounds));
}

#[test]
fn broken_searches_and_broken_files_are_refused() {
    let lab = Lab::new();
    assert!(lab.refused(&["tune", "tiny"]).contains("nothing to choose"));
    let refused = |from: &str, to: &str| Lab::with(&manifest().replacen(from, to, 1)).refused(&["tune", "tiny"]);
    assert!(refused(", validation = 20", "").contains("`tuning` needs `validation`"));
    assert!(refused("weights = [1.0, 0.01]", "weights = [0.0]").contains("`weights`"));
    assert!(refused("weights = [1.0, 0.01]", "weights = []").contains("`weights`"));
    assert!(refused("seeds = 2 }", "seeds = 0 }").contains("`seeds`"));

    let lab = Lab::with(&manifest());
    fs::create_dir_all(lab.path("experiments/tuned")).unwrap();
    for (text, part) in [
        ("[weights]\nw3 = 1.0\n", "tiny-quick.toml:2:6: `w3` is no row"),
        ("[weights]\nw2 = -1.0\n", "tiny-quick.toml:2:6: the weight of `w2`"),
        ("[weight]\n", "tiny-quick.toml:1:2: unknown field `weight`"),
        ("[weights\n", "tiny-quick.toml:1:"),
    ] {
        fs::write(lab.path("experiments/tuned/tiny-quick.toml"), text).unwrap();
        let message = lab.refused(&["reproduce", "tiny", "--plan"]);
        assert!(message.contains(part), "{message}");
    }
}
