//! Raw values become the typed configuration: each section's keys, then what holds between keys.

use std::net::SocketAddr;

use super::error::ConfigError;
use super::raw::Layers;
use super::secret::Secret;
use super::urls::clickhouse_url;
use super::{
    Api, Batch, ClickHouse, Config, Dedup, DedupBy, Http, Kafka, Layout, OnRedisDown, RateLimit, Tasks,
    WhenOver, Worker, api_keys, kafka_options, redis,
};

const DAY: u64 = 86_400;
/// Claims of the layout `packed` tell seconds modulo 2^24, and live for up to two windows.
pub(crate) const LONGEST_PACKED: u64 = 45 * DAY;
const MIB: u64 = 1 << 20;

/// The configuration, or everything that is wrong with it.
pub(super) fn validate(mut layers: Layers) -> Result<Config, ConfigError> {
    let config = Config {
        kafka: kafka(&mut layers),
        redis: redis::read(&mut layers),
        clickhouse: clickhouse(&mut layers),
        rate_limit: rate_limit(&mut layers),
        dedup: dedup(&mut layers),
        batch: batch(&mut layers),
        worker: worker(&mut layers),
        tasks: tasks(&mut layers),
        http: http(&mut layers),
        api: api(&mut layers),
    };
    cross_check(&config, &mut layers);
    layers.finish()?;
    Ok(config)
}

fn kafka(layers: &mut Layers) -> Kafka {
    let default = Kafka::default();
    Kafka {
        brokers: layers.text("kafka.brokers", default.brokers, check_brokers),
        group_id: layers.text("kafka.group_id", default.group_id, check_group),
        topic: layers.text("kafka.topic", default.topic, check_topic),
        overflow_topic: layers.text("kafka.overflow_topic", default.overflow_topic, check_topic),
        dead_letter_topic: layers.text("kafka.dead_letter_topic", default.dead_letter_topic, check_topic),
        incarnation: layers.number("kafka.incarnation", default.incarnation, 0..=u32::MAX),
        options: kafka_options::read(layers),
    }
}

fn clickhouse(layers: &mut Layers) -> ClickHouse {
    let default = ClickHouse::default();
    let (url, user_in_url, password_in_url) = match clickhouse_url(layers) {
        Some((url, user, password)) => (url, user, password),
        None => (default.url, None, None),
    };
    let password = layers.hidden_text("clickhouse.password").map(|(text, _)| text);
    let user = layers.text("clickhouse.user", String::new(), |_| Ok(()));
    if (user_in_url.is_some() || password_in_url.is_some()) && (!user.is_empty() || password.is_some()) {
        layers.problem(format!(
            "clickhouse.url = {:?} names a user or password, and so does clickhouse.user = {user:?} or \
             clickhouse.password: give them in one place",
            url.to_string()
        ));
    }
    let user = Some(user)
        .filter(|user| !user.is_empty())
        .or(user_in_url)
        .unwrap_or(default.user);
    ClickHouse {
        url,
        database: layers.text("clickhouse.database", default.database, check_database),
        user,
        password: Secret::new(password.or(password_in_url).unwrap_or_default()),
        max_inserts_per_second: layers.number(
            "clickhouse.max_inserts_per_second",
            default.max_inserts_per_second,
            1..=1_000,
        ),
        insert_deadline_seconds: layers.number(
            "clickhouse.insert_deadline_seconds",
            default.insert_deadline_seconds,
            2..=600,
        ),
    }
}

fn rate_limit(layers: &mut Layers) -> RateLimit {
    let default = RateLimit::default();
    RateLimit {
        enabled: layers.switch("rate_limit.enabled", default.enabled),
        // Redis's scripts count in doubles, exact up to 2^53.
        limit: layers.number("rate_limit.limit", default.limit, 1..=1_000_000_000_000),
        window_seconds: layers.number("rate_limit.window_seconds", default.window_seconds, 1..=30 * DAY),
        on_redis_down: layers.choice(
            "rate_limit.on_redis_down",
            default.on_redis_down,
            &[("pause", OnRedisDown::Pause), ("local", OnRedisDown::Local)],
        ),
        when_over: layers.choice(
            "rate_limit.when_over",
            default.when_over,
            &[("overflow", WhenOver::Overflow), ("wait", WhenOver::Wait)],
        ),
        allow_list: layers.switch("rate_limit.allow_list", default.allow_list),
    }
}

fn dedup(layers: &mut Layers) -> Dedup {
    let default = Dedup::default();
    Dedup {
        window_seconds: layers.number("dedup.window_seconds", default.window_seconds, 1..=366 * DAY),
        layout: layers.choice(
            "dedup.layout",
            default.layout,
            &[("packed", Layout::Packed), ("keys", Layout::Keys)],
        ),
        by: layers.choice(
            "dedup.by",
            default.by,
            &[("id", DedupBy::Id), ("content", DedupBy::Content)],
        ),
        beyond_window: layers.switch("dedup.beyond_window", default.beyond_window),
    }
}

fn batch(layers: &mut Layers) -> Batch {
    let default = Batch::default();
    Batch {
        max_rows: layers.number("batch.max_rows", default.max_rows, 1..=1_000_000),
        max_bytes: layers.number("batch.max_bytes", default.max_bytes, 1_024..=64 * MIB),
        max_age_ms: layers.number("batch.max_age_ms", default.max_age_ms, 1..=60_000),
    }
}

fn worker(layers: &mut Layers) -> Worker {
    let default = Worker::default();
    Worker {
        max_in_flight_bytes: layers.number(
            "worker.max_in_flight_bytes",
            default.max_in_flight_bytes,
            MIB..=64 * 1_024 * MIB,
        ),
        max_events_per_second: layers.number(
            "worker.max_events_per_second",
            default.max_events_per_second,
            0..=u32::MAX,
        ),
        drain_seconds: layers.number("worker.drain_seconds", default.drain_seconds, 1..=25),
    }
}

fn tasks(layers: &mut Layers) -> Tasks {
    let default = Tasks::default();
    Tasks {
        at_once: layers.number("tasks.at_once", default.at_once, 1..=16),
        lease_seconds: layers.number("tasks.lease_seconds", default.lease_seconds, 2..=3_600),
        max_attempts: layers.number("tasks.max_attempts", default.max_attempts, 1..=100),
        max_waiting: layers.number("tasks.max_waiting", default.max_waiting, 1..=1_000_000),
        users_per_second: layers.number("tasks.users_per_second", default.users_per_second, 1..=1_000_000),
    }
}

fn http(layers: &mut Layers) -> Http {
    let default = Http::default();
    Http {
        listen: address(layers, "http.listen", default.listen),
        admin_listen: address(layers, "http.admin_listen", default.admin_listen),
    }
}

fn api(layers: &mut Layers) -> Api {
    let default = Api::default();
    Api {
        requests_per_second: layers.number(
            "api.requests_per_second",
            default.requests_per_second,
            1..=1_000_000,
        ),
        keys: api_keys::read(layers),
    }
}

fn cross_check(config: &Config, layers: &mut Layers) {
    let Kafka {
        topic,
        overflow_topic,
        dead_letter_topic,
        ..
    } = &config.kafka;
    let topics = [
        ("kafka.topic", topic),
        ("kafka.overflow_topic", overflow_topic),
        ("kafka.dead_letter_topic", dead_letter_topic),
    ];
    for (index, (key, name)) in topics.iter().enumerate() {
        for (other_key, other) in &topics[index + 1..] {
            if name == other {
                layers.problem(format!(
                    "{key} = {name:?} and {other_key} = {other:?}: must differ, or rejects would come back as events"
                ));
            }
        }
    }
    if config.rate_limit.allow_list && !config.rate_limit.enabled {
        layers.problem(
            "rate_limit.allow_list = true and rate_limit.enabled = false: to be on the list is a matter of limits; switch \
             both on or the list off"
                .to_owned(),
        );
    }
    let (held, block) = (config.worker.max_in_flight_bytes, config.batch.max_bytes);
    if held < 2 * block {
        layers.problem(format!(
            "worker.max_in_flight_bytes = {held} and batch.max_bytes = {block}: the first must be at least twice \
             the second, as one block is written while the next is read"
        ));
    }
    let Dedup {
        layout,
        window_seconds,
        ..
    } = config.dedup;
    if layout == Layout::Packed && window_seconds > LONGEST_PACKED {
        layers.problem(format!(
            "dedup.window_seconds = {window_seconds} and dedup.layout = \"{layout}\": at most {LONGEST_PACKED} (45 days); \
             only the layout keys remembers for longer"
        ));
    }
    let Http { listen, admin_listen } = config.http;
    if listen == admin_listen && listen.port() != 0 {
        layers.problem(format!(
            "http.listen = \"{listen}\" and http.admin_listen = \"{admin_listen}\": must differ"
        ));
    }
}

fn check_brokers(text: &str) -> Result<(), &'static str> {
    let is_broker = |broker: &str| {
        let address = broker
            .trim()
            .rsplit_once("://")
            .map_or(broker.trim(), |(_, address)| address);
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "9092"));
        let host_alone = !host.contains([' ', '/', '@']) && (!host.contains(':') || host.starts_with('['));
        !host.is_empty() && host_alone && port.parse::<u16>().is_ok_and(|port| port != 0)
    };
    if text.split(',').all(is_broker) {
        Ok(())
    } else {
        Err("one or more host:port, separated by commas")
    }
}

fn check_group(text: &str) -> Result<(), &'static str> {
    let fits = !text.trim().is_empty() && text.len() <= 255 && !text.contains(char::is_control);
    if fits {
        Ok(())
    } else {
        Err("a name of 1 to 255 bytes")
    }
}

fn check_topic(text: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=249).contains(&text.len()) && text.chars().all(allowed) && text != "." && text != ".." {
        Ok(())
    } else {
        Err("a topic's name: 1 to 249 letters, digits, dots, underscores and hyphens")
    }
}

fn check_database(text: &str) -> Result<(), &'static str> {
    let mut chars = text.chars();
    let start = chars.next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    if start && text.len() <= 64 && chars.all(|c| c.is_ascii_alphanumeric() || c == '_') {
        Ok(())
    } else {
        Err("1 to 64 letters, digits and underscores, not beginning with a digit")
    }
}

fn address(layers: &mut Layers, key: &'static str, default: SocketAddr) -> SocketAddr {
    fn check(text: &str) -> Result<(), &'static str> {
        let parsed: Result<SocketAddr, _> = text.trim().parse();
        parsed
            .map(drop)
            .map_err(|_| "an IP address and port, such as \"127.0.0.1:8080\" or \"0.0.0.0:8080\"")
    }
    layers
        .text(key, default.to_string(), check)
        .trim()
        .parse()
        .unwrap_or(default)
}
