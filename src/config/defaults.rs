//! The defaults: each stands once, here, and is told in the documentation of its field.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use url::Url;

use super::{
    Api, Batch, ClickHouse, Dedup, DedupBy, Http, Kafka, Layout, OnRedisDown, RateLimit, Redis, RedisMode,
    Secret, SecretUrl, SecretUrls, Tasks, WhenOver, Worker,
};

impl Default for Kafka {
    fn default() -> Self {
        Self {
            brokers: "127.0.0.1:9092".to_owned(),
            group_id: "sluice".to_owned(),
            topic: "events".to_owned(),
            overflow_topic: "events_overflow".to_owned(),
            dead_letter_topic: "events_dead_letter".to_owned(),
            incarnation: 0,
            options: BTreeMap::new(),
        }
    }
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            mode: RedisMode::Standalone,
            url: SecretUrls::new(known_url("redis://127.0.0.1:6379"), Vec::new()),
            cache_mode: None,
            cache_url: None,
            sentinel_service: "mymaster".to_owned(),
            cache_sentinel_service: "mymaster".to_owned(),
            sentinel_user: String::new(),
            sentinel_password: Secret::default(),
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            key_prefix: String::new(),
            max_connections: 10,
            sample_seconds: 15,
        }
    }
}

impl Default for ClickHouse {
    fn default() -> Self {
        Self {
            url: known_url("http://127.0.0.1:8123"),
            database: "sluice".to_owned(),
            user: "default".to_owned(),
            password: Secret::default(),
            max_inserts_per_second: 10,
            insert_deadline_seconds: 60,
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            enabled: true,
            limit: 1_000,
            window_seconds: 3_600,
            on_redis_down: OnRedisDown::Pause,
            allow_list: false,
            when_over: WhenOver::Overflow,
        }
    }
}

impl Default for Dedup {
    fn default() -> Self {
        Self {
            window_seconds: 86_400,
            layout: Layout::Packed,
            by: DedupBy::Id,
            beyond_window: true,
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            max_rows: 65_536,
            max_bytes: 32 << 20,
            max_age_ms: 1_000,
        }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self {
            max_in_flight_bytes: 256 << 20,
            max_events_per_second: 0,
            drain_seconds: 20,
        }
    }
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            at_once: 2,
            lease_seconds: 30,
            max_attempts: 5,
            max_waiting: 10_000,
            users_per_second: 2_000,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            admin_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9100)),
        }
    }
}

impl Default for Api {
    fn default() -> Self {
        Self {
            requests_per_second: 100,
            keys: Vec::new(),
        }
    }
}

/// A default's URL.
fn known_url(text: &'static str) -> SecretUrl {
    #[expect(
        clippy::expect_used,
        reason = "the texts are constants of this file, parsed by every test"
    )]
    SecretUrl::new(Url::parse(text).expect("a default is a URL"))
}
