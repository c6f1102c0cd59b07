use super::PathTemplate;
use crate::matcher::PathMatch;

/// Istio's TestAuthz_PathTemplating.
#[test]
fn golden_vectors() {
    let templates: Vec<_> = ["/allow/admin/{**}", "/foo/{*}/bar/{**}", "/store/{**}/cart"]
        .map(|one| PathMatch::Template(PathTemplate::parse(one).unwrap()))
        .into();
    for (path, allowed) in [
        ("/allow/admin/", true),
        ("/allow/admin", false),
        ("/allow/user/", false),
        ("/allow/admin?param=value", false),
        ("/allow", false),
        ("/allow/admin/temp", true),
        ("/allow/admin/temp.txt", true),
        ("/allow/admin/foo/temp.txt", true),
        ("/foo/buzz/bar/bat.txt", true),
        ("/foo/buzz/bar/bat.temp.txt", true),
        ("/foo/buzz/bar/bat/fuzz.txt", true),
        ("/foo/buzz/bar/bat", true),
        ("/foo/bar/bat.txt", false),
        ("/foo//bar/bat.txt", false),
        ("/store//cart", true),
        ("/store/cart", false),
        ("/store/foo/cart", true),
        ("/store/foo/bar/cart", true),
        // The query is no part of the path.
        ("/store/foo/cart?a=/b#c", true),
    ] {
        let matched = templates.iter().any(|template| template.matches(path));
        assert_eq!(matched, allowed, "{path}");
    }
}

#[test]
fn matches_the_whole_path() {
    for (template, path, matches) in [
        ("/{*}", "/a", true),
        ("/{*}", "/", false),
        ("/{*}", "/a/", false),
        ("/{*}/", "/a/", true),
        ("/{*}/{*}", "/a/b", true),
        ("/{*}/{*}", "/a", false),
        ("/a/{*}", "/a/b=c", false),
        ("/a/{*}", "/a/b*", false),
        ("/a/{*}", "/a/b%2fc", true),
        ("/a/{*}", "/a/-._~%!$&'()+,;:@", true),
        ("/a/{*}", "/a/\u{e9}", false),
        ("/{**}", "/", true),
        ("/{**}", "/a//b", true),
        ("/{**}.mpd", "/a/b.mpd", true),
        ("/{**}.mpd", "/.mpd", true),
        ("/{**}.mpd", "/a.mp", false),
        ("/{**}/b", "/b", false),
        ("/{*}/x/{**}/y", "/a/x/y", false),
        ("/{*}/x/{**}/y", "/a/x//y", true),
        // Literals are compared as they are.
        ("/a.c/{*}", "/abc/d", false),
        ("/a.c/{*}", "/a.c/d", true),
    ] {
        let parsed = PathTemplate::parse(template).unwrap();
        assert_eq!(parsed.matches(path), matches, "{template} {path}");
        assert_eq!(parsed.as_str(), template);
    }
}

#[test]
fn refuses_malformed_templates() {
    for template in [
        "{*}",
        "a/{*}",
        "/api/v{*}/1",
        "/api/{*}v/1",
        "/{*}.txt",
        "/a/{**}/{*}/{**}",
        "/a/{**}/{**}",
        "/a/{**}/{*}",
        "/a//{*}",
        "/a/{*}//",
        "/a/{*}/b*",
        "/a/{*}/*",
        "/a/**/{*}",
        "/a/{*}/{b",
        "/a/{*}/b}",
        "/a/{*}/{b}",
        "/a/{{*}}",
        "/a/{*}/b=c",
        "/a/{*}/\u{7}",
        "/a/{*}/b c",
        "/a/{*}/\u{e9}",
        "/a/{*}/%2",
        "/a/{*}/%zz",
        "/a/{**}{*}",
        "/a/{**}?b",
    ] {
        let error = PathTemplate::parse(template).unwrap_err();
        assert!(
            error.to_string().contains(&format!("{template:?}")),
            "{error}"
        );
        assert!(!error.reason().is_empty());
    }
}
