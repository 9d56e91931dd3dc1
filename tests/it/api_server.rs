//! The read API in this process, on a port of its own: what its tests ask.

use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sluice::api::{self, Api};
use sluice::config::Config;
use sluice::health;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::harness::Scene;

/// API keys, each of the token of the same name without `key-`.
pub(crate) const ALPHA: &str = "key-alpha";
pub(crate) const BETA: &str = "key-beta";
/// An address where nobody listens: the discard port.
pub(crate) const NOBODY: &str = "127.0.0.1:9";

/// A running API. Dropped, it ends.
pub(crate) struct Server {
    url: String,
    agent: ureq::Agent,
    stop: CancellationToken,
    served: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
    runtime: Option<Runtime>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the cache had it.
    pub(crate) fn cache(&self) -> &str {
        self.header("sluice-cache").unwrap_or("none")
    }

    /// Its JSON, if it is that status.
    pub(crate) fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// Its detail, if it is a problem of that status, in the form that every problem has.
    pub(crate) fn problem(self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json"),
            "{self:?}"
        );
        let body = self.json();
        assert_eq!(body["status"], status, "{self:?}");
        for member in ["type", "title", "detail"] {
            assert!(
                body[member].as_str().is_some_and(|text| !text.is_empty()),
                "{self:?}"
            );
        }
        for secret in ["127.0.0.1", "Code:", "DB::", "SELECT", "os error", "redis://"] {
            assert!(!self.body.contains(secret), "{self:?}");
        }
        body["detail"].as_str().unwrap().to_owned()
    }
}

impl Server {
    /// An API of the scene's configuration, with some settings of its own.
    pub(crate) fn start(scene: &Scene, settings: &[(&str, &str)]) -> Self {
        let keys = json!([
            { "key_sha256": sha256(ALPHA), "token": "alpha" },
            { "key_sha256": sha256(BETA), "token": "beta" },
        ]);
        let command = scene.command();
        let own = command
            .get_envs()
            .filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())))
            .chain([
                ("SLUICE_API__KEYS".into(), keys.to_string().into()),
                ("SLUICE_API__REQUESTS_PER_SECOND".into(), "10000".into()),
                ("SLUICE_HTTP__LISTEN".into(), "127.0.0.1:0".into()),
            ])
            .chain(settings.iter().map(|(key, value)| {
                let name = format!("SLUICE_{}", key.replace('.', "__").to_uppercase());
                (name.into(), (*value).into())
            }));
        let config = Config::load_with(None, own).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (listener, api) = runtime.block_on(async {
            let listener = health::bind("http.listen", config.http.listen).await.unwrap();
            (listener, Api::new(&config).unwrap())
        });
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let served = runtime.spawn(api::serve(listener, api, stop.clone().cancelled_owned()));
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build()
            .new_agent();
        Self {
            url,
            agent,
            stop,
            served: Some(served),
            runtime: Some(runtime),
        }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Sends a request and reads its answer. An empty credential is none.
    pub(crate) fn send(&self, method: &str, path: &str, credential: &str, body: &str) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.url));
        if !credential.is_empty() {
            request = request.header("authorization", format!("Bearer {credential}"));
        }
        let request = request.body(body.to_owned()).unwrap();
        let mut response = self.agent.run(request).unwrap();
        let answer = Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().read_to_string().unwrap(),
        };
        assert_eq!(
            answer.header("x-content-type-options"),
            Some("nosniff"),
            "{answer:?}"
        );
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
        answer
    }

    pub(crate) fn get(&self, path: &str, credential: &str) -> Answer {
        self.send("GET", path, credential, "")
    }

    /// Asks a query.
    pub(crate) fn query(&self, credential: &str, query: &Value) -> Answer {
        self.send("POST", "/v1/query", credential, &query.to_string())
    }

    /// Opens a session.
    pub(crate) fn session(&self, key: &str) -> String {
        let opened = self.send("POST", "/v1/sessions", key, "").expect(201);
        opened["session"].as_str().unwrap().to_owned()
    }

    /// Asks it to end, and waits until it has.
    pub(crate) fn end(mut self) -> std::io::Result<()> {
        self.stop.cancel();
        let (runtime, served) = (self.runtime.as_ref().unwrap(), self.served.take().unwrap());
        runtime.block_on(served).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) fn sha256(text: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::new(), |mut hex, byte| {
            write!(hex, "{byte:02x}").unwrap();
            hex
        })
}

/// An event to put into the table.
pub(crate) struct Row<'a> {
    pub(crate) token: &'a str,
    pub(crate) event: &'a str,
    pub(crate) user: &'a str,
    pub(crate) time: &'a str,
    pub(crate) properties: Value,
}

/// Writes rows past the worker, for tests of reading alone.
pub(crate) fn insert(scene: &Scene, rows: &[Row<'_>]) {
    let mut lines = format!(
        "INSERT INTO {}.events SETTINGS date_time_input_format = 'best_effort' FORMAT JSONEachRow",
        scene.database
    );
    let now = jiff::Timestamp::now().to_string();
    for (offset, row) in rows.iter().enumerate() {
        let line = json!({
            "uuid": uuid::Uuid::now_v7().to_string(), "token": row.token, "event": row.event, "distinct_id": row.user,
            "timestamp": row.time, "properties": row.properties.to_string(), "kafka_topic": "by hand",
            "kafka_incarnation": 0, "kafka_partition": 0, "kafka_offset": offset, "ingested_at": now,
        });
        lines.push('\n');
        lines.push_str(&line.to_string());
    }
    scene.clickhouse.run(&lines);
}
