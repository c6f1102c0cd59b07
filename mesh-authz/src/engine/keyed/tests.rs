use std::collections::HashSet;
use std::hash::BuildHasher;

use super::{Keyed, Texts};

/// Texts of all lengths that differ in little.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = (0..200).map(|length| "a".repeat(length)).collect();
    for length in 1..60 {
        for at in 0..length {
            let mut text = "a".repeat(length);
            text.replace_range(at..=at, "b");
            texts.push(text);
        }
    }
    texts.extend((0..10_000).map(|at| format!("/v1/items/{at}")));
    texts
}

#[test]
fn different_texts_have_different_hashes() {
    let keyed = Keyed(7);
    let texts = texts();
    let hashes: HashSet<u64> = texts.iter().map(|text| keyed.hash_one(text)).collect();
    assert_eq!(hashes.len(), texts.len());
}

#[test]
fn all_bits_of_a_hash_count() {
    // Tables take the lowest bits for the place and the highest for the tag.
    let keyed = Keyed(7);
    for shift in [0, 57] {
        let mut places = [0_u32; 128];
        let texts = texts();
        for text in &texts {
            places[((keyed.hash_one(text) >> shift) & 127) as usize] += 1;
        }
        let mean = u32::try_from(texts.len()).unwrap() / 128;
        let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
        assert!(
            *least > mean / 2 && *most < mean * 2,
            "{least}..{most} of {mean}"
        );
    }
}

#[test]
fn the_key_counts() {
    assert_ne!(Keyed(1).hash_one("a"), Keyed(2).hash_one("a"));
    assert_ne!(Keyed::default().0, Keyed::default().0);
}

#[test]
fn texts_are_found_whatever_their_lengths() {
    let all = texts();
    let (some, others) = all.split_at(all.len() / 2);
    let table: Texts<usize> = some
        .iter()
        .map(|text| text.as_str().into())
        .zip(0..)
        .collect();
    for (at, text) in some.iter().enumerate() {
        assert!(table.may_have(text));
        assert_eq!(table.get(text), Some(&at));
    }
    for text in others {
        assert_eq!(table.get(text), None);
    }
    let one: Texts<()> = [("aaa".into(), ())].into_iter().collect();
    assert!(!one.may_have("aaaa") && one.may_have("bbb") && one.get("bbb").is_none());
    // Lengths count modulo 64.
    let long = "a".repeat(67);
    assert!(one.may_have(&long) && one.get(&long).is_none());
    assert!(!one.is_empty());
    let none: Texts<()> = [].into_iter().collect();
    assert!(none.is_empty() && !none.may_have(""));
}
