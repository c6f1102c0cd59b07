//! The bodies of the fuzz targets, so that the corpus replays without libFuzzer.
//!
//! A target is named for what it parses. Its body holds the input to a property; not to panic is the least.

use http::{HeaderMap, HeaderValue};
use mesh_authz::Identity;
use mesh_authz::matcher::{PathNormalization, PathTemplate, parse_cidr};
use mesh_hbone::authority::Authority;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::tls::Bundle;
use mesh_xds::file::{Loader, Settings};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};

/// One target: its name, which is also its corpus' folder, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("authority", authority),
    ("baggage", baggage),
    ("certificate", certificate),
    ("cidr", cidr),
    ("crl", crl),
    ("discovery", discovery),
    ("forwarded", forwarded),
    ("identity", identity),
    ("manifest", manifest),
    ("path_normalize", path_normalize),
    ("path_template", path_template),
    ("ztunnel_yaml", ztunnel_yaml),
];

/// The destination of a CONNECT.
pub fn authority(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(authority) = text.parse::<Authority>() {
        assert_ne!(authority.port(), 0);
        assert_ne!(authority.ip().is_some(), authority.hostname().is_some());
        let again = authority.to_string().parse::<Authority>();
        assert_eq!(again.ok(), Some(authority), "{text:?}");
    }
}

fn connect(name: &'static str, value: &[u8]) -> Option<ConnectHeaders> {
    let mut headers = HeaderMap::new();
    headers.insert(name, HeaderValue::from_bytes(value).ok()?);
    Some(ConnectHeaders::parse(&headers))
}

/// What a peer says of its workload.
pub fn baggage(data: &[u8]) {
    let baggage = |value: &[u8]| Some(connect("baggage", value)?.baggage()?.to_string());
    if let Some(text) = baggage(data) {
        let again = baggage(text.as_bytes()).unwrap_or_default();
        assert_eq!(again, text, "what was read is written as it was read");
    }
}

/// Whom a peer says that it forwards for.
pub fn forwarded(data: &[u8]) {
    let Some(headers) = connect("forwarded", data) else {
        return;
    };
    let Some(source) = headers.forwarded().and_then(|forwarded| forwarded.source()) else {
        return;
    };
    let text = format!("for=\"{source}\"");
    let again = connect("forwarded", text.as_bytes());
    let again = again
        .as_ref()
        .and_then(|headers| headers.forwarded()?.source());
    assert_eq!(again, Some(source));
}

/// Kubernetes and Istio objects.
pub fn manifest(data: &[u8]) {
    load(data);
}

/// ztunnel's local configuration.
pub fn ztunnel_yaml(data: &[u8]) {
    load(data);
}

fn load(data: &[u8]) {
    let mut loader = Loader::new(Settings::default());
    let files = || vec![("mesh.yaml".into(), data.to_vec())];
    let first = loader.load(files());
    // A carriage return ends a line too, and what is missing at the end is missed on the next line.
    let breaks = data.iter().filter(|byte| matches!(byte, b'\n' | b'\r'));
    let lines = breaks.count() + 2;
    for problem in first.problems() {
        assert!(problem.line() as usize <= lines, "{problem}");
    }
    let second = loader.load(files());
    let (updates, removed) = (second.batch().updates(), second.batch().removed());
    assert!(
        updates.is_empty() && removed.is_empty(),
        "the same file changes nothing"
    );
}

/// A certificate that a peer, or a certificate authority, handed over.
pub fn certificate(data: &[u8]) {
    let certificate = CertificateDer::from(data.to_vec());
    if let Ok(bundle) = bundle(certificate, &[]) {
        identity(bundle.identity().to_string().as_bytes());
    }
}

/// A revocation list.
pub fn crl(data: &[u8]) {
    let leaf = CertificateDer::from(include_bytes!("../corpus/certificate/leaf").to_vec());
    assert!(
        bundle(leaf.clone(), &[]).is_ok(),
        "the leaf is not to blame"
    );
    let _ = bundle(leaf, &[CertificateRevocationListDer::from(data)]);
}

fn bundle(
    leaf: CertificateDer<'static>,
    crls: &[CertificateRevocationListDer<'_>],
) -> Result<Bundle, mesh_hbone::Error> {
    // The key is not looked at before a handshake.
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(Vec::new()));
    Bundle::new(vec![leaf.clone()], key, vec![leaf], crls)
}

/// What a control plane sends.
pub fn discovery(data: &[u8]) {
    mesh_xds::ads::fuzzing::response(data);
}

/// An address block of a policy.
pub fn cidr(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(net) = parse_cidr(text) {
        assert_eq!(net, net.trunc(), "host bits are cleared");
        assert_eq!(parse_cidr(&net.to_string()).ok(), Some(net));
    }
}

/// A SPIFFE id.
pub fn identity(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(identity) = Identity::parse(text) else {
        return;
    };
    assert_eq!(identity.to_string(), text, "ids are never rewritten");
    assert!(
        text.bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'%')
    );
    let parts = [
        identity.trust_domain(),
        identity.namespace(),
        identity.service_account(),
    ];
    assert!(
        parts
            .iter()
            .all(|part| !part.is_empty() && !part.contains('/'))
    );
    assert_eq!(
        Identity::new(parts[0], parts[1], parts[2]).as_ref(),
        Ok(&identity)
    );
    assert_eq!(
        Identity::from_principal(identity.principal()).as_ref(),
        Ok(&identity)
    );
}

/// A request's path, in every mode.
pub fn path_normalize(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else {
        return;
    };
    for mode in [
        PathNormalization::None,
        PathNormalization::Base,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ] {
        let Ok(normal) = mode.normalize(target) else {
            continue;
        };
        assert!(
            !normal.contains('#'),
            "{mode:?}: {target:?} became {normal:?}"
        );
        let again = mode.normalize(&normal);
        assert_eq!(
            again.as_deref(),
            Ok(&*normal),
            "{mode:?}: {target:?} is normal only once"
        );
        let path = normal.split('?').next().unwrap_or_default();
        if mode != PathNormalization::None && path.starts_with('/') {
            let climbs = path
                .split('/')
                .any(|segment| segment == ".." || segment == ".");
            assert!(!climbs, "{mode:?}: {target:?} became {normal:?}");
        }
    }
}

/// A path template, and after a line break the path to match.
pub fn path_template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let (template, path) = text.split_once('\n').unwrap_or((text, "/"));
    let Ok(parsed) = PathTemplate::parse(template) else {
        return;
    };
    assert_eq!(parsed.as_str(), template);
    let matches = parsed.matches(path);
    if !PathTemplate::is_template(template) {
        assert_eq!(matches, template == path, "{template:?} has no operator");
    }
    assert!(!matches || !path.is_empty());
}
