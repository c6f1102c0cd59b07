//! S-15. Paths as servers that people use read them: what a policy denies does not get to its resource under another spelling.
//!
//! What a server gets is what we forward: the path in its normal form. Each server reads paths in its own way, and
//! each mode is enough for some of them, as `PathNormalization` documents. A mode that is less is got round. What gets
//! round every mode is named: see [`Gap::Template`].

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use axum::Router;
use axum::routing::any;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request};
use mesh_core::authz::matcher::PathNormalization::{self, Base, DecodeAndMergeSlashes};
use mesh_core::authz::policy::istio::AuthorizationPolicy;
use mesh_core::authz::policy::{Action, TrustDomains};
use mesh_core::authz::{Attributes, PolicySet, RequestAttributes};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::{Duration, sleep};
use tower::ServiceExt as _;

use crate::envoy::{Envoy, soon};
use crate::envoy_normalises_paths::{Asks, MODES, paths, role};
use crate::handler::to;
use crate::require;

/// What the servers answer for all below `/admin`, and for nothing else.
const SECRET: &str = "the secret";

/// How a policy may name what is below `/admin`.
const GUARDS: [(&str, &[&str]); 2] = [
    ("prefix", &["/admin*"]),
    ("template", &["/admin", "/admin/{**}"]),
];

/// Why a spelling gets round a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// The server makes more equal than the mode does; this one would have been enough.
    Mode(PathNormalization),
    /// The operators of path templates match the characters that Envoy's match, and so neither `=` nor `*`, in any mode:
    /// to deny all below a path takes the form with `*` at its end.
    Template,
}

/// Spellings of the resource itself, beside those that come of the corpus.
const SPELLED: [&str; 4] = [
    "/%61dmin/secret",
    "/a%64min/secret",
    "/%61%64%6d%69%6e/secret",
    "/admin%2fsecret",
];

/// What the paths of the corpus come to, as they are and around the resource.
fn targets() -> BTreeSet<String> {
    let spelled = paths().into_iter().flat_map(|path| {
        let (below, above) = (format!("{path}/admin/secret"), format!("/admin{path}"));
        [path, below, above]
    });
    // Others do not get as far as to us: hyper refuses them.
    let spelled = spelled.chain(SPELLED.map(str::to_owned));
    spelled
        .filter(|path| path.parse::<PathAndQuery>().is_ok())
        .collect()
}

fn policy(paths: &[&str]) -> PolicySet {
    let mut policy = AuthorizationPolicy::new("default", "no-admin");
    policy.action = Action::Deny;
    policy.rules = vec![to(|operation| {
        operation.paths = paths.iter().map(ToString::to_string).collect();
    })];
    PolicySet::new([Arc::new(policy.lower(&TrustDomains::default()).unwrap())])
}

fn permits(policy: &PolicySet, target: &str) -> bool {
    let (address, headers) = ("10.0.0.1:80".parse().unwrap(), HeaderMap::new());
    let request = RequestAttributes::new(&Method::GET, Some("x"), target, &headers);
    let attributes = Attributes::new(address, address).with_request(request);
    policy.evaluate(&attributes).is_allowed()
}

/// A path as each mode has it; `None` where it is refused.
type Forms = [Option<String>; MODES.len()];

fn forms(target: &str) -> Forms {
    MODES.map(|(_, mode, _)| Some(mode.normalize(target).ok()?.into_owned()))
}

/// Whether the operators of templates match all that is below the resource.
fn fits_templates(path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let odd = |char: char| !char.is_ascii_alphanumeric() && !"-._~%!$&'()+,;:@/".contains(char);
    !path
        .strip_prefix("/admin/")
        .is_some_and(|below| below.contains(odd))
}

/// Asks a server for all targets, in order, and says which of them led to the secret.
async fn leads_to_secret(server: SocketAddr, targets: &BTreeSet<String>) -> BTreeSet<String> {
    let mut led = BTreeSet::new();
    let mut asks = Asks::of(server);
    for target in targets {
        // Python's handler breaks off at what has a NUL.
        let Some((head, body)) = asks.ask(target).await else {
            continue;
        };
        if head.status() == 200 && String::from_utf8_lossy(&body).contains(SECRET) {
            led.insert(target.clone());
        }
    }
    led
}

/// Holds a server to what the documentation says of it: from the mode that it needs on there is no gap but that of
/// templates, and before it there is one.
fn judge(server: &str, needs: PathNormalization, spelled: &[Forms], led: &BTreeSet<String>) {
    let needed = MODES
        .iter()
        .position(|(_, mode, _)| *mode == needs)
        .unwrap();
    let mut gaps = [0; MODES.len()];
    for (guard, paths) in GUARDS {
        let policy = policy(paths);
        let open = |form: &Option<String>| {
            let form = form.as_ref().filter(|form| led.contains(*form));
            form.is_some_and(|form| permits(&policy, form))
        };
        for forms in spelled {
            for (mode, form) in forms.iter().enumerate().filter(|(_, form)| open(form)) {
                let path = form.as_deref().unwrap_or_default();
                let odd = |form: &Option<String>| {
                    let form = form.as_deref();
                    guard == "template" && form.is_some_and(|form| !fits_templates(form))
                };
                let gap = match (mode..MODES.len()).find(|stricter| !open(&forms[*stricter])) {
                    _ if odd(form) => Some(Gap::Template),
                    Some(stricter) => Some(Gap::Mode(MODES[stricter].1)),
                    // Below the resource only once its slash is decoded.
                    None if odd(&forms[MODES.len() - 1]) => Some(Gap::Template),
                    None => None,
                };
                let named = gap == Some(Gap::Template) || (gap.is_some() && mode < needed);
                assert!(
                    named,
                    "{server}, {}, {guard}: {path} {gap:?}",
                    MODES[mode].0
                );
                gaps[mode] += usize::from(gap != Some(Gap::Template));
            }
        }
    }
    assert!(
        needed == 0 || gaps[needed - 1] > 0,
        "{server} needs less than {needs:?}: {gaps:?}"
    );
}

/// All that our modes forward of the corpus.
fn forwarded() -> (Vec<Forms>, BTreeSet<String>) {
    let spelled: Vec<Forms> = targets().iter().map(|target| forms(target)).collect();
    let all = spelled.iter().flatten().flatten().cloned().collect();
    (spelled, all)
}

/// A process that is killed when dropped.
struct Running(
    Child,
    #[allow(dead_code, reason = "until then it is there")] TempDir,
);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two ports that were free just now.
fn ports() -> [SocketAddr; 2] {
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    [free(), free()].map(|listener| listener.local_addr().unwrap())
}

fn start(folder: TempDir, command: &mut Command) -> std::io::Result<Running> {
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let child = command
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()?;
    Ok(Running(child, folder))
}

async fn listens(server: SocketAddr) {
    let listens = async {
        while TcpStream::connect(server).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a server", listens).await;
}

/// All modes of ours before one server.
async fn in_all_modes(name: &str, needs: PathNormalization, server: SocketAddr) {
    listens(server).await;
    let (spelled, all) = forwarded();
    let led = leads_to_secret(server, &all).await;
    assert!(led.contains("/admin/secret"), "{name}");
    judge(name, needs, &spelled, &led);
}

const NGINX: &str = r#"
daemon off;
master_process off;
worker_processes 1;
error_log stderr crit;
pid nginx.pid;
events {}
http {
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {
    listen ADDRESS;
    location = /admin { return 200 "the secret"; }
    location /admin/ { return 200 "the secret"; }
    location / { return 200 "nothing"; }
  }
}
"#;

#[tokio::test]
async fn nginx() {
    let (folder, [address, _]) = (tempfile::tempdir().unwrap(), ports());
    let config = folder.path().join("nginx.conf");
    fs::write(&config, NGINX.replace("ADDRESS", &address.to_string())).unwrap();
    let program = ["/usr/sbin/nginx", "/usr/local/sbin/nginx"];
    let program = program.into_iter().find(|path| Path::new(path).exists());
    let mut command = Command::new(program.unwrap_or("nginx"));
    command.arg("-p").arg(folder.path()).arg("-c").arg(&config);
    let _running = match start(folder, &mut command) {
        Ok(running) => running,
        Err(error) => return require::skip("nginx", &format!("nginx: {error}")),
    };
    in_all_modes("nginx", DecodeAndMergeSlashes, address).await;
}

const PYTHON: &str = r#"
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

#[tokio::test]
async fn http_server_of_python() {
    let (folder, [address, _]) = (tempfile::tempdir().unwrap(), ports());
    fs::create_dir(folder.path().join("admin")).unwrap();
    fs::write(folder.path().join("admin/secret"), SECRET).unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &address.port().to_string()]);
    let _running = match start(folder, &mut command) {
        Ok(running) => running,
        Err(error) => return require::skip("http_server_of_python", &format!("python3: {error}")),
    };
    in_all_modes("Python", DecodeAndMergeSlashes, address).await;
}

const GO: &str = r#"
package main

import ("fmt"; "net/http"; "os"; "strings")

func secret(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "the secret") }

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/admin", secret)
	mux.HandleFunc("/admin/", secret)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "nothing") })
	go http.ListenAndServe(os.Args[1], mux)
	http.ListenAndServe(os.Args[2], http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/admin" || strings.HasPrefix(r.URL.Path, "/admin/") { secret(w, r) } else { fmt.Fprint(w, "nothing") }
	}))
}
"#;

/// Whether `ServeMux` compares segments before they are decoded: [since 1.22](https://go.dev/doc/go1.22#enhanced_routing_patterns).
fn splits_first(go: &Path) -> bool {
    let version = Command::new(go).arg("version").output().expect("go runs");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let minor = version
        .split_once("go1.")
        .and_then(|(_, rest)| rest.split(['.', ' ']).next()?.parse::<u32>().ok());
    minor.unwrap_or_else(|| panic!("{version}")) >= 22
}

/// `ServeMux`, which answers an unclean path with a redirection, and a handler that looks at the decoded path.
#[tokio::test]
async fn net_http_of_go() {
    let Some(program) = require::peer("net_http_of_go", "PEER_GO") else {
        return;
    };
    let (folder, [mux, plain]) = (tempfile::tempdir().unwrap(), ports());
    fs::write(folder.path().join("main.go"), GO).unwrap();
    let needs = match splits_first(&program) {
        true => Base,
        false => DecodeAndMergeSlashes,
    };
    let mut build = Command::new(program);
    build.args(["build", "-o", "server", "main.go"]);
    build.current_dir(folder.path());
    let built = tokio::task::spawn_blocking(move || build.output()).await;
    let built = built.unwrap().expect("go runs");
    assert!(
        built.status.success(),
        "{}",
        String::from_utf8_lossy(&built.stderr)
    );
    let mut command = Command::new(folder.path().join("server"));
    command.args([mux.to_string(), plain.to_string()]);
    let _running = start(folder, &mut command).expect("it was built");
    in_all_modes("ServeMux", needs, mux).await;
    in_all_modes("a handler in Go", DecodeAndMergeSlashes, plain).await;
}

/// The strictest of Envoy's own settings, as of a gateway behind us.
#[tokio::test]
async fn envoy() {
    let Some(program) = require::peer("envoy", "PEER_ENVOY") else {
        return;
    };
    let (_, _, settings) = MODES[3];
    let routes = format!(
        r#"{{ match: {{ path_separated_prefix: "/admin" }},
            direct_response: {{ status: 200, body: {{ inline_string: "{SECRET}" }} }} }},
        {{ match: {{ prefix: "" }}, direct_response: {{ status: 200 }} }}"#
    );
    let envoy = Envoy::start(&program, &role(settings, &routes)).await;
    in_all_modes("Envoy", DecodeAndMergeSlashes, envoy.addr()).await;
}

/// In the application itself: routes are compared with the path as it is.
#[tokio::test]
async fn router_of_axum() {
    let router = Router::new()
        .route("/admin", any(|| async { SECRET }))
        .route("/admin/", any(|| async { SECRET }))
        .route("/admin/{*rest}", any(|| async { SECRET }))
        .fallback(|| async { "nothing" });
    let (spelled, all) = forwarded();
    let mut led = BTreeSet::new();
    for target in all {
        let Ok(request) = Request::get(&target).body(axum::body::Body::empty()) else {
            continue;
        };
        let answer = router.clone().oneshot(request).await.unwrap();
        let body = axum::body::to_bytes(answer.into_body(), 100).await.unwrap();
        if body == SECRET {
            led.insert(target);
        }
    }
    judge("axum", PathNormalization::None, &spelled, &led);
}
