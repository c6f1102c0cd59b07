use std::sync::Arc;

use super::{Blocks, Nested, Prefix, Span, Suffix};
use crate::matcher::parse_cidr;

fn covering<S: Span>(table: &Nested<S, &'static str>, probe: &S::Probe) -> Vec<&'static str> {
    table.covering(probe).copied().collect()
}

fn texts<S>(span: fn(Arc<str>) -> S, texts: &[&'static str]) -> Vec<(S, &'static str)> {
    texts
        .iter()
        .map(|text| (span((*text).into()), *text))
        .collect()
}

#[test]
fn prefixes() {
    let table = Nested::new(texts(Prefix, &["b", "a", "", "ab", "abc", "ac", "b/c"]));
    assert_eq!(covering(&table, "abd"), ["ab", "a", ""]);
    assert_eq!(covering(&table, "abc"), ["abc", "ab", "a", ""]);
    assert_eq!(covering(&table, "b/d"), ["b", ""]);
    assert_eq!(covering(&table, ""), [""]);
    assert_eq!(covering(&table, "zzz"), [""]);
    let table = Nested::new(texts(Prefix, &["b"]));
    assert!(covering(&table, "a").is_empty());
    assert!(covering(&table, "c").is_empty());
}

#[test]
fn suffixes() {
    let table = Nested::new(texts(Suffix, &["/sa/x", "x", "/sa/y", "a/sa/x"]));
    assert_eq!(covering(&table, "td/ns/a/sa/x"), ["a/sa/x", "/sa/x", "x"]);
    assert_eq!(covering(&table, "td/ns/b/sa/y"), ["/sa/y"]);
    assert!(covering(&table, "td/ns/b/sa/z").is_empty());
}

#[test]
fn blocks() {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/32",
        "10.255.255.255/32",
        "11.0.0.0/8",
        "::/0",
        "fd00::/8",
        "255.255.255.255/32",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
    ];
    let table = Blocks::new(texts.map(|text| (parse_cidr(text).unwrap(), text)));
    let covering = |ip: &str| {
        let mut found = Vec::new();
        let ip = ip.parse().unwrap();
        table.covering(ip, |text| found.push(*text));
        assert_eq!(table.covers(ip), !found.is_empty());
        found
    };
    assert_eq!(
        covering("10.0.0.0"),
        ["10.0.0.0/32", "10.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
    );
    assert_eq!(covering("10.1.0.1"), ["10.0.0.0/8", "0.0.0.0/0"]);
    assert_eq!(covering("192.0.2.1"), ["0.0.0.0/0"]);
    assert_eq!(covering("fd00::1"), ["fd00::/8", "::/0"]);
    assert_eq!(covering("255.255.255.255"), [texts[8], "0.0.0.0/0"]);
    assert_eq!(
        covering("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        [texts[9], "::/0"]
    );
    assert_eq!(table.values().count(), texts.len());
}
