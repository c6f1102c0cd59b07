use std::time::Duration;

use tower_layer::Layer;

use super::Deadline;
use crate::layers::answer::{Answer, AnswerLayer};

/// Fails requests that take too long with [`RequestTimeout`](crate::ErrorKind::RequestTimeout): the
/// form for clients.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::layers::DeadlineLayer;
///
/// let layer = DeadlineLayer::new(Duration::from_secs(15));
/// # let _ = layer;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct DeadlineLayer {
    timeout: Option<Duration>,
}

impl DeadlineLayer {
    /// Allows a request `timeout` from call to the end of its response.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout: Some(timeout),
        }
    }

    /// Sets no limit but the one that a gRPC request brings along.
    pub fn unlimited() -> Self {
        Self { timeout: None }
    }
}

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline::new(inner, self.timeout)
    }
}

/// Answers requests that take too long with 504, or gRPC status 4: the form for servers.
///
/// When the response has begun, there is nothing left to answer: its body fails and the server cuts
/// the stream.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::layers::TimeoutLayer;
///
/// let app = axum::Router::<()>::new().layer(TimeoutLayer::new(Duration::from_secs(15)));
/// # let _ = app;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TimeoutLayer {
    deadline: DeadlineLayer,
}

impl TimeoutLayer {
    /// Allows a request `timeout` from call to the end of its response.
    pub fn new(timeout: Duration) -> Self {
        Self {
            deadline: DeadlineLayer::new(timeout),
        }
    }

    /// Sets no limit but the one that a gRPC request brings along.
    pub fn unlimited() -> Self {
        Self {
            deadline: DeadlineLayer::unlimited(),
        }
    }
}

impl<S> Layer<S> for TimeoutLayer {
    type Service = Answer<Deadline<S>>;

    fn layer(&self, inner: S) -> Self::Service {
        AnswerLayer::new().layer(self.deadline.layer(inner))
    }
}
