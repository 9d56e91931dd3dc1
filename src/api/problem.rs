//! Errors as callers see them: RFC 9457 problem details.
//!
//! Owns every kind's name, status and title. A detail says what to do about it, in this crate's own words: what a
//! service or a client library said goes to the log, never in here.

use std::borrow::Cow;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::telemetry::Service;

/// What went wrong, in kinds that a program can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    BadRequest,
    Unauthorized,
    NotFound,
    UnknownUser,
    MethodNotAllowed,
    BodyTooSlow,
    BodyTooLarge,
    QueryTooLarge,
    TooManyRequests,
    Internal,
    Unavailable(Service),
    Timeout,
}

impl Kind {
    /// The last part of `type`, the status and the title.
    fn describe(self) -> (&'static str, StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::BadRequest => ("bad-request", S::BAD_REQUEST, "The request cannot be read"),
            Self::Unauthorized => ("unauthorized", S::UNAUTHORIZED, "No valid credential"),
            Self::NotFound => ("not-found", S::NOT_FOUND, "There is no such resource"),
            Self::UnknownUser => ("unknown-user", S::NOT_FOUND, "There is no such user"),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                S::METHOD_NOT_ALLOWED,
                "The resource does not have this method",
            ),
            Self::BodyTooSlow => (
                "body-too-slow",
                S::REQUEST_TIMEOUT,
                "The request body came too slowly",
            ),
            Self::BodyTooLarge => (
                "body-too-large",
                S::PAYLOAD_TOO_LARGE,
                "The request body is too large",
            ),
            Self::QueryTooLarge => (
                "query-too-large",
                S::UNPROCESSABLE_ENTITY,
                "The query needs more than one query may use",
            ),
            Self::TooManyRequests => (
                "too-many-requests",
                S::TOO_MANY_REQUESTS,
                "Too many requests from this client",
            ),
            Self::Internal => (
                "internal",
                S::INTERNAL_SERVER_ERROR,
                "The server failed at this request",
            ),
            Self::Unavailable(_) => (
                "service-unavailable",
                S::SERVICE_UNAVAILABLE,
                "A service behind the API does not answer",
            ),
            Self::Timeout => ("timeout", S::GATEWAY_TIMEOUT, "The answer took too long"),
        }
    }
}

/// An error on its way to a caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    kind: Kind,
    detail: Cow<'static, str>,
    retry_after: Option<u64>,
}

#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(kind: Kind, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            retry_after: None,
        }
    }

    pub(super) fn bad_request(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::BadRequest, detail)
    }

    pub(super) fn unauthorized(detail: &'static str) -> Self {
        Self::new(Kind::Unauthorized, detail)
    }

    /// Names the service, and nothing else about it.
    pub(super) fn unavailable(service: Service) -> Self {
        Self {
            retry_after: Some(5),
            ..Self::new(
                Kind::Unavailable(service),
                format!("{} does not answer; try again in a few seconds", service.name()),
            )
        }
    }

    pub(super) fn too_many_requests(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1000).max(1) as u64;
        Self {
            retry_after: Some(seconds),
            ..Self::new(
                Kind::TooManyRequests,
                format!("wait {seconds} s, or ask for a higher api.requests_per_second"),
            )
        }
    }

    /// Whether it was a service that failed, and a later attempt may succeed.
    /// What to do about it.
    pub(super) fn detail(&self) -> &str {
        &self.detail
    }

    pub(super) fn is_unavailable(&self) -> bool {
        matches!(self.kind, Kind::Unavailable(_))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (name, status, title) = self.kind.describe();
        let body = Body {
            r#type: format!("urn:sluice:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail,
            service: match self.kind {
                Kind::Unavailable(service) => Some(service.name()),
                _ => None,
            },
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if self.kind == Kind::Unauthorized {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if matches!(self.kind, Kind::BodyTooLarge | Kind::BodyTooSlow) {
            // What was not read of the body is in the way: the client's next request must not come behind it.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn rendered(problem: Problem) -> (StatusCode, axum::http::HeaderMap, serde_json::Value) {
        let response = problem.into_response();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 10_000).await.unwrap();
        (
            parts.status,
            parts.headers,
            serde_json::from_slice(&body).unwrap(),
        )
    }

    #[tokio::test]
    async fn a_problem_is_rendered_as_rfc_9457_says() {
        let (status, headers, body) = rendered(Problem::bad_request("from: \"x\" is no time")).await;
        assert_eq!(status, 400);
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            body,
            serde_json::json!({
                "type": "urn:sluice:problem:bad-request",
                "title": "The request cannot be read",
                "status": 400,
                "detail": "from: \"x\" is no time",
            })
        );
    }

    #[tokio::test]
    async fn what_is_left_of_a_body_ends_the_connection() {
        for (kind, ends) in [
            (Kind::BodyTooLarge, true),
            (Kind::BodyTooSlow, true),
            (Kind::BadRequest, false),
        ] {
            let (_, headers, _) = rendered(Problem::new(kind, "x")).await;
            assert_eq!(headers.contains_key(header::CONNECTION), ends, "{kind:?}");
        }
    }

    #[tokio::test]
    async fn a_problem_that_passes_says_when_to_come_back() {
        let (status, headers, body) = rendered(Problem::unavailable(Service::Redis)).await;
        assert_eq!((status.as_u16(), &body["service"]), (503, &"redis".into()));
        assert_eq!(headers[header::RETRY_AFTER], "5");
        let (status, headers, _) = rendered(Problem::too_many_requests(Duration::from_millis(1_001))).await;
        assert_eq!(
            (status.as_u16(), headers[header::RETRY_AFTER].as_bytes()),
            (429, &b"2"[..])
        );
        let (_, headers, _) = rendered(Problem::too_many_requests(Duration::from_millis(3))).await;
        assert_eq!(headers[header::RETRY_AFTER], "1");
        let (_, headers, _) = rendered(Problem::unauthorized("no")).await;
        assert_eq!(headers[header::WWW_AUTHENTICATE], "Bearer");
    }
}
