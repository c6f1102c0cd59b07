//! The bodies of the fuzz targets, so that the corpus replays without libFuzzer.
//!
//! A target is named for what it parses. Its body holds the input to a property; not to panic is the least.

mod copy;
mod frames;
mod policy;

// What policies mean, as the tests of mesh-authz have it.
#[path = "../../mesh-authz/tests/it/interpreter.rs"]
mod interpreter;
#[path = "../../mesh-authz/tests/it/subjects.rs"]
mod subjects;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method};
use mesh_authz::matcher::{PathNormalization, PathTemplate, parse_cidr};
use mesh_authz::policy::Policy;
use mesh_authz::policy::ztunnel::EmptyMatch;
use mesh_authz::{Attribute, Attributes, Identity, PolicySet, RequestAttributes};
use mesh_hbone::authority::Authority;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::tls::Bundle;
use mesh_xds::decode::{Decoder, ResourceType};
use mesh_xds::file::{Loader, Settings};
use mesh_xds::model::Update;
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};

pub use copy::copy;
pub use frames::frames;
pub use policy::policy;

/// One target: its name, which is also its corpus' folder, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 19] = [
    ("authority", authority),
    ("baggage", baggage),
    ("certificate", certificate),
    ("cidr", cidr),
    ("copy", copy),
    ("crl", crl),
    ("decode_address", decode_address),
    ("decode_authorization", decode_authorization),
    ("decode_listener", decode_listener),
    ("discovery", discovery),
    ("forwarded", forwarded),
    ("frames", frames),
    ("identity", identity),
    ("manifest", manifest),
    ("path_normalize", path_normalize),
    ("path_template", path_template),
    ("pieces", pieces),
    ("policy", policy),
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

/// What a control plane sends, piece by piece.
pub fn pieces(data: &[u8]) {
    mesh_xds::ads::fuzzing::pieces(data);
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

/// Workloads and services of a control plane.
pub fn decode_address(data: &[u8]) {
    let Some(update) = decoded(ResourceType::Address, data) else {
        return;
    };
    let name = match &update {
        Update::Workload(workload) => workload.uid().to_owned(),
        Update::Service(service) => service.name().to_string(),
        other => panic!("{other:?}"),
    };
    named(ResourceType::Address, &name, data, &update);
}

/// Policies of a control plane.
pub fn decode_authorization(data: &[u8]) {
    let kind = ResourceType::Authorization;
    let Some(Update::Policy(policy)) = decoded(kind, data) else {
        return;
    };
    let update = Update::Policy(policy.clone());
    named(kind, &policy.policy().name().to_string(), data, &update);
    let ztunnel = Decoder::new().with_empty_match(EmptyMatch::NeverMatches);
    let Ok(Some(Update::Policy(other))) = ztunnel.decode(kind, "", data) else {
        panic!("what is lost does not make a policy wrong");
    };
    let allows = |policy: &Arc<Policy>| {
        let set = PolicySet::new([policy.clone()]);
        callers().map(|caller| {
            let addr = "10.0.0.1:80".parse().expect("an address");
            let attributes =
                Attributes::new(addr, addr).with_identity(Attribute::from(caller.as_ref()));
            set.evaluate_l4(&attributes).is_allowed()
        })
    };
    let (lost, never) = (allows(policy.policy()), allows(other.policy()));
    let wider = lost.iter().zip(never).any(|(lost, never)| *lost && !never);
    assert!(!wider, "what was lost widens nothing");
}

/// Listeners of a control plane.
pub fn decode_listener(data: &[u8]) {
    let Some(Update::InboundListener(listener)) = decoded(ResourceType::Listener, data) else {
        return;
    };
    let set = PolicySet::new(listener.policies().iter().cloned());
    let headers = HeaderMap::new();
    for caller in callers() {
        let addr = "10.0.0.1:80".parse().expect("an address");
        let attributes =
            Attributes::new(addr, addr).with_identity(Attribute::from(caller.as_ref()));
        let hopeless = !set.could_allow(&attributes).is_allowed();
        let request = RequestAttributes::new(&Method::GET, Some("a"), "/a/b", &headers);
        let attributes = attributes.with_sni(Attribute::Absent).with_request(request);
        let allowed = set.evaluate(&attributes).is_allowed();
        assert!(!allowed || (listener.closed().is_none() && !hopeless));
    }
}

fn callers() -> [Option<Identity>; 2] {
    [None, Identity::new("td", "a", "b").ok()]
}

fn decoded(kind: ResourceType, data: &[u8]) -> Option<Update> {
    Decoder::new().decode(kind, "", data).ok().flatten()
}

/// A resource is the same under its own name, refused under another, and removed by its name.
fn named(kind: ResourceType, name: &str, data: &[u8], update: &Update) {
    let again = Decoder::new().decode(kind, name, data);
    assert_eq!(again.ok().flatten().as_ref(), Some(update));
    let other = format!("{name}-");
    assert!(Decoder::new().decode(kind, &other, data).is_err());
    assert!(kind.removed(name).contains(&update.name()), "{name:?}");
}
