use std::io;
use std::sync::{Arc, Mutex, OnceLock};

use mesh_core::authz::PolicySet;
use mesh_core::authz::policy::istio::{AuthorizationPolicy, Rule};
use mesh_core::authz::policy::{Action, TrustDomains};
use mesh_core::layers::IdentifyLayer;
use mesh_core::testing::Caller;
use tower::{Layer, ServiceExt};
use tracing_subscriber::EnvFilter;

use crate::handler::{Handler, REVIEWS, get, policy, to};

#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What this thread logs while the guard lives.
pub(crate) fn capture(filter: &str) -> (Lines, tracing::subscriber::DefaultGuard) {
    // While there is one subscriber only, tracing asks the thread that first meets an event whether it is
    // wanted, and that may be another test's, which has none.
    static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
    SECOND.get_or_init(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new()));
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_env_filter(EnvFilter::new(filter))
        .with_writer(move || writer.clone())
        .finish();
    (lines, tracing::subscriber::set_default(subscriber))
}

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    #[track_caller]
    pub(crate) fn has(&self, parts: &[&str]) {
        let text = self.text();
        let line = text
            .lines()
            .find(|line| parts.iter().all(|part| line.contains(part)));
        assert!(line.is_some(), "no line with {parts:?} in:\n{text}");
    }
}

#[tokio::test]
async fn a_denial_is_logged_with_its_policy_and_rule() {
    let deny = to(|operation| operation.paths = vec!["/secret".into()]);
    let other = to(|operation| operation.paths = vec!["/other".into()]);
    let caller = Caller::new(Handler::default())
        .identity(REVIEWS)
        .policies(policy(Action::Deny, vec![other, deny]));
    let (lines, _guard) = capture("mesh::authz=debug");
    caller.call(get("/a/../secret")).await.unwrap();
    lines.has(&[
        "mesh::authz",
        "DEBUG",
        "denied",
        "policy=default/test",
        "rule=1",
        REVIEWS,
        "path=\"/secret\"",
    ]);
}

#[tokio::test]
async fn a_denial_that_no_policy_allowed_is_logged_with_those_that_could_have() {
    let paths = to(|operation| operation.paths = vec!["/open".into()]);
    let caller = Caller::new(Handler::default()).policies(policy(Action::Allow, vec![paths]));
    let (lines, _guard) = capture("mesh::authz=debug");
    caller.call(get("/closed")).await.unwrap();
    lines.has(&[
        "denied",
        "none allowed",
        "policies=\"default/test\"",
        "identity=plaintext",
    ]);
}

#[tokio::test]
async fn a_dry_run_says_what_it_would_do() {
    let mut dry = AuthorizationPolicy::new("default", "dry");
    dry.action = Action::Deny;
    dry.dry_run = true;
    dry.rules = vec![Rule::default()];
    let dry = PolicySet::new([Arc::new(dry.lower(&TrustDomains::default()).unwrap())]);
    let caller = Caller::new(Handler::default()).policies(dry);
    let (lines, _guard) = capture("mesh::authz=debug");
    assert_eq!(caller.call(get("/")).await.unwrap().status(), 200);
    lines.has(&[
        "dry_run=true",
        "allowed=false",
        "policy=default/dry",
        "rule=0",
    ]);
}

#[tokio::test]
async fn a_request_without_a_context_is_complained_of() {
    let (lines, _guard) = capture("mesh::layers=error");
    let service = IdentifyLayer::new().layer(Handler::default());
    service.oneshot(get("/")).await.unwrap();
    lines.has(&["ERROR", "mesh::layers", "without its connection's context"]);
}

#[tokio::test]
async fn every_answer_is_in_the_access_log() {
    let (lines, _guard) = capture("access=info,mesh::access=info,info");
    let caller = Caller::new(Handler::default())
        .identity(REVIEWS)
        .policies(policy(Action::Allow, vec![]));
    caller.call(get("/books?page=2")).await.unwrap();
    lines.has(&[
        "request complete",
        "/books?page=2",
        "response_code=403",
        REVIEWS,
    ]);
}
