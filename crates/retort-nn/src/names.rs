//! Names in error messages: nearest valid ones, and those of files.

/// The candidate with the smallest edit distance to `name`, if it is close enough to be a plausible slip.
///
/// ```
/// assert_eq!(retort_nn::nearest("resnet80", ["resnet8", "vgg8"].into_iter()), Some("resnet8"));
/// assert_eq!(retort_nn::nearest("elephant", ["resnet8", "vgg8"].into_iter()), None);
/// ```
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let (length, lower) = (name.chars().count(), name.to_lowercase());
    let limit = (length / 2).max(2);
    candidates
        // The distance is at least the difference of the lengths, and dear for long texts.
        .filter(|candidate| candidate.chars().take(length + limit + 1).count().abs_diff(length) <= limit)
        .map(|candidate| (edit_distance(&lower, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Text of a file or a request as it may stand in a message: without control characters, and cut off after a line.
///
/// ```
/// assert_eq!(retort_nn::shown("fc.\nweight"), "fc.\\nweight");
/// assert!(retort_nn::shown(&"x".repeat(100_000)).len() < 200);
/// ```
#[must_use]
pub fn shown(text: &str) -> String {
    crate::torch_file::shown(text)
}

/// Levenshtein's distance: insertions, deletions and substitutions.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitution = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitution.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::edit_distance;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting"), 3);
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("kd", "kd"), 0);
    }
}
