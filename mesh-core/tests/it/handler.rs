//! A service that remembers what reached it, and policies in few words.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use mesh_core::ConnectionContext;
use mesh_core::authz::PolicySet;
use mesh_core::authz::policy::istio::{AuthorizationPolicy, Operation, Rule, Source};
use mesh_core::authz::policy::{Action, TrustDomains};
use tower::Service;

pub(crate) const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews";

/// Answers 200 `ok` and remembers the requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Handler {
    seen: Arc<Mutex<Vec<Parts>>>,
}

impl Handler {
    pub(crate) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    /// The last request's head.
    pub(crate) fn last(&self) -> Parts {
        self.seen.lock().unwrap().last().expect("a request").clone()
    }
}

impl<B> Service<Request<B>> for Handler {
    type Response = Response<String>;
    type Error = Infallible;
    type Future = Ready<Result<Response<String>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.seen.lock().unwrap().push(request.into_parts().0);
        ready(Ok(Response::new("ok".to_owned())))
    }
}

pub(crate) fn get(target: &str) -> Request<String> {
    Request::get(target).body(String::new()).unwrap()
}

pub(crate) fn grpc(target: &str) -> Request<String> {
    Request::post(target)
        .header("content-type", "application/grpc")
        .body(String::new())
        .unwrap()
}

pub(crate) fn plaintext() -> ConnectionContext {
    ConnectionContext::plaintext(
        "10.0.0.7:51000".parse().unwrap(),
        "10.0.0.9:9080".parse().unwrap(),
    )
}

pub(crate) fn tunnel() -> ConnectionContext {
    ConnectionContext::tunnel(
        "10.0.0.7:51000".parse().unwrap(),
        "10.0.0.9:9080".parse().unwrap(),
        REVIEWS.parse().unwrap(),
    )
}

/// One policy `default/test` with these rules.
pub(crate) fn policy(action: Action, rules: Vec<Rule>) -> PolicySet {
    let mut policy = AuthorizationPolicy::new("default", "test");
    policy.action = action;
    policy.rules = rules;
    PolicySet::new([Arc::new(policy.lower(&TrustDomains::default()).unwrap())])
}

/// A rule on the operation.
pub(crate) fn to(edit: impl FnOnce(&mut Operation)) -> Rule {
    let mut operation = Operation::default();
    edit(&mut operation);
    let mut rule = Rule::default();
    rule.to = vec![operation];
    rule
}

/// A rule on the caller.
pub(crate) fn from(edit: impl FnOnce(&mut Source)) -> Rule {
    let mut source = Source::default();
    edit(&mut source);
    let mut rule = Rule::default();
    rule.from = vec![source];
    rule
}
