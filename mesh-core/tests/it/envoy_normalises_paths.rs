//! Paths as a real Envoy makes them comparable, with the settings that istiod gives it, and as we do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;

use mesh_core::authz::matcher::PathNormalization;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::envoy::{Envoy, Role, soon};
use crate::require;

/// How istiod sets Envoy's connection manager in each mode, and ours.
pub(crate) const MODES: [(&str, PathNormalization, &str); 4] = [
    ("none", PathNormalization::None, ""),
    ("base", PathNormalization::Base, "normalize_path: true"),
    (
        "merge",
        PathNormalization::MergeSlashes,
        "normalize_path: true, merge_slashes: true",
    ),
    (
        "decode",
        PathNormalization::DecodeAndMergeSlashes,
        "normalize_path: true, merge_slashes: true, path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD",
    ),
];

/// How many paths are drawn beside those that are written out; short ones come up more than once.
const DRAWN: u64 = 2_500;

/// How many there are at least, each unlike all others (S-15).
const DISTINCT: usize = 2_000;

/// What somebody thought of to get round a policy.
const KNOWN: [&str; 32] = [
    "/",
    "//",
    "/a/%%32%65/admin",
    "/a/%%32%65%%32%65/admin",
    "/%%33%30",
    "/a%2",
    "/a%",
    "/a%zz",
    "/a%2g/../b",
    "/public/..;/admin",
    "/public/;/admin",
    "/public/%2e%2e%2fadmin",
    "/public%2f..%2fadmin",
    "/public%5c..%5cadmin",
    "/public\\..\\admin",
    "/%252e%252e/admin",
    "/%c0%ae%c0%ae/admin",
    "/public/%e0%80%ae%e0%80%ae/admin",
    "/public%c0%af..%c0%afadmin",
    "/public%c1%9c..%c1%9cadmin",
    "/public/.%00./admin",
    "/public/..%00/admin",
    "/admin%00",
    "/admin%00/..",
    "/%00admin",
    "/..",
    "/a/..",
    "/a/.",
    "/a/./",
    "/a//../b",
    "/a?b=/../c",
    "/a%3f/../b",
];

const PIECES: [&str; 39] = [
    "/",
    "/",
    "/",
    "//",
    "a",
    "b",
    "admin",
    ".",
    "..",
    "...",
    "%2e",
    "%2E",
    "%2f",
    "%2F",
    "%5c",
    "%5C",
    "\\",
    "%",
    "%%",
    "%2",
    "32",
    "65",
    "%32%65",
    "%25",
    "%252e",
    "%41",
    "%7e",
    "~",
    ";",
    ";x=y",
    "%20",
    "%3b",
    "%3f",
    "%c0%ae",
    "%0a",
    "A",
    "%00",
    "%c0%af",
    "%e0%80%af",
];

/// The same paths in every run: a failure names one that can be tried by hand.
pub(crate) fn paths() -> Vec<String> {
    let mut state = 0x9e37_79b9_u64;
    let mut below = |bound: u64| {
        // A linear congruential generator (Knuth, MMIX).
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound
    };
    let drawn = (0..DRAWN).map(|_| {
        let mut path = String::from("/");
        for _ in 0..=below(8) {
            path.push_str(PIECES[below(PIECES.len() as u64) as usize]);
        }
        path
    });
    let known = KNOWN.iter().map(ToString::to_string);
    let paths: BTreeSet<String> = known.chain(drawn).collect();
    assert!(paths.len() >= DISTINCT, "{} paths", paths.len());
    paths.into_iter().collect()
}

/// An Envoy whose connection manager has these settings of paths, and these routes.
pub(crate) fn role(settings: &str, routes: &str) -> Role {
    let settings = if settings.is_empty() {
        String::new()
    } else {
        format!("{settings},")
    };
    Role::of(format!(
        r#"
  listeners:
  - name: paths
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
          stat_prefix: paths, {settings}
          route_config: {{ virtual_hosts: [{{ name: all, domains: ["*"], routes: [{routes}] }}] }},
          http_filters: [{{ name: envoy.filters.http.router, typed_config: {{
            "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }} }}] }}
"#
    ))
}

/// Tells in `x-path` what it made of each path.
const TELLS: &str = r#"{ match: { prefix: "" },
    response_headers_to_add: [{ header: { key: x-path, value: "%REQ(:PATH)%" } }],
    direct_response: { status: 200 } }"#;

/// Asks for paths, on one connection for as long as it lasts.
pub(crate) struct Asks {
    server: SocketAddr,
    open: Option<TcpStream>,
}

impl Asks {
    pub(crate) fn of(server: SocketAddr) -> Self {
        Self { server, open: None }
    }

    /// The head of the answer, and its body; `None` if the server closed without one.
    pub(crate) async fn ask(&mut self, path: &str) -> Option<(Head, Vec<u8>)> {
        let mut stream = match self.open.take() {
            Some(stream) => stream,
            None => TcpStream::connect(self.server).await.unwrap(),
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) if head.is_empty() => return None,
                Err(error) => panic!("{path}: {error}"),
            }
        }
        let head = Head(String::from_utf8_lossy(&head).into_owned());
        let length = head.header("content-length");
        let length = length.map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        let ends = head.header("connection");
        if ends.is_none_or(|ends| !ends.eq_ignore_ascii_case("close")) {
            self.open = Some(stream);
        }
        Some((head, body))
    }
}

pub(crate) struct Head(String);

impl Head {
    pub(crate) fn status(&self) -> u16 {
        self.0.split(' ').nth(1).unwrap().parse().unwrap()
    }

    pub(crate) fn header(&self, wanted: &str) -> Option<&str> {
        let mut lines = self.0.lines();
        lines.find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case(wanted).then_some(value)
        })
    }
}

/// What Envoy makes of a path: its form, or the status of its refusal.
type Made = Result<String, u16>;

async fn ask(envoy: &Envoy, paths: &[String]) -> Vec<Made> {
    let mut made = Vec::with_capacity(paths.len());
    let mut asks = Asks::of(envoy.addr());
    for path in paths {
        let (head, _) = asks.ask(path).await.expect(path);
        made.push(match head.status() {
            200 => Ok(head.header("x-path").unwrap_or_default().to_owned()),
            refused => Err(refused),
        });
    }
    made
}

const ROOT: &str = "the root of merged slashes";
const ENCODED_DOTS: &str = "encoded dot segments with parameters";

const DROPPED_NUL: &str = "a NUL in a segment that Envoy drops";

/// Where we differ, and why that is right.
fn exception(
    mode: PathNormalization,
    asked: &str,
    ours: &Made,
    theirs: &Made,
) -> Option<&'static str> {
    // A NUL is refused wherever it stands. Envoy takes `..;x` for `..`, whatever follows, and looks at none of it.
    let with_nul = |segment: &str| segment.starts_with("..;") && segment.contains("%00");
    if ours.is_err() && theirs.is_ok() && asked.split('/').any(with_nul) {
        return Some(DROPPED_NUL);
    }
    let (Ok(ours), Ok(theirs)) = (ours, theirs) else {
        return None;
    };
    let path = |target: &str| target.split('?').next().map(str::to_owned);
    // Envoy keeps a first and a last slash apart, and so two of a path that is nothing but slashes:
    // the root is the root, and what is normal stays as it is.
    if path(ours).as_deref() == Some("/") && path(theirs).as_deref() == Some("//") {
        return Some(ROOT);
    }
    // Envoy resolves `..;x` and leaves `%2e%2e;x` as `..;x`, which the next Envoy would resolve. Ours
    // is what comes of that: nobody behind us makes another path of it.
    let dots = |path: &str| path.contains("/.;") || path.contains("/..;");
    let again = mode.normalize(theirs).ok()?;
    (dots(theirs) && again == *ours).then_some(ENCODED_DOTS)
}

#[tokio::test]
async fn envoy_and_we_make_the_same_of_every_path() {
    let test = "envoy_and_we_make_the_same_of_every_path";
    let Some(program) = require::peer(test, "PEER_ENVOY") else {
        return;
    };
    let paths = paths();
    let mut differences = String::new();
    let mut count = 0;
    let mut excepted: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, mode, settings) in MODES {
        let envoy = Envoy::start(&program, &role(settings, TELLS)).await;
        let made = soon("all paths", ask(&envoy, &paths)).await;
        for (path, theirs) in paths.iter().zip(made) {
            let ours = mode.normalize(path);
            let ours = ours.map(|path| path.into_owned()).map_err(|_| 400);
            if ours == theirs {
                continue;
            }
            if let Some(reason) = exception(mode, path, &ours, &theirs) {
                *excepted.entry(reason).or_default() += 1;
                continue;
            }
            count += 1;
            if count <= 40 {
                writeln!(differences, "{name} {path}: Envoy {theirs:?}, we {ours:?}").unwrap();
            }
        }
    }
    assert_eq!(count, 0, "differences:\n{differences}");
    // An exception that nothing needs any more is to go.
    let needed: Vec<&str> = excepted.into_keys().collect();
    assert_eq!(needed, [DROPPED_NUL, ENCODED_DOTS, ROOT]);
}
