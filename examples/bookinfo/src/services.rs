//! Bookinfo's services: plain axum handlers that know nothing of tunnels.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Empty, Limited};
use mesh_core::MeshClient;
use serde_json::{Value, json};

use crate::page::{self, Part};

/// More than any of these services answers.
const MAX_ANSWER: usize = 1 << 20;

/// Asks another service for JSON.
pub(crate) async fn fetch(client: &MeshClient, uri: String) -> Part {
    let request = Request::get(&uri)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = client
        .request(request)
        .await
        .map_err(|error| error.to_string())?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    if !status.is_success() {
        return Err(format!("{status}: {}", String::from_utf8_lossy(&body)));
    }
    serde_json::from_slice(&body).map_err(|error| error.to_string())
}

pub(crate) fn productpage(client: MeshClient) -> Router {
    async fn show(State(client): State<MeshClient>) -> Html<String> {
        let (details, reviews) = tokio::join!(
            fetch(&client, "http://details:9080/details/0".to_owned()),
            fetch(&client, "http://reviews:9080/reviews/0".to_owned()),
        );
        Html(page::render(&details, &reviews))
    }
    Router::new()
        .route("/", get(|| async { Redirect::to("/productpage") }))
        .route("/productpage", get(show))
        .route("/health", get(|| async { "Product page is healthy" }))
        .with_state(client)
}

pub(crate) fn details() -> Router {
    async fn show(Path(id): Path<u64>) -> Json<Value> {
        Json(json!({
            "id": id,
            "author": "William Shakespeare",
            "year": 1595,
            "type": "paperback",
            "pages": 200,
            "publisher": "PublisherA",
            "language": "English",
            "ISBN-10": "1234567890",
            "ISBN-13": "123-1234567890",
        }))
    }
    async fn forget(Path(_): Path<u64>) -> StatusCode {
        StatusCode::NO_CONTENT
    }
    Router::new()
        .route("/details/{id}", get(show).delete(forget))
        .route("/health", get(|| async { "Details is healthy" }))
}

pub(crate) fn ratings() -> Router {
    async fn show(Path(id): Path<u64>) -> Json<Value> {
        Json(json!({ "id": id, "ratings": { "Reviewer1": 5, "Reviewer2": 4 } }))
    }
    Router::new()
        .route("/ratings/{id}", get(show))
        .route("/health", get(|| async { "Ratings is healthy" }))
}

#[derive(Clone)]
struct Reviews {
    client: MeshClient,
    name: &'static str,
    /// v1 shows no stars, v2 black ones, v3 red ones.
    color: Option<&'static str>,
}

pub(crate) fn reviews(
    client: MeshClient,
    name: &'static str,
    color: Option<&'static str>,
) -> Router {
    async fn show(State(this): State<Reviews>, Path(id): Path<u64>) -> Response {
        let stars = match this.color {
            None => Ok(Value::Null),
            Some(_) => fetch(&this.client, format!("http://ratings:9080/ratings/{id}")).await,
        };
        let rating = |reviewer: &str| match (&stars, this.color) {
            (_, None) => Value::Null,
            (Ok(answer), Some(color)) => {
                json!({ "stars": answer["ratings"][reviewer], "color": color })
            }
            (Err(_), Some(_)) => json!({ "error": "Ratings service is currently unavailable" }),
        };
        Json(json!({
            "id": id,
            "podname": this.name,
            "reviews": [
                {
                    "reviewer": "Reviewer1",
                    "text": "An extremely entertaining play by Shakespeare. The slapstick humour is refreshing!",
                    "rating": rating("Reviewer1"),
                },
                {
                    "reviewer": "Reviewer2",
                    "text": "Absolutely fun and entertaining, absolutely hilarious when compared to other plays.",
                    "rating": rating("Reviewer2"),
                },
            ],
        }))
        .into_response()
    }
    Router::new()
        .route("/reviews/{id}", get(show))
        .route("/health", get(|| async { "Reviews is healthy" }))
        .with_state(Reviews {
            client,
            name,
            color,
        })
}
