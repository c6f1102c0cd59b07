//! The layer of your own: counts requests per caller and adds a header.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use mesh_core::layers::PeerIdentity;

pub(crate) type Counts = Arc<Mutex<HashMap<String, u64>>>;

pub(crate) async fn count(State(counts): State<Counts>, request: Request, next: Next) -> Response {
    let peer = request
        .extensions()
        .get::<PeerIdentity>()
        .and_then(PeerIdentity::identity);
    let peer = peer.map_or_else(|| "plaintext".to_owned(), ToString::to_string);
    let seen = {
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = counts.entry(peer).or_default();
        *seen += 1;
        *seen
    };
    let mut response = next.run(request).await;
    response
        .headers_mut()
        .insert("x-requests-seen", seen.into());
    response
}
