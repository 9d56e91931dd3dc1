//! What every request passes, whatever its route: time limit, metrics, headers of the answer, and problems for what
//! no route takes.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::MAX_BODY;
use super::problem::{Kind, Problem};
use crate::telemetry;

pub(super) const SESSIONS: &str = "/v1/sessions";
pub(super) const QUERY: &str = "/v1/query";
pub(super) const USER: &str = "/v1/users/{distinct_id}";
pub(super) const TIMELINE: &str = "/v1/users/{distinct_id}/timeline";
pub(super) const RECENT_ACTIONS: &str = "/v1/recent-actions";
/// The route of requests that have none, in metrics.
const NO_ROUTE: &str = "none";

/// The longest that a request takes. Above every time limit inside it, so that those tell what was slow.
const REQUEST_TIME: Duration = Duration::from_secs(20);
/// The longest that a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(5);

const HEADERS: [(HeaderName, &str); 3] = [
    // What a user did is nobody else's: no cache on the way may keep it. Ours is on the server.
    (header::CACHE_CONTROL, "no-store"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
];

/// The outermost layer.
pub(super) async fn pass(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().map_or(NO_ROUTE, route);
    let answer = tokio::time::timeout(REQUEST_TIME, AssertUnwindSafe(next.run(request)).catch_unwind());
    let mut response = match answer.await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            tracing::error!(route, "a request panicked");
            Problem::new(Kind::Internal, "the fault is not in the request; it was logged").into_response()
        }
        Err(_) => Problem::new(
            Kind::Timeout,
            "nothing was changed; try again, or ask for less at once",
        )
        .into_response(),
    };
    for (name, value) in HEADERS {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    telemetry::http_request(route, response.status().as_u16(), begun.elapsed());
    response
}

/// The pattern as a text of ours, which metrics need.
fn route(matched: &MatchedPath) -> &'static str {
    [SESSIONS, QUERY, USER, TIMELINE, RECENT_ACTIONS]
        .into_iter()
        .find(|known| *known == matched.as_str())
        .unwrap_or(NO_ROUTE)
}

pub(super) async fn not_found() -> Problem {
    Problem::new(
        Kind::NotFound,
        "there are POST and DELETE /v1/sessions, POST /v1/query, GET /v1/users/{distinct_id}, GET \
         /v1/users/{distinct_id}/timeline and GET /v1/recent-actions; a / in a distinct_id is written %2F",
    )
}

pub(super) async fn method_not_allowed() -> Problem {
    Problem::new(
        Kind::MethodNotAllowed,
        "the header Allow of this answer tells the methods there are",
    )
}

/// The whole body of a request, of at most [`MAX_BODY`] bytes and within [`BODY_TIME`].
#[derive(Debug)]
pub(super) struct Body(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state));
        match bytes.await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(rejection)) => Err(unread(&rejection)),
            Err(_) => Err(Problem::new(
                Kind::BodyTooSlow,
                format!("a body has {} s to arrive", BODY_TIME.as_secs()),
            )),
        }
    }
}

fn unread(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(Kind::BodyTooLarge, format!("a body has at most {MAX_BODY} bytes"))
    } else {
        Problem::bad_request("the body ended before it was complete")
    }
}
