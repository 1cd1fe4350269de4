//! Which of the known names a mistyped one may stand for.

/// The names that the fewest insertions, deletions and replacements of characters turn `wanted` into, three at most.
pub fn nearest<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut measured: Vec<(usize, &'a str)> = names.into_iter().map(|name| (edits(wanted, name), name)).collect();
    measured.sort_by_key(|&(edits, _)| edits);
    let least = measured.first().map_or(0, |&(edits, _)| edits);
    measured.into_iter().take_while(|&(edits, _)| edits == least).take(3).map(|(_, name)| name).collect()
}

/// Levenshtein's distance, a row of its table at a time.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshtein_s() {
        assert_eq!(edits("kitten", "sitting"), 3);
        assert_eq!(edits("", "dpo"), 3);
        assert_eq!(edits("dpo", ""), 3);
        assert_eq!(edits("ipo", "ipo"), 0);
    }

    #[test]
    fn ties_are_all_named() {
        assert_eq!(nearest("dppo", ["kto", "dpo", "sppo", "ipo"]), ["dpo", "sppo"]);
        assert!(nearest("x", []).is_empty());
    }
}
