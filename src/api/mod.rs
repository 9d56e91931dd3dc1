//! The read API over HTTP: sessions, user profiles, timelines, recent actions, and cached queries.
//!
//! Owns the routes and what callers see, errors included. Invariants: the token whose data are read comes from the
//! caller's session or key and from nowhere else; no text of a client library, a server or a URL reaches a caller.
//! It writes nothing to `ClickHouse` and touches no claim, limit or watermark in Redis.
//!
//! Read in this order: `edge` (what every request passes), `auth` (who asks) with `sessions` and `clients`, then the
//! resources: `users` (with `profile`, `history`), `timeline`, `query` (with `trend`, `interval`, `ahead`); below them
//! `cache`, `flights`, `store` and `events`.

pub(crate) mod ahead;
mod auth;
mod cache;
mod clients;
mod edge;
mod events;
mod flights;
mod history;
mod interval;
mod problem;
mod profile;
mod query;
mod server;
mod sessions;
mod store;
mod timeline;
mod trend;
mod users;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::from_fn;
use axum::routing::{get, post};

pub use server::serve;

use crate::config::Config;
use crate::redis::keys::Keys;
use crate::redis::{Redis, Settings};
use crate::tasks::queue::Queue;

/// The longest request body, in bytes. Every query of the contract fits many times over.
const MAX_BODY: usize = 64 << 10;
/// Connections to each Redis: they are multiplexed, and a request sends one small command or two.
const CONNECTIONS: u32 = 2;

/// What all requests share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Api(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    names: Keys,
    credentials: auth::Credentials,
    clients: clients::Clients,
    sessions: sessions::Sessions,
    redis: store::Store,
    profiles: users::Profiles,
    cache: cache::Cache,
    events: events::Events,
    flights: flights::Flights,
    tasks: Queue,
}

impl Api {
    /// Prepares the connections; none is opened before it is used, so that services that are down stop no start.
    pub fn new(config: &Config) -> ::redis::RedisResult<Self> {
        let connections = config.redis.max_connections.min(CONNECTIONS) as usize;
        let redis = Redis::open(&Settings::state(&config.redis)?, connections)?;
        let cache = Redis::open(&Settings::cache(&config.redis)?, connections)?;
        let names = Keys::new(&config.redis.key_prefix);
        let tasks = Queue::new(redis.clone(), config);
        let redis = store::Store::new(redis);
        Ok(Self(Arc::new(Shared {
            credentials: auth::Credentials::new(&config.api.keys),
            clients: clients::Clients::new(config.api.requests_per_second),
            sessions: sessions::Sessions::new(redis.clone(), names.clone()),
            profiles: users::Profiles::new(),
            cache: cache::Cache::new(cache),
            events: events::Events::new(&config.clickhouse),
            flights: flights::Flights::default(),
            tasks,
            redis,
            names,
        })))
    }
}

/// All routes. Drive it with a server, or in a test by itself.
pub fn router(api: Api) -> Router {
    Router::new()
        .route(edge::SESSIONS, post(sessions::create).delete(sessions::delete))
        .route(edge::QUERY, post(query::answer))
        .route(edge::USER, get(users::answer))
        .route(edge::TIMELINE, get(timeline::of_user))
        .route(edge::RECENT_ACTIONS, get(timeline::recent_actions))
        .fallback(edge::not_found)
        .method_not_allowed_fallback(edge::method_not_allowed)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(edge::pass))
        .with_state(api)
}
