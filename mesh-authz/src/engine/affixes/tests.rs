use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::{Affixes, End};

fn of(table: &Affixes<String>, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    table.of(text, |value| found.push(value.clone()));
    found
}

fn table<'a>(end: End, texts: impl IntoIterator<Item = &'a str>) -> Affixes<String> {
    let texts = texts.into_iter().map(|text| (text.into(), text.to_owned()));
    Affixes::new(end, texts.collect())
}

#[test]
fn beginnings() {
    let table = table(End::Front, ["b", "a", "", "ab", "abc", "ac", "b/c"]);
    assert_eq!(of(&table, "abd"), ["", "a", "ab"]);
    assert_eq!(of(&table, "abc"), ["", "a", "ab", "abc"]);
    assert_eq!(of(&table, "b/d"), ["", "b"]);
    assert_eq!(of(&table, ""), [""]);
}

#[test]
fn ends() {
    let table = table(End::Back, ["/sa/x", "x", "/sa/y", "a/sa/x"]);
    assert_eq!(of(&table, "td/ns/a/sa/x"), ["x", "/sa/x", "a/sa/x"]);
    assert_eq!(of(&table, "td/ns/b/sa/y"), ["/sa/y"]);
    assert!(of(&table, "td/ns/b/sa/z").is_empty());
    assert!(of(&table, "").is_empty());
}

#[test]
fn none() {
    let table = table(End::Front, []);
    assert!(table.is_empty());
    assert!(of(&table, "a").is_empty());
}

#[test]
fn texts_in_texts_however_deep() {
    let all: Vec<String> = (1..2_000).map(|length| "a".repeat(length)).collect();
    let table = table(End::Front, all.iter().map(String::as_str));
    assert_eq!(of(&table, &all[999]).len(), 1_000);
}

proptest! {
    #[test]
    fn as_if_walked(texts in btree_set("[abé/]{0,6}", 0..40), probes in vec("[abé/]{0,10}", 1..20)) {
        let front = table(End::Front, texts.iter().map(String::as_str));
        let back = table(End::Back, texts.iter().map(String::as_str));
        for probe in &probes {
            for (table, matches) in [
                (&front, (|probe, text| str::starts_with(probe, text)) as fn(&str, &str) -> bool),
                (&back, |probe, text| str::ends_with(probe, text)),
            ] {
                let mut walked: Vec<&String> = texts.iter().filter(|text| matches(probe, text)).collect();
                walked.sort_by_key(|text| text.len());
                let found = of(table, probe);
                prop_assert_eq!(found.iter().collect::<Vec<_>>(), walked);
            }
        }
    }
}
