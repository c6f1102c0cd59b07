use super::Identity;

#[test]
fn parts() {
    let id = Identity::parse("spiffe://Td-1.local/ns/a.b/sa/X_y").unwrap();
    assert_eq!(id.trust_domain(), "Td-1.local");
    assert_eq!(id.namespace(), "a.b");
    assert_eq!(id.service_account(), "X_y");
    assert_eq!(id.principal(), "Td-1.local/ns/a.b/sa/X_y");
    assert_eq!(id.to_string(), "spiffe://Td-1.local/ns/a.b/sa/X_y");
    assert_eq!(Identity::from_principal(id.principal()).unwrap(), id);
    assert_eq!(Identity::new("Td-1.local", "a.b", "X_y").unwrap(), id);
    // Case is kept, and counts.
    assert_ne!(Identity::new("td-1.local", "a.b", "X_y").unwrap(), id);
}

#[test]
fn refused() {
    for (uri, part) in [
        ("", "scheme"),
        ("td/ns/a/sa/x", "scheme"),
        ("https://td/ns/a/sa/x", "scheme"),
        ("SPIFFE://td/ns/a/sa/x", "scheme"),
        ("spiffe:/td/ns/a/sa/x", "scheme"),
        ("spiffe://", "path"),
        ("spiffe://td", "path"),
        ("spiffe://td/ns/a/sa", "path"),
        ("spiffe://td/ns/a/sa/x/", "path"),
        ("spiffe://td/ns/a/sa/x/y", "path"),
        ("spiffe://td/namespace/a/sa/x", "path"),
        ("spiffe://td/ns/a/SA/x", "path"),
        ("spiffe:///ns/a/sa/x", "trust domain"),
        ("spiffe://td/ns//sa/x", "namespace"),
        ("spiffe://td/ns/a/sa/", "service account"),
        ("spiffe://td:443/ns/a/sa/x", "trust domain"),
        ("spiffe://user@td/ns/a/sa/x", "trust domain"),
        ("spiffe://td/ns/./sa/x", "namespace"),
        ("spiffe://td/ns/../sa/x", "namespace"),
        ("spiffe://td/ns/a/sa/x\0", "service account"),
        ("spiffe://td/ns/a%00/sa/x", "namespace"),
        ("spiffe://td/ns/a%2fb/sa/x", "namespace"),
        ("spiffe://td/ns/a b/sa/x", "namespace"),
        ("spiffe://td/ns/a/sa/x?q", "service account"),
        ("spiffe://td/ns/a/sa/x#f", "service account"),
        ("spiffe://td/ns/\u{e4}/sa/x", "namespace"),
        ("spiffe://td/ns/*/sa/x", "namespace"),
    ] {
        let error = Identity::parse(uri).unwrap_err();
        assert_eq!(error.part(), part, "{uri:?}: {error}");
    }
}

/// SPIFFE-ID 2.3: 2048 bytes for the whole URI.
#[test]
fn length() {
    let overhead = "spiffe://td/ns/a/sa/".len();
    let account = |length| "x".repeat(length - overhead);
    let longest = Identity::new("td", "a", &account(2048)).unwrap();
    assert_eq!(longest.to_string().len(), 2048);
    let error = Identity::new("td", "a", &account(2049)).unwrap_err();
    assert_eq!(error.part(), "id");
}
