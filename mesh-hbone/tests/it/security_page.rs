//! SECURITY.md promises tests: they exist.

use std::fs;
use std::path::Path;

/// `path: name` in backquotes.
fn named(page: &str) -> Vec<(&str, &str)> {
    let quoted = page.split('`').skip(1).step_by(2);
    quoted.filter_map(|text| text.split_once(".rs: ")).collect()
}

#[test]
fn every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named = named(&page);
    assert!(named.len() >= 70, "{}", named.len());
    let missing: Vec<_> = named
        .iter()
        .filter(|(path, test)| {
            let source = fs::read_to_string(root.join(format!("{path}.rs"))).unwrap_or_default();
            // The attribute stands before it; in a `proptest!` too.
            let declared = source.find(&format!("fn {test}("));
            !declared.is_some_and(|at| {
                let before = &source[..at];
                let attribute = before.rfind("#[test]").max(before.rfind("#[tokio::test"));
                attribute.is_some_and(|attribute| !before[attribute..].contains("fn "))
            })
        })
        .collect();
    assert!(missing.is_empty(), "{missing:#?}");
    // Every threat has one.
    let rows = page
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| threat"));
    for row in rows {
        assert!(row.contains(".rs: "), "{row}");
    }
}
