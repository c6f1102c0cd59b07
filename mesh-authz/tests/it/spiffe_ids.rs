//! SPIFFE ids, right and wrong, before our parser and a naive one written from the text of the standards.

use std::collections::BTreeSet;

use mesh_authz::Identity;

/// SPIFFE-ID 2: `spiffe://<trust domain>/<path>`; Istio's path is `/ns/<namespace>/sa/<account>`. One
/// character after the other, with no help of the code that is tested.
///
/// Two leniencies are Istio's: upper-case letters in trust domains, which count, and no rule for how
/// they begin or end.
fn naive(uri: &str) -> Option<[String; 3]> {
    let bytes: Vec<char> = uri.chars().collect();
    // 2.3: at most 2048 bytes.
    if uri.len() > 2048 {
        return None;
    }
    // 2: the scheme, as it is written.
    for (at, expected) in "spiffe://".chars().enumerate() {
        if bytes.get(at) != Some(&expected) {
            return None;
        }
    }
    let mut segments = vec![String::new()];
    for character in &bytes[9..] {
        match character {
            '/' => segments.push(String::new()),
            // 2.1, 2.2: letters, digits, dots, dashes, underscores. No port, user, query, fragment or
            // percent-encoding.
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_' => {
                segments.last_mut().unwrap().push(*character);
            }
            _ => return None,
        }
    }
    // 2.2: no empty segment, so none at the end either; no relative one.
    if segments
        .iter()
        .any(|segment| matches!(segment.as_str(), "" | "." | ".."))
    {
        return None;
    }
    let [domain, ns, namespace, sa, account] = segments.as_slice() else {
        return None;
    };
    // 2.3: a trust domain has at most 255 bytes.
    if ns != "ns" || sa != "sa" || domain.len() > 255 {
        return None;
    }
    Some([domain.clone(), namespace.clone(), account.clone()])
}

fn ids() -> BTreeSet<String> {
    let long = |length: usize| "x".repeat(length);
    let schemes = [
        "spiffe://",
        "SPIFFE://",
        "Spiffe://",
        "spiffe:/",
        "spiffe:",
        "spiffe:///",
        "spiffe",
        "",
        "https://",
        "spiffe:\\\\",
        " spiffe://",
        "\tspiffe://",
        "\u{feff}spiffe://",
        "spiff\u{435}://",
        "spiffe%3a//",
        "//",
    ];
    let parts = [
        "a",
        "A",
        "0",
        "a-b",
        "a_b",
        "a.b",
        "-a",
        "a-",
        ".a",
        "a.",
        "..a",
        "a..b",
        "...",
        "cluster.local",
        "CLUSTER.local",
        "xn--mnchen-3ya.example",
        "127.0.0.1",
        "",
        ".",
        "..",
        " ",
        "a b",
        " a",
        "a ",
        "a\0",
        "\0a",
        "a\nb",
        "a\r",
        "a\tb",
        "a%20b",
        "a%2fb",
        "a%2Fb",
        "%2e%2e",
        "%00",
        "%",
        "%41",
        "a/b",
        "/",
        "a//b",
        "a\\b",
        "*",
        "a*",
        "a?b",
        "?",
        "a#b",
        "#",
        "a:b",
        ":",
        "a:443",
        "a@b",
        "@",
        "user:p@a",
        "[::1]",
        "::1",
        "a,b",
        "a;b=c",
        "a=b",
        "a&b",
        "a+b",
        "a!b",
        "a$b",
        "a'b",
        "a\"b",
        "a(b)",
        "a<b>",
        "a|b",
        "a^b",
        "a`b",
        "a{b}",
        "a~b",
        "\u{e4}",
        "\u{430}",
        "\u{ff0e}",
        "\u{2024}",
        "\u{200b}",
        "a\u{301}",
        "\u{1f600}",
        "\u{7f}",
        "\u{80}",
    ];
    let long_parts = [
        long(63),
        long(64),
        long(253),
        long(255),
        long(256),
        long(1700),
        long(2048),
        long(3000),
    ];
    let mut ids = BTreeSet::new();
    for scheme in schemes {
        ids.insert(format!("{scheme}td/ns/a/sa/b"));
    }
    for part in parts
        .iter()
        .map(|part| (*part).to_owned())
        .chain(long_parts)
    {
        ids.insert(format!("spiffe://{part}/ns/a/sa/b"));
        ids.insert(format!("spiffe://td/ns/{part}/sa/b"));
        ids.insert(format!("spiffe://td/ns/a/sa/{part}"));
        ids.insert(format!("spiffe://td/{part}/a/sa/b"));
        ids.insert(format!("spiffe://td/ns/a/{part}/b"));
        ids.insert(format!("spiffe://td/ns/a/sa/b{part}"));
        ids.insert(format!("spiffe://td/ns/a/sa/b/{part}"));
    }
    for path in [
        "",
        "/",
        "//",
        "/ns",
        "/ns/",
        "/ns/a",
        "/ns/a/",
        "/ns/a/sa",
        "/ns/a/sa/",
        "/sa/b/ns/a",
        "/ns/sa",
        "/ns/ns/sa/sa",
        "/NS/a/sa/b",
        "/ns/a/SA/b",
        "/ns/a/sa/b/ns/a/sa/b",
        "//ns/a/sa/b",
        "/ns//a/sa/b",
        "/ns/a//sa/b",
        "/ns/a/sa//b",
        "/ns/a/sa/b//",
        "/./ns/a/sa/b",
        "/x/../ns/a/sa/b",
        "/spire/agent/x",
        "/workload",
        "/ns/a/sa/b?",
        "/ns/a/sa/b#",
    ] {
        ids.insert(format!("spiffe://td{path}"));
    }
    // The longest, and one more.
    for length in [2047, 2048, 2049] {
        ids.insert(format!(
            "spiffe://td/ns/a/sa/{}",
            long(length - "spiffe://td/ns/a/sa/".len())
        ));
    }
    ids
}

#[test]
fn ours_and_a_naive_parser_agree() {
    let ids = ids();
    let (mut right, mut wrong) = (0, 0);
    for uri in &ids {
        let ours = Identity::parse(uri);
        let naive = naive(uri);
        let parts = ours
            .as_ref()
            .ok()
            .map(|id| [id.trust_domain(), id.namespace(), id.service_account()].map(str::to_owned));
        assert_eq!(parts, naive, "{uri:.80?}");
        match ours {
            Ok(id) => {
                right += 1;
                // What was read is what is written, byte for byte, and reads the same.
                assert_eq!(id.to_string(), *uri);
                assert_eq!(Identity::from_principal(id.principal()).unwrap(), id);
            }
            Err(error) => {
                wrong += 1;
                assert!(error.to_string().contains("expected"), "{error}");
                if let Some(principal) = uri.strip_prefix("spiffe://") {
                    assert!(
                        Identity::from_principal(principal).is_err(),
                        "{principal:.80?}"
                    );
                }
            }
        }
    }
    assert!(right >= 50 && right + wrong >= 300, "{right} + {wrong}");
}

/// Different texts are different identities: nothing is folded, decoded or trimmed.
#[test]
fn no_two_ids_are_one() {
    let parsed: Vec<_> = ids()
        .iter()
        .filter_map(|uri| Identity::parse(uri).ok())
        .collect();
    let distinct: BTreeSet<_> = parsed.iter().cloned().collect();
    assert_eq!(distinct.len(), parsed.len());
}
