//! The mesh as tower layers: each works on any HTTP service, with or without a `Mesh`.
//!
//! | layer | what it does |
//! |---|---|
//! | [`ObserveLayer`] | counts and logs requests when their responses have ended |
//! | [`IdentifyLayer`] | tells the request who its peer is; takes forged headers away |
//! | [`RefuseTokensLayer`] | answers 401 to tokens that cannot be verified yet |
//! | [`AuthorizeLayer`] | judges each request by policies: 403, or gRPC 7 |
//! | [`TimeoutLayer`] | answers 504, or gRPC 4, to requests that take too long |
//! | [`AnswerLayer`] | turns errors into responses, by the one table of [`ErrorKind::reply`](crate::ErrorKind::reply) |
//! | [`LeaveLayer`] | closes HTTP/1 connections with their next answer when the mesh drains |
//! | [`InboundLayer`] | all that a server in the mesh needs, in the right order |
//!
//! A client's layers, which fail with an [`Error`](crate::Error):
//!
//! | layer | what it does |
//! |---|---|
//! | [`DeadlineLayer`] | fails requests that take too long |
//! | [`RetryLayer`] | sends again what the peer cannot have seen, within a budget |
//!
//! Layers of a server answer with a `Response` and pass the inner service's error on untouched, so
//! that `axum::Router::layer` and tonic's `Server::layer` take them. They are generic over bodies,
//! honour `poll_ready` and spawn nothing; judging a request that is allowed allocates nothing.
//!
//! # Order
//!
//! The order of a server's stack is written in [`InboundLayer`] and nowhere else, outermost first:
//!
//! 1. leave: every answer of a mesh that drains is the last on its connection;
//! 2. observe: every answer counts, those of the layers below included;
//! 3. identify: what follows needs to know the peer, and must not read forged headers;
//! 4. authorize: normalise the path, refuse tokens, decide; what was judged is what is forwarded;
//! 5. the application.

mod answer;
mod authorize;
mod identify;
mod inbound;
mod jwt;
mod leave;
mod observe;
mod reply;
mod retry;
mod timeout;

pub use answer::{Answer, AnswerFuture, AnswerLayer};
pub use authorize::{Authorize, AuthorizeLayer};
#[cfg(feature = "admin")]
pub(crate) use authorize::{normalize, without_trailing_dot};
pub use identify::{Identify, IdentifyLayer, PeerIdentity};
pub use inbound::{Inbound, InboundLayer};
pub use jwt::{RefuseTokens, RefuseTokensLayer, TokenLocations};
pub use leave::{Leave, LeaveFuture, LeaveLayer};
#[cfg(feature = "http")]
pub(crate) use observe::peer_labels;
pub use observe::{Observe, ObserveBody, ObserveFuture, ObserveLayer};
pub use reply::{LocalResponse, ReplyBody, ReplyFuture};
#[cfg(feature = "http")]
pub(crate) use retry::{AppBody, Replay, Sent, erase};
pub use retry::{ReplayBody, Retry, RetryBudget, RetryFuture, RetryLayer};
pub use timeout::{Deadline, DeadlineBody, DeadlineFuture, DeadlineLayer, TimeoutLayer};

/// The accessors that every service around another one has.
macro_rules! accessors {
    ($service:ident) => {
        impl<S> $service<S> {
            /// The service inside.
            pub fn get_ref(&self) -> &S {
                &self.inner
            }

            /// The service inside.
            pub fn get_mut(&mut self) -> &mut S {
                &mut self.inner
            }

            /// Unwraps the service inside.
            pub fn into_inner(self) -> S {
                self.inner
            }
        }
    };
}
use accessors;
