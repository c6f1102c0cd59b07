use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use rustls_pki_types::alg_id;

use super::*;

/// Finds good what is signed by its own key.
#[derive(Debug, Default)]
struct Counting(AtomicUsize);

impl SignatureVerificationAlgorithm for Counting {
    fn verify_signature(&self, key: &[u8], _: &[u8], by: &[u8]) -> Result<(), InvalidSignature> {
        self.0.fetch_add(1, Ordering::Relaxed);
        if key == by {
            Ok(())
        } else {
            Err(InvalidSignature)
        }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ED25519
    }
}

fn one(most: usize) -> (&'static Counting, Remembering) {
    let counting: &'static Counting = Box::leak(Box::default());
    let good = Arc::new(Good::new(most));
    (counting, good.remembering(&[counting]).remove(0))
}

fn looked(counting: &Counting) -> usize {
    counting.0.load(Ordering::Relaxed)
}

#[test]
fn a_good_signature_is_looked_at_once() {
    let (counting, algorithm) = one(8);
    for _ in 0..5 {
        algorithm.verify_signature(b"k", b"m", b"k").unwrap();
    }
    assert_eq!(looked(counting), 1);
}

#[test]
fn a_bad_one_is_never_remembered() {
    let (counting, algorithm) = one(8);
    for _ in 0..5 {
        algorithm.verify_signature(b"k", b"m", b"?").unwrap_err();
    }
    assert_eq!(looked(counting), 5);
}

#[test]
fn with_room_for_none_each_is_looked_at_again() {
    let (counting, algorithm) = one(0);
    for _ in 0..5 {
        algorithm.verify_signature(b"k", b"m", b"k").unwrap();
    }
    assert_eq!(looked(counting), 5);
}

#[test]
fn what_one_algorithm_found_good_is_looked_at_by_another() {
    let (first, second): (&'static Counting, &'static Counting) =
        (Box::leak(Box::default()), Box::leak(Box::default()));
    let both = Arc::new(Good::new(8)).remembering(&[first, second]);
    both[0].verify_signature(b"k", b"m", b"k").unwrap();
    both[1].verify_signature(b"k", b"m", b"k").unwrap();
    assert_eq!((looked(first), looked(second)), (1, 1));
}

#[test]
fn what_is_of_use_stays_while_others_come_and_go() {
    let (counting, algorithm) = one(8);
    for other in 0u32..1_000 {
        algorithm.verify_signature(b"k", b"m", b"k").unwrap();
        let other = other.to_be_bytes();
        algorithm.verify_signature(&other, b"m", &other).unwrap();
    }
    assert_eq!(looked(counting), 1 + 1_000);
    assert!(algorithm.good.0.len() <= 8);
}

#[test]
fn what_is_too_long_is_not_kept() {
    let (counting, algorithm) = one(8);
    let long = [7; LONGEST];
    for _ in 0..2 {
        algorithm.verify_signature(b"k", &long, b"k").unwrap();
    }
    assert_eq!(looked(counting), 2);
    assert_eq!(algorithm.good.0.len(), 0);
}

proptest! {
    /// Whatever came before, the answer is that of the algorithm: bytes that move from one part to the next
    /// make another input.
    #[test]
    fn the_answer_is_the_algorithms(
        inputs in proptest::collection::vec(("[ab]{0,3}", "[ab]{0,3}", "[ab]{0,3}"), 1..60),
        most in 0usize..10,
    ) {
        let (_, algorithm) = one(most);
        for (key, message, signature) in &inputs {
            let answer = algorithm.verify_signature(key.as_bytes(), message.as_bytes(), signature.as_bytes());
            prop_assert_eq!(answer.is_ok(), key == signature);
        }
    }
}
