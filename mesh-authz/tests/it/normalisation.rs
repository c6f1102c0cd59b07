//! PT-03: normalised paths are normal, and leave no way round a denial.

use std::borrow::Cow;

use mesh_authz::matcher::PathNormalization::{self, Base, DecodeAndMergeSlashes, MergeSlashes};
use proptest::prelude::*;

use crate::generate::config;

/// Paths of the pieces that were ever used to get round a policy.
fn path() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "/", "/", "//", "a", "b", ".", "..", "%2e", "%2E", "%2f", "%2F", "%5c", "%5C", "\\", "%30",
        "%25", "%252e", "%252f", ";x=y", ",", "...", "%c0%ae", "%c0%2e", "%41", "~", "A", "%7e",
        "%20", "%01",
    ]);
    prop::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn modes() -> impl Strategy<Value = PathNormalization> {
    prop::sample::select(vec![Base, MergeSlashes, DecodeAndMergeSlashes])
}

/// What a backend that decodes and resolves makes of a path, once: the folder it is in.
fn first_segment(path: &str) -> Option<&str> {
    path.split('/').find(|segment| !segment.is_empty())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn idempotent(mode in modes(), path in path()) {
        let once = mode.normalize(&path).unwrap().into_owned();
        let twice = mode.normalize(&once).unwrap();
        prop_assert_eq!(&twice, &once);
        prop_assert!(matches!(twice, Cow::Borrowed(_)));
    }

    #[test]
    fn normal(mode in modes(), path in path()) {
        let normal = mode.normalize(&path).unwrap();
        prop_assert!(normal.starts_with('/'));
        prop_assert!(!normal.contains('\\'));
        let bare = |segment: &str| segment.split(';').next().map(str::to_owned);
        let dots = |segment| matches!(bare(segment).as_deref(), Some("." | ".."));
        prop_assert!(!normal.split('/').any(dots), "{}", normal);
        let lower = normal.to_lowercase();
        prop_assert!(!lower.contains("%2e") && !lower.contains("%30") && !lower.contains("%7e"), "{}", normal);
        if mode != Base {
            prop_assert!(!normal.contains("//"), "{}", normal);
        }
        if mode == DecodeAndMergeSlashes {
            prop_assert!(!lower.contains("%2f") && !lower.contains("%5c"), "{}", normal);
        }
    }

    /// No spelling of a denied path turns up outside: dot segments that lead nowhere change nothing.
    #[test]
    fn detours_change_nothing(
        mode in modes(),
        before in "/[a-c]{1,3}",
        after in "(/[a-c]{1,3}){1,3}",
        detour in prop::sample::select(vec![
            "/.", "/x/..", "/%2e", "/x/%2E.", "/x/.%2e", "/./.", "/x/y/../..", "\\.", "\\x\\..",
        ]),
    ) {
        let straight = format!("{before}{after}");
        let normal = mode.normalize(&straight).unwrap();
        prop_assert_eq!(&normal, &straight);
        let spelled = format!("{before}{detour}{after}");
        prop_assert_eq!(mode.normalize(&spelled).unwrap(), normal);
    }

    #[test]
    fn query_is_not_touched(mode in modes(), path in path(), query in "[a-z/.%\\\\?=&]{0,12}") {
        let whole = format!("{path}?{query}");
        let normal = mode.normalize(&whole).unwrap().into_owned();
        prop_assert_eq!(&normal, &format!("{}?{}", mode.normalize(&path).unwrap(), query));
        let fragment = format!("{}#/../x", whole);
        prop_assert_eq!(mode.normalize(&fragment).unwrap(), normal);
        prop_assert_eq!(PathNormalization::None.normalize(&fragment).unwrap(), whole);
    }

    /// Any text at all: never a panic, and a path or an error.
    #[test]
    fn any_text(mode in modes(), text in "\\PC{0,24}") {
        if let Ok(normal) = mode.normalize(&text) {
            prop_assert!(normal.starts_with('/'));
        }
    }
}

/// S-15, CVE-2021-31920, CVE-2021-39156, CVE-2020-8595: Istio's TestAuthz_PathNormalization: the policy allows `/public*`.
#[test]
fn bypasses() {
    let allowed = |path: &str| {
        let normal = Base.normalize(path).unwrap();
        normal.starts_with("/public")
    };
    assert!(allowed("/public"));
    assert!(allowed("/public/../public"));
    assert!(!allowed("/private"));
    for dots in [
        "..",
        "./..",
        ".././",
        "%2E%2E",
        "%2e%2e",
        "%2E/%2E%2E",
        "%2e/%2e%2e",
        "%2E%2E/%2E",
        "%2e%2e/%2e",
    ] {
        let path = format!("/public/{dots}/private");
        assert!(!allowed(&path), "{path}");
        assert_eq!(
            first_segment(&Base.normalize(&path).unwrap()),
            Some("private")
        );
    }
}
