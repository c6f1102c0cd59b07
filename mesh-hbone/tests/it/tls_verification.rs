use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use mesh_hbone::tls::{Credentials, Fingerprint, Options, VerifyError, accept, connect};
use mesh_hbone::{Error, ErrorKind, Side};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, SanType, SerialNumber, date_time_ymd};
use tokio::io::{AsyncReadExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::authority::{
    Authority, CLIENT, Leaf, SERVER, distribution_point, id, leaf_params, provider, shake,
};
use crate::foreign;
use crate::tls_remembered::counting;

/// What our server says of a client with this certificate.
pub(crate) async fn judge_client(server: &Credentials, leaf: &Leaf) -> Result<(), Error> {
    let connector = TlsConnector::from(Arc::new(foreign::client(Some(leaf))));
    let (near, far) = duplex(64 * 1024);
    let (_near, judged) = tokio::join!(
        connector.connect(foreign::name(), near),
        accept(far, server)
    );
    judged.map(drop)
}

/// What our client says of a server with this certificate.
pub(crate) async fn judge_server(
    client: &Credentials,
    leaf: &Leaf,
    expected: &str,
) -> Result<(), Error> {
    let acceptor = TlsAcceptor::from(Arc::new(foreign::server(leaf)));
    let (near, far) = duplex(64 * 1024);
    let expected = [id(expected)];
    let (judged, _far) = tokio::join!(connect(near, client, &expected), acceptor.accept(far));
    judged.map(drop)
}

fn kind(judged: Result<(), Error>) -> ErrorKind {
    judged.unwrap_err().kind()
}

#[tokio::test]
async fn another_identity_than_expected_is_refused() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let other = "spiffe://cluster.local/ns/default/sa/other";
    let (near, far) = shake(&client, &server, &[other, CLIENT]).await;
    let error = near.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::UnexpectedIdentity, Side::Upstream)
    );
    let Some(VerifyError::UnexpectedIdentity { got, expected, .. }) = error.verification() else {
        panic!("{error:?}");
    };
    assert_eq!(got, &id(SERVER));
    assert_eq!(expected, &[id(other), id(CLIENT)]);
    assert!(error.source().unwrap().to_string().contains(SERVER));
    // The server is told why.
    let refused = far.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Refused);
    assert!(
        refused
            .source()
            .unwrap()
            .to_string()
            .contains("AccessDenied")
    );
}

#[tokio::test]
async fn identities_are_compared_whole() {
    let root = Authority::root("root");
    let client = root.credentials(CLIENT);
    for almost in [
        "spiffe://cluster.local/ns/default/sa/serve",
        "spiffe://cluster.local/ns/default/sa/server2",
        "spiffe://Cluster.local/ns/default/sa/server",
        "spiffe://cluster.local/ns/other/sa/server",
    ] {
        let judged = judge_server(&client, &root.leaf(almost), SERVER).await;
        assert_eq!(kind(judged), ErrorKind::UnexpectedIdentity, "{almost}");
    }
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused_unless_it_is_an_alias() {
    let root = Authority::root("root");
    let foreign = root.credentials("spiffe://old.example/ns/default/sa/client");
    let (near, far) = shake(&foreign, &root.credentials(SERVER), &[SERVER]).await;
    let error = far.unwrap_err();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::UnexpectedTrustDomain, Side::Downstream)
    );
    assert!(matches!(
        error.verification(),
        Some(VerifyError::UnexpectedTrustDomain { expected, .. }) if expected == &["cluster.local"]
    ));
    // TLS 1.3: the client learns of it when it reads.
    let error = near.unwrap().read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Refused, Side::Upstream)
    );

    let options = Options::default().trust_domain_aliases(["old.example"]);
    let server = root.credentials_with(SERVER, options);
    let (near, far) = shake(&foreign, &server, &[SERVER]).await;
    assert!(near.is_ok());
    assert_eq!(far.unwrap().peer().identity().trust_domain(), "old.example");
}

#[tokio::test]
async fn an_unknown_issuer_names_both_roots() {
    // Two roots of one name, as two development CAs have it, and two of different names.
    for name in ["O=cluster.local", "another"] {
        let (ours, theirs) = (Authority::root("O=cluster.local"), Authority::root(name));
        let server = ours.credentials(SERVER);
        let mut leaf = theirs.leaf(CLIENT);
        leaf.chain.push(theirs.der());
        let error = judge_client(&server, &leaf).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnknownIssuer);
        let Some(VerifyError::UnknownIssuer {
            roots,
            issuer,
            last,
            last_is_root,
            ..
        }) = error.verification()
        else {
            panic!("{error:?}");
        };
        assert_eq!(roots, &[Fingerprint::of(&ours.der())]);
        assert_eq!(last, &Fingerprint::of(&theirs.der()));
        assert!(*last_is_root && issuer.contains(name));
        let text = error.source().unwrap().to_string();
        assert!(text.contains(&roots[0].to_string()) && text.contains(&last.to_string()));

        // And on the client's side, for a chain without its root.
        let error = judge_server(&ours.credentials(CLIENT), &theirs.leaf(SERVER), SERVER)
            .await
            .unwrap_err();
        assert!(matches!(
            error.verification(),
            Some(VerifyError::UnknownIssuer { issuer, last_is_root: false, .. }) if issuer.contains(name)
        ));
    }
}

#[tokio::test]
async fn validity_is_judged_by_the_given_clock() {
    let root = Authority::root("root");
    let mut params = leaf_params(&[CLIENT]);
    params.not_before = date_time_ymd(2030, 1, 1);
    params.not_after = date_time_ymd(2031, 1, 1);
    let leaf = root.issue(&params);
    let at = |unix: u64| {
        let clock = move || SystemTime::UNIX_EPOCH + Duration::from_secs(unix);
        root.credentials_with(SERVER, Options::default().clock(clock))
    };
    const YEAR_2030: u64 = 1_893_456_000;
    let before = judge_client(&at(YEAR_2030 - 1), &leaf).await.unwrap_err();
    assert_eq!(before.kind(), ErrorKind::NotYetValid);
    assert!(before.source().unwrap().to_string().contains("2030"));
    judge_client(&at(YEAR_2030), &leaf).await.unwrap();
    let after = judge_client(&at(YEAR_2030 + 365 * 86_400 + 1), &leaf).await;
    assert_eq!(kind(after), ErrorKind::Expired);
}

#[tokio::test]
async fn a_certificate_for_the_other_side_is_refused() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let with = |uri: &str, usages: &[ExtendedKeyUsagePurpose]| {
        let mut params = leaf_params(&[uri]);
        params.extended_key_usages = usages.to_vec();
        root.issue(&params)
    };
    let (server_auth, client_auth) = (
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    );
    let judged = judge_client(&server, &with(CLIENT, std::slice::from_ref(&server_auth))).await;
    assert_eq!(kind(judged), ErrorKind::BadKeyUsage);
    let judged = judge_server(
        &client,
        &with(SERVER, std::slice::from_ref(&client_auth)),
        SERVER,
    )
    .await;
    assert_eq!(kind(judged), ErrorKind::BadKeyUsage);
    judge_client(&server, &with(CLIENT, &[client_auth]))
        .await
        .unwrap();
    judge_server(&client, &with(SERVER, &[server_auth]), SERVER)
        .await
        .unwrap();
    // X509-SVID 4.4: the extension is optional, and absent means any use (RFC 5280, 4.2.1.12).
    judge_client(&server, &with(CLIENT, &[])).await.unwrap();
}

#[tokio::test]
async fn odd_leaf_certificates_are_refused() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let refused = async |params: rcgen::CertificateParams| {
        assert_eq!(
            kind(judge_client(&server, &root.issue(&params)).await),
            ErrorKind::BadCertificate,
            "{:?}",
            params.subject_alt_names
        );
    };
    refused(leaf_params(&[])).await;
    refused(leaf_params(&[CLIENT, SERVER])).await;
    refused(leaf_params(&[CLIENT, "https://example.com/"])).await;
    for uri in [
        "SPIFFE://cluster.local/ns/default/sa/client",
        "spiffe://cluster.local/ns/default/sa/client/",
        "spiffe://cluster.local/ns/default/sa/cli\0ent",
        "spiffe://cluster.local/ns/default/sa/client%00",
        "spiffe://cluster.local/ns/default/sa/client*",
        "spiffe://cluster.local/ns//sa/client",
        "spiffe://user@cluster.local/ns/default/sa/client",
        "spiffe://cluster.local:80/ns/default/sa/client",
        "https://cluster.local/ns/default/sa/client",
    ] {
        refused(leaf_params(&[uri])).await;
    }
    let mut params = leaf_params(&[]);
    params.subject_alt_names = vec![dns(CLIENT)];
    refused(params).await;
    let mut params = leaf_params(&[CLIENT]);
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    refused(params).await;
    // The control: a DNS name beside the SPIFFE id does no harm.
    let mut params = leaf_params(&[CLIENT]);
    params.subject_alt_names.push(dns("client.example"));
    judge_client(&server, &root.issue(&params)).await.unwrap();
}

#[tokio::test]
async fn revoked_certificates_are_refused_anywhere_in_the_chain() {
    let root = Authority::root("root");
    let intermediate = root.intermediate("intermediate", 77);
    let mut params = leaf_params(&[CLIENT]);
    params.serial_number = Some(SerialNumber::from(42_u64));
    let leaf = intermediate.issue(&params);
    let with = |crls: &[_]| {
        let bundle = root.leaf(SERVER).bundle_with(&[&root], crls).unwrap();
        Credentials::new(provider(), bundle, Options::default()).unwrap()
    };
    judge_client(&with(&[]), &leaf).await.unwrap();
    // Lists that speak of others, or of nobody in this chain; and they expired in 2020.
    let others = [root.crl(&[42]), intermediate.crl(&[77])];
    judge_client(&with(&others), &leaf).await.unwrap();
    for crls in [
        vec![intermediate.crl(&[42])],
        vec![root.crl(&[77])],
        vec![root.crl(&[]), intermediate.crl(&[1, 42])],
    ] {
        let error = judge_client(&with(&crls), &leaf).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Revoked);
    }
}

#[tokio::test]
async fn a_crl_that_its_issuer_did_not_sign_refuses_the_chain() {
    let (root, impostor) = (Authority::root("root"), Authority::root("root"));
    let crls = [impostor.crl(&[])];
    let bundle = root.leaf(SERVER).bundle_with(&[&root], &crls).unwrap();
    let server = Credentials::new(provider(), bundle, Options::default()).unwrap();
    let judged = judge_client(&server, &root.leaf(CLIENT)).await;
    assert_eq!(kind(judged), ErrorKind::BadCertificate);
}

#[tokio::test]
async fn an_intermediate_keeps_to_its_name_constraints() {
    let root = Authority::root("root");
    let constrained = root.intermediate_with("constrained", |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    // Constraints on DNS names leave URIs alone.
    let server = root.credentials(SERVER);
    judge_client(&server, &constrained.leaf(CLIENT))
        .await
        .unwrap();
    let mut params = leaf_params(&[CLIENT]);
    params
        .subject_alt_names
        .push(SanType::DnsName("foreign.example".try_into().unwrap()));
    let judged = judge_client(&server, &constrained.issue(&params)).await;
    assert_eq!(kind(judged), ErrorKind::BadCertificate);
}

#[tokio::test]
async fn constraints_on_uris_that_cannot_be_checked_refuse_the_chain() {
    const NAME_CONSTRAINTS: &[u64] = &[2, 5, 29, 30];
    let root = Authority::root("root");
    // Even one that permits the very trust domain: permittedSubtrees, uniformResourceIdentifier.
    for domain in ["cluster.local", "other.example"] {
        let constrained = root.intermediate_with("constrained", |params| {
            let length = domain.len() as u8;
            let mut der = vec![0x30, length + 6, 0xa0, length + 4];
            der.extend([0x30, length + 2, 0x86, length]);
            der.extend(domain.as_bytes());
            let extension = rcgen::CustomExtension::from_oid_content(NAME_CONSTRAINTS, der);
            params.custom_extensions.push(extension);
        });
        let judged = judge_client(&root.credentials(SERVER), &constrained.leaf(CLIENT)).await;
        assert_eq!(kind(judged), ErrorKind::BadCertificate, "{domain}");
    }
}

/// S-14, RUSTSEC-2026-0049.
#[tokio::test]
async fn a_list_for_one_of_several_distribution_points_revokes() {
    let root = Authority::root("root");
    let mut params = leaf_params(&[CLIENT]);
    params.serial_number = Some(SerialNumber::from(42_u64));
    params.crl_distribution_points = ["http://a.example/", "http://b.example/"]
        .map(distribution_point)
        .into();
    let leaf = root.issue(&params);
    let with = |point| {
        let crls = [root.crl_at(&[42], Some(point))];
        let bundle = root.leaf(SERVER).bundle_with(&[&root], &crls).unwrap();
        Credentials::new(provider(), bundle, Options::default()).unwrap()
    };
    for point in ["http://a.example/", "http://b.example/"] {
        let judged = judge_client(&with(point), &leaf).await;
        assert_eq!(kind(judged), ErrorKind::Revoked, "{point}");
    }
    judge_client(&with("http://c.example/"), &leaf)
        .await
        .unwrap();
}

/// S-13, RUSTSEC-2023-0053.
#[tokio::test]
async fn a_chain_made_to_be_searched_is_given_up() {
    const MOST: usize = 100;
    // All issuers have one name, so that each leads to each other; and to a root only if it has that name too.
    let (root, elsewhere) = (Authority::root("issuer"), Authority::root("root"));
    let unknown = || Authority::root("issuer");
    let below_root = || root.intermediate("issuer", 1);
    let cases: [(&Authority, &dyn Fn() -> Authority, usize, usize); 5] = [
        (&elsewhere, &unknown, 6, 0),
        (&root, &unknown, 6, MOST),
        (&root, &below_root, 6, MOST),
        // More than any path has: not searched.
        (&root, &below_root, 7, 0),
        (&elsewhere, &unknown, MOST, 0),
    ];
    for (root, above, presented, verified) in cases {
        let mut leaf = unknown().leaf(CLIENT);
        for _ in 0..presented {
            leaf.chain.push(above().der());
        }
        let (provider, count) = counting();
        let bundle = root.leaf(SERVER).bundle(&[root]).unwrap();
        let options = Options::default().remembered_certificates(0);
        let server = Credentials::new(provider, bundle, options).unwrap();
        let error = judge_client(&server, &leaf).await.unwrap_err();
        assert!(error.is_authentication(), "{error:?}");
        assert_eq!(count.load(Ordering::Relaxed), verified);
    }
}

#[tokio::test]
async fn an_intermediate_must_be_a_certificate_authority() {
    let root = Authority::root("root");
    let pretender = root.intermediate_with("pretender", |params| params.is_ca = IsCa::ExplicitNoCa);
    let judged = judge_client(&root.credentials(SERVER), &pretender.leaf(CLIENT)).await;
    assert_eq!(kind(judged), ErrorKind::BadCertificate);
}
