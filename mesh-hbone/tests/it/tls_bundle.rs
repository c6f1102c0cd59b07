use std::error::Error as _;
use std::time::{Duration, SystemTime};

use mesh_hbone::ErrorKind;
use mesh_hbone::tls::{Bundle, Fingerprint};
use rcgen::{IsCa, SerialNumber, date_time_ymd};
use rustls_pki_types::CertificateRevocationListDer;

use crate::authority::{Authority, CLIENT, Leaf, SERVER, id, leaf_params};

fn pem(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, three) in der.chunks(3).enumerate() {
        if index > 0 && index % 16 == 0 {
            text.push('\n');
        }
        let mut word = [0; 4];
        word[1..=three.len()].copy_from_slice(three);
        let word = u32::from_be_bytes(word);
        for place in 0..4 {
            text.push(if place <= three.len() {
                char::from(ALPHABET[(word >> (18 - 6 * place)) as usize & 63])
            } else {
                '='
            });
        }
    }
    text + &format!("\n-----END {label}-----\n")
}

fn chain_pem(leaf: &Leaf) -> String {
    leaf.chain
        .iter()
        .map(|certificate| pem("CERTIFICATE", certificate))
        .collect()
}

#[test]
fn a_validity_that_ends_before_it_begins_is_refused() {
    let root = Authority::root("root");
    let mut params = leaf_params(&[CLIENT]);
    params.not_before = date_time_ymd(2031, 1, 1);
    params.not_after = date_time_ymd(2030, 1, 1);
    let leaf = root.issue(&params);
    let key = leaf.key.clone_key();
    let error = Bundle::new(leaf.chain, key, vec![root.der()], &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle);
    assert!(
        format!("{error} {error:?}").contains("validity"),
        "{error:?}"
    );
}

#[test]
fn a_chain_of_more_intermediates_than_peers_take_is_refused() {
    let (root, next) = (Authority::root("root"), Authority::root("next"));
    let below = |count| {
        let first = root.intermediate("1", 1);
        (2..=count).fold(first, |issuer, depth| {
            issuer.intermediate(&depth.to_string(), depth)
        })
    };
    let mut leaf = below(6).leaf(CLIENT);
    leaf.bundle(&[&root]).unwrap();
    // Trusted roots do not count, however many are sent along.
    leaf.chain.extend([next.der(), root.der()]);
    leaf.bundle(&[&root, &next]).unwrap();

    let mut seven = below(7).leaf(CLIENT);
    for (leaf, presented) in [(&leaf, 9), (&seven, 8)] {
        let error = leaf.bundle(&[&root]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidBundle);
        let expected = format!(
            "certificate chain: presented {presented} certificates, expected at most a leaf, 6 intermediates and roots"
        );
        assert!(error.to_string().contains(&expected), "{error}");
    }
    seven.chain.push(root.der());
    assert!(seven.bundle(&[&root]).is_err());
}

/// A root that is sent along behind as many intermediates as there may be.
#[test]
fn a_root_is_trusted_no_more_whatever_chain_is_presented() {
    let (root, next) = (Authority::root("root"), Authority::root("next"));
    let last = (1..=6).fold(None, |issuer: Option<Authority>, depth| {
        let name = depth.to_string();
        Some(issuer.as_ref().unwrap_or(&root).intermediate(&name, depth))
    });
    let mut leaf = last.unwrap().leaf(CLIENT);
    leaf.chain.push(root.der());
    assert!(leaf.bundle(&[&next]).is_err());

    let bundle = leaf.bundle(&[&root]).unwrap();
    let distrusts = bundle.with_trust(vec![next.der()], &[]).unwrap();
    assert_eq!(distrusts.roots(), [next.der()]);
    assert_eq!(distrusts.chain(), leaf.chain);
    let list = next.crl(&[9]);
    let revokes = bundle.with_trust(vec![next.der()], &[list]).unwrap();
    assert_eq!(revokes.crl_count(), 1);
}

#[test]
fn pem_and_der_give_the_same_bundle() {
    let root = Authority::root("root");
    let intermediate = root.intermediate("intermediate", 7);
    let mut params = leaf_params(&[CLIENT]);
    params.not_before = date_time_ymd(2030, 1, 1);
    params.not_after = date_time_ymd(2031, 1, 1);
    params.serial_number = Some(SerialNumber::from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0]));
    let leaf = intermediate.issue(&params);
    let bundle = Bundle::from_pem(
        chain_pem(&leaf).as_bytes(),
        pem("PRIVATE KEY", leaf.key.secret_der()).as_bytes(),
        pem("CERTIFICATE", &root.der()).as_bytes(),
        pem("X509 CRL", &root.crl(&[9])).as_bytes(),
    )
    .unwrap();
    assert_eq!(bundle.chain(), leaf.chain);
    assert_eq!(bundle.chain().len(), 2);
    assert_eq!(bundle.roots(), [root.der()]);
    assert_eq!(bundle.root_fingerprints(), [Fingerprint::of(&root.der())]);
    assert_eq!(bundle.identity(), &id(CLIENT));
    assert_eq!(bundle.serial_number(), "18446744073709551616");
    let year_2030 = SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000);
    assert_eq!(bundle.not_before(), year_2030);
    assert_eq!(
        bundle.not_after(),
        year_2030 + Duration::from_secs(365 * 86_400)
    );
}

#[test]
fn what_cannot_be_used_is_refused_by_name() {
    let root = Authority::root("root");
    let leaf = root.leaf(SERVER);
    let chain = chain_pem(&leaf);
    let key = pem("PRIVATE KEY", leaf.key.secret_der());
    let roots = pem("CERTIFICATE", &root.der());
    let make = |chain: &str, key: &str, roots: &str, crls: &str| {
        Bundle::from_pem(
            chain.as_bytes(),
            key.as_bytes(),
            roots.as_bytes(),
            crls.as_bytes(),
        )
    };
    make(&chain, &key, &roots, " \n").unwrap();
    let broken = pem("CERTIFICATE", b"\x30\x03abc");
    let both = leaf_params(&[CLIENT, SERVER]);
    let none = leaf_params(&[]);
    let mut authority = leaf_params(&[CLIENT]);
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    for (chain, key, roots, crls, field) in [
        ("", &*key, &*roots, "", "certificate chain"),
        (&broken, &key, &roots, "", "chain certificate 0"),
        (
            &(chain.clone() + &broken),
            &key,
            &roots,
            "",
            "chain certificate 1",
        ),
        (
            &chain[..chain.len() - 40],
            &key,
            &roots,
            "",
            "certificate chain",
        ),
        (
            &chain_pem(&root.issue(&both)),
            &key,
            &roots,
            "",
            "leaf certificate",
        ),
        (
            &chain_pem(&root.issue(&none)),
            &key,
            &roots,
            "",
            "leaf certificate",
        ),
        (
            &chain_pem(&root.issue(&authority)),
            &key,
            &roots,
            "",
            "leaf certificate",
        ),
        (&chain, "", &roots, "", "private key"),
        (&chain, &key, "", "", "trust roots"),
        (&chain, &key, &broken, "", "root 0"),
        (&chain, &key, &roots, "no list", "CRLs"),
        (
            &chain,
            &key,
            &roots,
            &pem("X509 CRL", b"\x30\x03abc"),
            "CRL 0",
        ),
    ] {
        let error = make(chain, key, roots, crls).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidBundle);
        assert!(error.is_configuration());
        assert!(error.to_string().contains(field), "{field}: {error}");
    }
}

#[test]
fn one_bad_list_among_good_ones_refuses_the_bundle() {
    let root = Authority::root("root");
    let good = root.crl(&[1]);
    let mut cut = good.to_vec();
    cut.truncate(cut.len() - 1);
    let lists = [good, CertificateRevocationListDer::from(cut)];
    let error = root.leaf(SERVER).bundle_with(&[&root], &lists).unwrap_err();
    assert!(error.to_string().contains("CRL 1") && error.source().is_some());
}

#[test]
fn debug_shows_no_key() {
    let root = Authority::root("root");
    let leaf = root.leaf(SERVER);
    let credentials = root.credentials(SERVER);
    let bundle = leaf.bundle(&[&root]).unwrap();
    let shown = format!("{bundle:?} {bundle:#?} {credentials:?}");
    assert!(shown.contains(SERVER));
    let secret = leaf.key.secret_der();
    let as_list = format!("{:?}", &secret[40..44]);
    let as_hex: String = secret[40..48]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(!shown.contains(as_list.trim_matches(['[', ']'])));
    assert!(!shown.contains(&as_hex) && !shown.to_lowercase().contains("key"));
}
