//! Generated certificates before both verifiers: what is expected of each, and that the error says what
//! is wrong.

use std::time::{Duration, SystemTime};

use mesh_hbone::Error;
use mesh_hbone::ErrorKind::{
    self, BadCertificate, BadKeyUsage, Expired, NotYetValid, Revoked, UnexpectedIdentity,
    UnexpectedTrustDomain, UnknownIssuer,
};
use mesh_hbone::tls::{Credentials, Options};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose as Eku, IsCa,
    KeyUsagePurpose, SerialNumber, date_time_ymd,
};

use crate::authority::{Authority, CLIENT, Leaf, SERVER, leaf_params, provider};
use crate::tls_verification::{judge_client, judge_server};

const PEER: &str = "spiffe://cluster.local/ns/default/sa/peer";

/// What a verifier says: yes, or what is wrong and a piece of how it puts it.
type Expected = Result<(), (ErrorKind, &'static str)>;

/// A day: year, month, day of the month.
type Day = (i32, u8, u8);

/// The table's rows that came out wrong.
struct Bench {
    server: Credentials,
    client: Credentials,
    rows: usize,
    wrong: Vec<String>,
}

/// Everything that an error says, from the outside in.
fn said(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}

impl Bench {
    fn new(root: &Authority) -> Self {
        Self::of(root.credentials(SERVER), root.credentials(CLIENT))
    }

    fn of(server: Credentials, client: Credentials) -> Self {
        Self {
            server,
            client,
            rows: 0,
            wrong: Vec::new(),
        }
    }

    fn row(&mut self, what: &str, role: &str, judged: Result<(), Error>, expected: Expected) {
        self.rows += 1;
        let fits = match (&judged, expected) {
            (Ok(()), Ok(())) => true,
            (Err(error), Err((kind, text))) => {
                error.kind() == kind && error.is_authentication() && said(error).contains(text)
            }
            _ => false,
        };
        if !fits {
            let judged = judged.map_err(|error| said(&error));
            self.wrong.push(format!(
                "{what}, of a {role}: {judged:?}, expected {expected:?}"
            ));
        }
    }

    /// One certificate, as a client's before our server and as a server's before our client.
    async fn both(&mut self, what: &str, leaf: &Leaf, expected: Expected) {
        self.each(what, leaf, expected, expected).await;
    }

    async fn each(&mut self, what: &str, leaf: &Leaf, as_client: Expected, as_server: Expected) {
        let judged = judge_client(&self.server, leaf).await;
        self.row(what, "client", judged, as_client);
        let judged = judge_server(&self.client, leaf, PEER).await;
        self.row(what, "server", judged, as_server);
    }

    fn end(self, rows: usize) {
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
        assert!(self.rows >= rows, "{} rows", self.rows);
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        length @ ..0x80 => der.push(length as u8),
        length => {
            der.push(0x82);
            der.extend_from_slice(&(length as u16).to_be_bytes());
        }
    }
    der.extend_from_slice(content);
    der
}

const URI: u8 = 0x86;
const DNS: u8 = 0x82;
const EMAIL: u8 = 0x81;
const OTHER: u8 = 0xa0;

/// A leaf with these general names, whatever they are.
fn named(names: &[(u8, &[u8])]) -> CertificateParams {
    let mut params = leaf_params(&[]);
    let names: Vec<u8> = names
        .iter()
        .flat_map(|(tag, name)| der(*tag, name))
        .collect();
    let names = CustomExtension::from_oid_content(&[2, 5, 29, 17], der(0x30, &names));
    params.custom_extensions.push(names);
    params
}

fn with(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf_params(&[PEER]);
    change(&mut params);
    params
}

/// S-11, CVE-2022-21656, CVE-2025-66220, CVE-2026-47778, CVE-2020-15104.
#[tokio::test]
async fn names() {
    let root = Authority::root("root");
    let mut bench = Bench::new(&root);
    let peer = PEER.as_bytes();
    bench.both("the control", &root.leaf(PEER), Ok(())).await;
    let long = format!("spiffe://cluster.local/ns/default/sa/{}", "x".repeat(2048));
    for uri in [
        "SPIFFE://cluster.local/ns/default/sa/peer",
        "Spiffe://cluster.local/ns/default/sa/peer",
        "spiffe:/cluster.local/ns/default/sa/peer",
        "spiffe:cluster.local/ns/default/sa/peer",
        "spiffe//cluster.local/ns/default/sa/peer",
        " spiffe://cluster.local/ns/default/sa/peer",
        "spiffe://cluster.local/ns/default/sa/peer ",
        "spiffe://cluster.local/ns/default/sa/peer\n",
        "spiffe://cluster.local/ns/default/sa/peer/",
        "spiffe://cluster.local//ns/default/sa/peer",
        "spiffe://cluster.local/ns/default/sa//peer",
        "spiffe://cluster.local/ns//sa/peer",
        "spiffe://cluster.local/ns/default/sa/",
        "spiffe:///ns/default/sa/peer",
        "spiffe://cluster.local/ns/default/sa/peer?x",
        "spiffe://cluster.local/ns/default/sa/peer#x",
        "spiffe://cluster.local/ns/default/sa/peer\0",
        "spiffe://cluster.local/ns/default/sa/peer\0.evil.example",
        "spiffe://cluster.local\0.evil.example/ns/default/sa/peer",
        "spiffe://cluster.local/ns/default/sa/p%65er",
        "spiffe://cluster.local/ns/default/sa/peer%00",
        "spiffe://cluster.local/ns/default%2fsa/peer",
        "spiffe://cluster.local/ns/default/sa/%2e%2e",
        "spiffe://cluster.local/ns/./sa/peer",
        "spiffe://cluster.local/ns/../sa/peer",
        "spiffe://cluster.local/ns/default/sa/..",
        "spiffe://cluster.local:443/ns/default/sa/peer",
        "spiffe://user@cluster.local/ns/default/sa/peer",
        "spiffe://user:pass@cluster.local/ns/default/sa/peer",
        "spiffe://[::1]/ns/default/sa/peer",
        "spiffe://*/ns/default/sa/peer",
        "spiffe://*.local/ns/default/sa/peer",
        "spiffe://cluster.local/ns/*/sa/peer",
        "spiffe://cluster.local/ns/default/sa/*",
        "spiffe://cluster.local/ns/default/SA/peer",
        "spiffe://cluster.local/NS/default/sa/peer",
        "spiffe://cluster.local/sa/peer/ns/default",
        "spiffe://cluster.local/ns/default/sa/peer/x",
        "spiffe://cluster.local/ns/default",
        "spiffe://cluster.local",
        "spiffe://",
        "https://cluster.local/ns/default/sa/peer",
        "urn:spiffe:cluster.local",
        "cluster.local/ns/default/sa/peer",
        "",
        long.as_str(),
    ] {
        let leaf = root.issue(&named(&[(URI, uri.as_bytes())]));
        let expected = Err((BadCertificate, "SPIFFE id"));
        bench.both(&format!("{uri:.60?}"), &leaf, expected).await;
    }
    let no_text = b"spiffe://cluster.local/ns/default/sa/p\xffer";
    let umlaut = "spiffe://cluster.local/ns/default/sa/p\u{e4}er";
    for (what, names, found) in [
        ("no name", vec![], "found 0"),
        ("only a DNS name", vec![(DNS, peer)], "found 0"),
        ("only an email address", vec![(EMAIL, peer)], "found 0"),
        ("only an other name", vec![(OTHER, peer)], "found 0"),
        ("the same twice", vec![(URI, peer), (URI, peer)], "found 2"),
        (
            "another first",
            vec![(URI, SERVER.as_bytes()), (URI, peer)],
            "found 2",
        ),
        (
            "another last",
            vec![(URI, peer), (URI, SERVER.as_bytes())],
            "found 2",
        ),
        (
            "a web address too",
            vec![(URI, peer), (URI, b"https://example.com")],
            "found 2",
        ),
        ("an empty one too", vec![(URI, peer), (URI, b"")], "found 2"),
        (
            "bytes that are no text too",
            vec![(URI, peer), (URI, no_text)],
            "found 2",
        ),
        (
            "bytes that are no text first",
            vec![(URI, no_text), (URI, peer)],
            "found 2",
        ),
        ("a hundred", vec![(URI, peer); 100], "found 100"),
        ("bytes that are no text", vec![(URI, no_text)], ""),
        ("text that is not ASCII", vec![(URI, umlaut.as_bytes())], ""),
    ] {
        let leaf = root.issue(&named(&names));
        bench.both(what, &leaf, Err((BadCertificate, found))).await;
    }
    for (what, names) in [
        (
            "a DNS name too",
            vec![(DNS, &b"peer.example"[..]), (URI, peer)],
        ),
        (
            "an email address too",
            vec![(URI, peer), (EMAIL, b"a@example.com")],
        ),
        (
            "a DNS name that looks like an id",
            vec![(URI, peer), (DNS, SERVER.as_bytes())],
        ),
    ] {
        bench.both(what, &root.issue(&named(&names)), Ok(())).await;
    }
    // Whole ids of other peers.
    let other = Err((UnexpectedIdentity, "expected one of"));
    for uri in [
        "spiffe://cluster.local/ns/default/sa/peer2",
        "spiffe://cluster.local/ns/default/sa/pee",
        "spiffe://cluster.local/ns/default/sa/Peer",
        "spiffe://cluster.local/ns/other/sa/peer",
        "spiffe://cluster.local/ns/default/sa/peer.",
    ] {
        bench.each(uri, &root.leaf(uri), Ok(()), other).await;
    }
    let foreign = Err((UnexpectedTrustDomain, "expected a trust domain of"));
    for uri in [
        "spiffe://other.local/ns/default/sa/peer",
        "spiffe://Cluster.local/ns/default/sa/peer",
        "spiffe://cluster.local./ns/default/sa/peer",
        "spiffe://cluster.local.evil.example/ns/default/sa/peer",
        "spiffe://evil-cluster.local/ns/default/sa/peer",
    ] {
        bench.each(uri, &root.leaf(uri), foreign, other).await;
    }
    bench.end(140);
}

#[tokio::test]
async fn times() {
    let root = Authority::root("root");
    const NOW: u64 = 1_893_456_000; // 2030
    let at = |uri| {
        let clock = || SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
        root.credentials_with(uri, Options::default().clock(clock))
    };
    let mut bench = Bench::of(at(SERVER), at(CLIENT));
    let rows: [(&str, Day, Day, Expected); 8] = [
        ("valid", (2029, 1, 1), (2031, 1, 1), Ok(())),
        ("valid from this second", (2030, 1, 1), (2031, 1, 1), Ok(())),
        ("valid for ever", (1970, 1, 1), (9999, 12, 31), Ok(())),
        (
            "expired yesterday",
            (2029, 1, 1),
            (2029, 12, 31),
            Err((Expired, "2029")),
        ),
        (
            "expired long ago",
            (1970, 1, 1),
            (1971, 1, 1),
            Err((Expired, "1971")),
        ),
        (
            "valid from tomorrow",
            (2030, 1, 2),
            (2031, 1, 1),
            Err((NotYetValid, "2030")),
        ),
        (
            "valid in the far future",
            (2999, 1, 1),
            (3000, 1, 1),
            Err((NotYetValid, "2999")),
        ),
        (
            "ends before it begins",
            (2031, 1, 1),
            (2029, 1, 1),
            Err((BadCertificate, "InvalidCertValidity")),
        ),
    ];
    for (what, from, until, expected) in rows {
        let change = |params: &mut CertificateParams| {
            params.not_before = date_time_ymd(from.0, from.1, from.2);
            params.not_after = date_time_ymd(until.0, until.1, until.2);
        };
        bench.both(what, &root.issue(&with(change)), expected).await;
        let intermediate = root.intermediate_with("intermediate", change);
        let what = format!("an intermediate: {what}");
        bench.both(&what, &intermediate.leaf(PEER), expected).await;
    }
    bench.end(32);
}

/// S-11, CVE-2022-21657.
#[tokio::test]
async fn usages() {
    let root = Authority::root("root");
    let mut bench = Bench::new(&root);
    let no = Err((BadKeyUsage, "extended key usage"));
    let custom = Eku::Other(vec![1, 3, 6, 1, 4, 1, 99999]);
    let rows: Vec<(&str, Vec<Eku>, Expected, Expected)> = vec![
        ("none", vec![], Ok(()), Ok(())),
        (
            "both",
            vec![Eku::ServerAuth, Eku::ClientAuth],
            Ok(()),
            Ok(()),
        ),
        ("client", vec![Eku::ClientAuth], Ok(()), no),
        ("server", vec![Eku::ServerAuth], no, Ok(())),
        ("code signing", vec![Eku::CodeSigning], no, no),
        ("email", vec![Eku::EmailProtection], no, no),
        ("OCSP", vec![Eku::OcspSigning], no, no),
        ("time stamping", vec![Eku::TimeStamping], no, no),
        ("something else", vec![custom.clone()], no, no),
        (
            "something else too",
            vec![custom, Eku::ServerAuth, Eku::ClientAuth],
            Ok(()),
            Ok(()),
        ),
        (
            "several others",
            vec![Eku::CodeSigning, Eku::EmailProtection, Eku::OcspSigning],
            no,
            no,
        ),
    ];
    for (what, usages, as_client, as_server) in rows {
        let leaf = root.issue(&with(|params| params.extended_key_usages = usages.clone()));
        bench.each(what, &leaf, as_client, as_server).await;
        let intermediate = root.intermediate_with("intermediate", |params| {
            params.extended_key_usages = usages;
        });
        let what = format!("an intermediate: {what}");
        bench
            .each(&what, &intermediate.leaf(PEER), as_client, as_server)
            .await;
    }
    use KeyUsagePurpose::{CrlSign, DigitalSignature, KeyAgreement, KeyCertSign, KeyEncipherment};
    let signs = Err((BadCertificate, "keyCertSign or cRLSign"));
    let signs_not = Err((BadCertificate, "must have digitalSignature"));
    for (what, usages, expected) in [
        ("no key usage", vec![], Ok(())),
        ("digitalSignature", vec![DigitalSignature], Ok(())),
        (
            "digitalSignature and keyAgreement",
            vec![DigitalSignature, KeyAgreement],
            Ok(()),
        ),
        ("keyCertSign", vec![KeyCertSign], signs),
        ("cRLSign", vec![CrlSign], signs),
        (
            "digitalSignature and keyCertSign",
            vec![DigitalSignature, KeyCertSign],
            signs,
        ),
        (
            "digitalSignature and cRLSign",
            vec![DigitalSignature, CrlSign],
            signs,
        ),
        ("keyEncipherment", vec![KeyEncipherment], signs_not),
        ("keyAgreement", vec![KeyAgreement], signs_not),
    ] {
        let leaf = root.issue(&with(|params| params.key_usages = usages));
        bench.both(what, &leaf, expected).await;
    }
    bench.end(62);
}

#[tokio::test]
async fn chains() {
    let root = Authority::root("root");
    // Which is to take its place.
    let next = Authority::root("next");
    let trusting_both = |uri| {
        let bundle = root.leaf(uri).bundle(&[&root, &next]).unwrap();
        Credentials::new(provider(), bundle, Options::default()).unwrap()
    };
    let mut bench = Bench::of(trusting_both(SERVER), trusting_both(CLIENT));
    let unknown = Err((UnknownIssuer, "our roots are"));
    let bad = |reason| Err((BadCertificate, reason));
    let ca = |constraints| IsCa::Ca(constraints);

    bench.both("from the root", &root.leaf(PEER), Ok(())).await;
    bench
        .both(
            "from another root",
            &Authority::root("other").leaf(PEER),
            unknown,
        )
        .await;
    bench
        .both(
            "from a root of the same name",
            &Authority::root("root").leaf(PEER),
            unknown,
        )
        .await;
    let leaf = root.issue(&with(|params| {
        params.is_ca = ca(BasicConstraints::Unconstrained);
    }));
    bench
        .both("an authority as a leaf", &leaf, bad("CaUsedAsEndEntity"))
        .await;
    let leaf = root.issue(&with(|params| params.is_ca = IsCa::ExplicitNoCa));
    bench.both("a leaf that says so", &leaf, Ok(())).await;

    // Depth: six intermediates are as many as webpki walks.
    let mut issuer = root.intermediate("1", 1);
    for depth in 2..=6 {
        issuer = issuer.intermediate(&depth.to_string(), depth);
    }
    bench
        .both("six intermediates", &issuer.leaf(PEER), Ok(()))
        .await;
    let mut leaf = issuer.leaf(PEER);
    leaf.chain.push(root.der());
    bench
        .both("six intermediates and the root", &leaf, Ok(()))
        .await;
    // As while one root takes another's place.
    leaf.chain.insert(7, next.der());
    bench
        .both("six intermediates and two roots", &leaf, Ok(()))
        .await;
    leaf.chain.push(Authority::root("of nobody").der());
    bench
        .both(
            "six intermediates, two roots and a stranger",
            &leaf,
            bad(
                "MaximumPathDepthExceeded: 9 certificates behind the leaf, expected at most 6 and roots of ours",
            ),
        )
        .await;
    // Its names are as they should be.
    let error = judge_client(&bench.server, &leaf).await.unwrap_err();
    assert!(error.to_string().contains("its chain"), "{error}");
    for depth in 7..=30 {
        issuer = issuer.intermediate(&depth.to_string(), depth);
        if depth == 7 {
            let mut leaf = issuer.leaf(PEER);
            let too_deep = bad("MaximumPathDepthExceeded");
            bench.both("seven intermediates", &leaf, too_deep).await;
            leaf.chain.push(root.der());
            let too_deep = bad("MaximumPathDepthExceeded: 8 certificates");
            bench
                .both("seven intermediates and the root", &leaf, too_deep)
                .await;
        }
    }
    let leaf = issuer.leaf(PEER);
    assert_eq!(leaf.chain.len(), 1 + 30);
    bench
        .both(
            "thirty intermediates",
            &leaf,
            bad("MaximumPathDepthExceeded"),
        )
        .await;

    // Path length.
    for (length, fits) in [(0, false), (1, true), (9, true)] {
        let above = root.intermediate_with("above", |params| {
            params.is_ca = ca(BasicConstraints::Constrained(length));
        });
        let what = format!("a path of at most {length}");
        bench.both(&what, &above.leaf(PEER), Ok(())).await;
        let below = above.intermediate("below", 2);
        let expected = if fits {
            Ok(())
        } else {
            bad("PathLenConstraintViolated")
        };
        bench.both(&what, &below.leaf(PEER), expected).await;
    }

    // What is presented besides the chain.
    let (one, two) = (root.intermediate("one", 1), root.intermediate("two", 2));
    let two_below = one.intermediate("below", 3);
    let present = |change: &dyn Fn(&mut Leaf)| {
        let mut leaf = two_below.leaf(PEER);
        change(&mut leaf);
        leaf
    };
    bench
        .both(
            "with its root",
            &present(&|leaf| leaf.chain.push(root.der())),
            Ok(()),
        )
        .await;
    bench
        .both(
            "with a stranger",
            &present(&|leaf| leaf.chain.insert(1, two.der())),
            Ok(()),
        )
        .await;
    bench
        .both(
            "in another order",
            &present(&|leaf| leaf.chain.swap(1, 2)),
            Ok(()),
        )
        .await;
    let twice = present(&|leaf| {
        let chain = leaf.chain.clone();
        leaf.chain.extend(chain);
    });
    bench.both("twice", &twice, Ok(())).await;
    bench
        .both(
            "without an issuer",
            &present(&|leaf| drop(leaf.chain.remove(1))),
            unknown,
        )
        .await;
    bench
        .both(
            "without any issuer",
            &present(&|leaf| leaf.chain.truncate(1)),
            unknown,
        )
        .await;
    let garbage = present(&|leaf| leaf.chain.insert(1, vec![0x30, 0x03, 1, 2, 3].into()));
    bench.both("with garbage", &garbage, Ok(())).await;

    // Two that vouch for each other.
    let crossed = {
        let other = Authority::root("other");
        let mut leaf = other.intermediate("one", 1).leaf(PEER);
        leaf.chain.push(one.intermediate("other", 9).der());
        leaf.chain.push(other.intermediate("one", 8).der());
        leaf
    };
    bench.both("a loop of names", &crossed, unknown).await;

    let pretender = root.intermediate_with("no authority", |params| params.is_ca = IsCa::NoCa);
    bench
        .both(
            "an issuer that is none",
            &pretender.leaf(PEER),
            bad("EndEntityUsedAsCa"),
        )
        .await;
    let mut leaf = root.leaf(PEER);
    leaf.chain[0] = root.der();
    assert!(judge_client(&bench.server, &leaf).await.is_err());
    bench.end(40);
}

#[tokio::test]
async fn extensions_and_signatures() {
    let root = Authority::root("root");
    let mut bench = Bench::new(&root);
    let bad = |reason| Err((BadCertificate, reason));
    let extension = |critical| {
        let mut extension =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(critical);
        extension
    };
    for (critical, expected) in [(false, Ok(())), (true, bad("UnsupportedCriticalExtension"))] {
        let leaf = root.issue(&with(|params| {
            params.custom_extensions.push(extension(critical));
        }));
        bench.both("an unknown extension", &leaf, expected).await;
        let issuer = root.intermediate_with("intermediate", |params| {
            params.custom_extensions.push(extension(critical));
        });
        bench
            .both("an unknown extension above", &issuer.leaf(PEER), expected)
            .await;
    }
    for (what, oid) in [
        ("names", [2, 5, 29, 17]),
        ("key usage", [2, 5, 29, 15]),
        ("constraints", [2, 5, 29, 19]),
    ] {
        let twice = CustomExtension::from_oid_content(&oid, vec![0x30, 0]);
        let leaf = root.issue(&with(|params| {
            params.is_ca = IsCa::ExplicitNoCa;
            params.custom_extensions.push(twice);
        }));
        bench.both(&format!("{what} twice"), &leaf, bad("")).await;
    }
    let none = CustomExtension::from_oid_content(&[2, 5, 29, 37], vec![0x30, 0]);
    let leaf = root.issue(&with(|params| {
        params.extended_key_usages = Vec::new();
        params.custom_extensions.push(none);
    }));
    bench
        .both("an empty extended key usage", &leaf, Err((BadKeyUsage, "")))
        .await;

    // The algorithm of the signature: ecdsa-with-SHA256 becomes what nobody takes.
    let with_oid = |oid: [u8; 8]| {
        const SHA256: [u8; 8] = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        let mut leaf = root.leaf(PEER);
        let mut der = leaf.chain[0].to_vec();
        let places: Vec<_> = (0..der.len() - 8)
            .filter(|&at| der[at..at + 8] == SHA256)
            .collect();
        assert_eq!(places.len(), 2);
        for at in places {
            der[at..at + 8].copy_from_slice(&oid);
        }
        leaf.chain[0] = der.into();
        leaf
    };
    let unsupported = bad("UnsupportedSignatureAlgorithm");
    // ecdsa-with-SHA224; sha1, md5 and md2WithRSAEncryption are one byte longer, so: in their arcs.
    for (what, oid) in [
        (
            "ECDSA with SHA-224",
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x01],
        ),
        (
            "an unknown ECDSA",
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x7f],
        ),
        (
            "the arc of RSA",
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01],
        ),
        (
            "an unknown algorithm",
            [0x2a, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, 0x09],
        ),
    ] {
        bench.both(what, &with_oid(oid), unsupported).await;
    }
    bench.end(24);
}

#[tokio::test]
async fn rsa_with_old_hashes() {
    // sha256WithRSAEncryption ends in 11; SHA-1, MD5 and MD2 in 5, 4 and 2.
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let root = Authority::root_of("root", key);
    let mut bench = Bench::new(&root);
    bench.both("SHA-256", &root.leaf(PEER), Ok(())).await;
    for (what, last) in [("MD2", 2), ("MD5", 4), ("SHA-1", 5), ("SHA-224", 14)] {
        const SHA256: [u8; 9] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
        let mut leaf = root.leaf(PEER);
        let mut der = leaf.chain[0].to_vec();
        let places: Vec<_> = (0..der.len() - 9)
            .filter(|&at| der[at..at + 9] == SHA256)
            .collect();
        assert_eq!(places.len(), 2);
        for at in places {
            der[at + 8] = last;
        }
        leaf.chain[0] = der.into();
        let expected = Err((BadCertificate, "UnsupportedSignatureAlgorithm"));
        bench.both(what, &leaf, expected).await;
    }
    bench.end(10);
}

#[tokio::test]
async fn revocation() {
    let root = Authority::root("root");
    let issuer = root.intermediate("intermediate", 77);
    let leaf = issuer.issue(&with(|params| {
        params.serial_number = Some(SerialNumber::from(42_u64));
    }));
    let no = Err((Revoked, "CRL"));
    let unsigned = Err((BadCertificate, "InvalidCrlSignatureForPublicKey"));
    let impostor = Authority::root("root");
    for (what, crls, expected) in [
        ("no list", vec![], Ok(())),
        (
            "lists of others",
            vec![root.crl(&[1, 42]), issuer.crl(&[1, 77])],
            Ok(()),
        ),
        ("the leaf", vec![issuer.crl(&[42])], no),
        (
            "the leaf among many",
            vec![issuer.crl(&(1..200).collect::<Vec<_>>())],
            no,
        ),
        ("the intermediate", vec![root.crl(&[77])], no),
        ("both", vec![root.crl(&[77]), issuer.crl(&[42])], no),
        ("a list of an impostor", vec![impostor.crl(&[])], unsigned),
        (
            "a list of an impostor, of the intermediate",
            vec![impostor.crl(&[77])],
            unsigned,
        ),
    ] {
        let with = |uri: &str| {
            let bundle = root.leaf(uri).bundle_with(&[&root], &crls).unwrap();
            Credentials::new(provider(), bundle, Options::default()).unwrap()
        };
        // Every list here expired in 2020, and is in force.
        let mut bench = Bench::of(with(SERVER), with(CLIENT));
        bench.both(what, &leaf, expected).await;
        bench.end(2);
    }
}

/// No byte of a certificate may change: whatever it becomes, nobody is let in.
#[tokio::test]
async fn any_byte_that_changes() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let good = root.leaf(PEER);
    judge_client(&server, &good).await.unwrap();
    let whole = good.chain[0].to_vec();
    for at in (0..whole.len()).step_by(3) {
        for bit in [0x01, 0x20, 0x80] {
            let mut der = whole.clone();
            der[at] ^= bit;
            let leaf = Leaf {
                chain: vec![der.into()],
                key: good.key.clone_key(),
            };
            let error = judge_client(&server, &leaf).await.unwrap_err();
            assert!(
                error.is_authentication() || error.kind() == ErrorKind::Tls,
                "{at} ^ {bit}: {error:?}"
            );
        }
    }
    for length in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        let leaf = Leaf {
            chain: vec![whole[..length].to_vec().into()],
            key: good.key.clone_key(),
        };
        judge_client(&server, &leaf).await.unwrap_err();
    }
    let mut longer = whole;
    longer.push(0);
    let leaf = Leaf {
        chain: vec![longer.into()],
        key: good.key.clone_key(),
    };
    judge_client(&server, &leaf).await.unwrap_err();
}
