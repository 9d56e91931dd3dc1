//! Mutated requests: whatever is asked, the answer is never a fault of the server's.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::json;

use crate::api_server::{ALPHA, Row, Server, insert};
use crate::cases::{Case, Cases};
use crate::harness::Scene;

const QUERIES: [&str; 4] = [
    r#"{"query":"trend","from":"2024-05-01T00:00:00Z","to":"2024-05-02T00:00:00Z","interval":"hour"}"#,
    r#"{"query":"trend","event":"e","from":"2024-05-01","to":"2024-05-31","interval":"day","breakdown":"x","limit":3}"#,
    r#"{"query":"trend","event":["e","f"],"from":"2024-01-01T00:00:00+02:00","to":"2024-06-01T00:00:00Z","interval":"week"}"#,
    r#"{"query":"trend","from":"1900-01-01T00:00:00Z","to":"2299-12-31T00:00:00Z","interval":"month","limit":100}"#,
];
const PATHS: [&str; 6] = [
    "/v1/users/u%20%C3%BC",
    "/v1/users/u/timeline?limit=10",
    "/v1/recent-actions",
    "/v1/sessions",
    "/v1/query",
    "/v1/users/",
];
const HEADERS: [&str; 3] = [
    "authorization: Bearer key-alpha\r\ncontent-type: application/json",
    "authorization: bearer  key-alpha\r\naccept-encoding: gzip\r\nx-forwarded-for: 1.2.3.4",
    "Authorization: Basic a2V5LWFscGhh",
];

fn cases(seed: u64, texts: &[&str]) -> Cases {
    let seeds = texts.iter().map(|text| Case {
        payload: Some(text.as_bytes().to_vec()),
        ..Case::default()
    });
    Cases::of(seed, seeds.collect())
}

fn some_rows(scene: &Scene) {
    let row = |event, user| Row {
        token: "alpha",
        event,
        user,
        time: "2024-05-01T01:00:00Z",
        properties: json!({ "x": "\u{0}", "a": { "b": 1 }, "$set": { "n": 1 } }),
    };
    insert(scene, &[row("e", "u"), row("f", "u ü"), row("", "")]);
}

#[test]
fn a_mutated_query_is_answered_or_refused() {
    let scene = Scene::new("queries", 1);
    some_rows(&scene);
    let server = Server::start(&scene, &[]);
    let cases = cases(3, &QUERIES);
    let (mut answered, mut refused) = (0, 0);
    for index in 0..4_000 {
        let body = cases.case(index).payload.unwrap_or_default();
        // What the client below cannot send: no text, and so much that it is still sending when it is refused.
        let Some(body) = String::from_utf8(body).ok().filter(|body| body.len() < 100_000) else {
            continue;
        };
        let answer = server.send("POST", "/v1/query", ALPHA, &body);
        match answer.status {
            200 => answered += 1,
            status @ (400 | 413 | 422) => {
                refused += 1;
                answer.problem(status);
            }
            _ => panic!("case {index} {body:?}: {answer:?}"),
        }
    }
    assert!(answered > 100 && refused > 100, "{answered} {refused}");
    server
        .query(ALPHA, &serde_json::from_str(QUERIES[0]).unwrap())
        .expect(200);
}

#[test]
fn mutated_requests_are_never_the_servers_fault() {
    let scene = Scene::new("requests", 1);
    some_rows(&scene);
    let server = Server::start(&scene, &[]);
    let (paths, headers, bodies) = (cases(4, &PATHS), cases(5, &HEADERS), cases(6, &QUERIES));
    let (mut answered, mut cut) = (0, 0);
    for index in 0..3_000 {
        let part = |cases: &Cases, changed: bool| {
            let index = if changed { index } else { 0 };
            cases.case(index).payload.unwrap_or_default()
        };
        // One part at a time, and all at once.
        let path = part(&paths, index % 4 != 1);
        let head = part(&headers, index % 4 != 0);
        let body = part(&bodies, index % 4 != 2);
        let method = ["GET", "POST", "DELETE", "PUT", "OPTIONS", "get", "G\u{e9}T"][index as usize / 4 % 7];
        let mut request = format!("{method} ").into_bytes();
        request.extend_from_slice(&path);
        request.extend_from_slice(b" HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        request.extend_from_slice(&head);
        request.extend_from_slice(format!("\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes());
        request.extend_from_slice(&body);
        match raw(server.address(), &request) {
            None => cut += 1,
            Some(status) => {
                answered += 1;
                assert!(
                    status < 500,
                    "case {index}: {status} to {}",
                    request.escape_ascii()
                );
            }
        }
    }
    assert!(answered > 2_000, "{answered} answered, {cut} cut off");
    server.get("/v1/recent-actions", ALPHA).expect(200);
}

/// Sends bytes as they are; the status of the answer, if one comes before the connection ends.
fn raw(address: &str, request: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // The server may have ended it while we speak; what counts is what it said.
    if stream
        .write_all(request)
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .is_err()
    {
        return None;
    }
    let mut answer = Vec::new();
    if stream.read_to_end(&mut answer).is_err() && answer.is_empty() {
        return None;
    }
    let line = String::from_utf8_lossy(&answer);
    line.split(' ').nth(1)?.parse().ok()
}
