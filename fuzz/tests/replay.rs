//! Replays the corpus, and what lies a byte beside it, without libFuzzer.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use mesh_fuzz::TARGETS;

/// Changed copies of a target's inputs that are tried besides them; the same ones in every run.
const MUTATIONS: usize = 4_000;

fn names(folder: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let name = |path: &Path| {
        path.file_stem()
            .expect("a name")
            .to_string_lossy()
            .into_owned()
    };
    fs::read_dir(folder)
        .expect("a folder")
        .map(|entry| name(&entry.expect("an entry").path()))
        .collect()
}

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| {
            let path = entry.expect("an entry").path();
            (path.display().to_string(), fs::read(&path).expect("a file"))
        })
        .collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

#[test]
fn every_target_has_a_program_and_a_corpus() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
    let manifest = include_str!("../Cargo.toml");
    for target in &targets {
        assert!(
            manifest.contains(&format!("\nname = \"{target}\"\n")),
            "{target}"
        );
    }
}

#[test]
fn the_corpus_holds() {
    for (target, body) in TARGETS {
        for (path, input) in corpus(target) {
            // Says which input it was, should the body panic.
            println!("{path}");
            body(&input);
        }
    }
}

#[test]
fn what_lies_beside_the_corpus_holds() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below.max(1) as u64) as usize
    };
    for (target, body) in TARGETS {
        let inputs = corpus(target);
        for (path, input) in &inputs {
            println!("beside {path}");
            for _ in 0..MUTATIONS.div_ceil(inputs.len()) {
                let mut data = input.clone();
                for _ in 0..=random(3) {
                    let at = random(data.len());
                    match random(5) {
                        0 if at < data.len() => data[at] = random(256) as u8,
                        1 if at < data.len() => data[at] ^= 1 << random(8),
                        2 => data.insert(at, random(128) as u8),
                        3 => data.truncate(at),
                        _ => {
                            let (_, other) = &inputs[random(inputs.len())];
                            let from = random(other.len());
                            data.splice(at..at, other[from..].iter().take(16).copied());
                        }
                    }
                }
                body(&data);
            }
        }
    }
}
