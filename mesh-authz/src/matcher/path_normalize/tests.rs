use std::borrow::Cow;

use super::PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
use super::{InvalidPath, PathNormalization};

const MODES: [PathNormalization; 4] = [None, Base, MergeSlashes, DecodeAndMergeSlashes];

/// The table of Istio's normalisation tests: input, then one column a mode.
#[test]
fn table() {
    let cut = "/app";
    for (input, results) in [
        ("/", ["/"; 4]),
        ("/app#foo", [cut; 4]),
        ("/app/", ["/app/"; 4]),
        (
            "/app/../admin",
            ["/app/../admin", "/admin", "/admin", "/admin"],
        ),
        ("/app//", ["/app//", "/app//", "/app/", "/app/"]),
        ("/app/%2f", ["/app/%2f", "/app/%2f", "/app/%2f", "/app/"]),
        ("/app%2f/", ["/app%2f/", "/app%2f/", "/app%2f/", "/app/"]),
        (
            "/xyz%30..//abc",
            [
                "/xyz%30..//abc",
                "/xyz0..//abc",
                "/xyz0../abc",
                "/xyz0../abc",
            ],
        ),
        (
            "/app/%2E./admin",
            ["/app/%2E./admin", "/admin", "/admin", "/admin"],
        ),
        (
            r"/app\admin",
            [r"/app\admin", "/app/admin", "/app/admin", "/app/admin"],
        ),
        (
            r"/app/\/\/\admin",
            [
                r"/app/\/\/\admin",
                "/app//////admin",
                "/app/admin",
                "/app/admin",
            ],
        ),
        (
            "/%2Fapp%5cadmin%5Cabc",
            [
                "/%2Fapp%5cadmin%5Cabc",
                "/%2Fapp%5cadmin%5Cabc",
                "/%2Fapp%5cadmin%5Cabc",
                "/app/admin/abc",
            ],
        ),
        (
            r"/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\abc",
            [
                r"/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\abc",
                "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
                "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
                "/app/admin/abc",
            ],
        ),
        (
            "/app//../admin",
            ["/app//../admin", "/app/admin", "/app/admin", "/app/admin"],
        ),
        (
            "/app//../../admin",
            ["/app//../../admin", "/admin", "/admin", "/admin"],
        ),
    ] {
        for (mode, result) in MODES.into_iter().zip(results) {
            assert_eq!(mode.normalize(input).unwrap(), result, "{mode:?} {input}");
        }
    }
    for (input, result) in [
        ("/%c0%2e%c0%2e/admin", "/%c0.%c0./admin"),
        ("/%c0%2fadmin", "/%c0/admin"),
    ] {
        assert_eq!(DecodeAndMergeSlashes.normalize(input).unwrap(), result);
    }
}

#[test]
fn never_changed() {
    for path in [
        "/0x2e0x2e/admin",
        "/%252e%252e/admin",
        "/%25c0%25ae/admin",
        "/%c0%ae%c0%ae/admin",
        "/%c1%9c/admin",
        "/.../admin",
        "/admin;a=b",
        "/admin,x",
        "/ADMIN",
        "/a.b/..c/d..",
    ] {
        for mode in MODES {
            let normal = mode.normalize(path).unwrap();
            assert_eq!(normal, path, "{mode:?}");
            assert!(matches!(normal, Cow::Borrowed(_)), "{mode:?} {path}");
        }
    }
}

/// Envoy's path utility.
#[test]
fn library_vectors() {
    for (input, result) in [
        ("/a/b/../c", "/a/c"),
        ("/a/b/./c", "/a/b/c"),
        ("a/b/../c", "/a/c"),
        ("/a/b/../../../../c", "/c"),
        (r"/a/..\c", "/c"),
        ("/%c0%af", "/%c0%af"),
        ("/%5c%25", "/%5c%25"),
        ("/a/%2F%2f/c", "/a/%2F%2f/c"),
        ("/a/b/%2E%2E/c", "/a/c"),
        ("..", "/"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/..?x=/../y", "/?x=/../y"),
        ("", "/"),
    ] {
        assert_eq!(Base.normalize(input).unwrap(), result, "{input}");
    }
    assert_eq!(
        MergeSlashes.normalize("/a//b?a=///c").unwrap(),
        "/a/b?a=///c"
    );
}

#[test]
fn refuses_nul() {
    for path in [
        "/admin%00",
        "/xyz/.%00../abc",
        "/xyz/%00.%00./abc",
        "/xyz/AAAAA%%0000/abc",
        "/%%30%30",
        "/%0%30",
    ] {
        assert_eq!(None.normalize(path).unwrap(), path);
        for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            assert_eq!(mode.normalize(path), Err(InvalidPath), "{mode:?} {path}");
        }
    }
    // A query is not looked at.
    assert!(Base.normalize("/a?b=%00").is_ok());
}

#[test]
fn decoding_makes_no_new_escapes() {
    for (input, expected) in [
        ("/a/%%32%65%%32%65/admin", "/a/%252e%252e/admin"),
        ("/a/%%32e/", "/a/%252e/"),
        ("/a/%2%65", "/a/%252e"),
        ("/a/%%2e", "/a/%."),
        ("/a/%zz%", "/a/%zz%"),
    ] {
        for mode in [Base, MergeSlashes, DecodeAndMergeSlashes] {
            let normal = mode.normalize(input).unwrap();
            assert_eq!(normal, expected, "{mode:?} {input}");
            assert_eq!(
                mode.normalize(&normal).unwrap(),
                expected,
                "{mode:?} {input}"
            );
        }
    }
}

/// What Tomcat and its like read as `..` is read so by policies, too.
#[test]
fn dot_segments_have_no_parameters() {
    for (input, result) in [
        ("/public/..;/admin", "/admin"),
        ("/public/..;x=y/admin", "/admin"),
        ("/public/%2e%2E;x/admin", "/admin"),
        ("/a/.;x/b", "/a/b"),
        ("/a/..;", "/"),
        ("/a/...;x/b", "/a/...;x/b"),
        ("/a/.b;x", "/a/.b;x"),
        ("/a/..%3b/b", "/a/..%3b/b"),
    ] {
        assert_eq!(Base.normalize(input).unwrap(), result, "{input}");
    }
}
