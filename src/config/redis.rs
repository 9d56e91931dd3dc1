//! `[redis]`: how the servers are found, who we are to them, and what their certificates are checked against.
//!
//! Invariant: addresses, mode, credentials and files fit each other, and the files were there and readable.

use std::fmt;
use std::path::{Path, PathBuf};

use redis::{ClientTlsConfig, IntoConnectionInfo as _, TlsCertificates};
use serde::Serialize;
use url::Url;

use super::raw::{Layers, Source, quote};
use super::secret::{Secret, SecretUrl, SecretUrls};
use super::urls::{service_url, shown_url};

const SCHEMES: [&str; 2] = ["redis", "rediss"];
const CA: &str = "redis.tls_ca_file";
const CERTIFICATE: &str = "redis.tls_cert_file";
const KEY: &str = "redis.tls_key_file";
/// In a URL's path: Cluster has no other database.
const FIRST_DATABASE: [&str; 3] = ["", "/", "/0"];

/// `[redis]`
#[derive(Debug, Clone, Serialize)]
pub struct Redis {
    /// How the server of `redis.url` is found. Default `standalone`.
    pub mode: RedisMode,
    /// Server for the state: claims, limits, sessions, timelines. Default `redis://127.0.0.1:6379`. With Sentinel the
    /// sentinels, with Cluster some of its nodes: several, separated by commas, so that one of them may be down. User and
    /// password are those of the data servers, in the first URL for all; `rediss` is TLS, for all. What the server forgets
    /// may be written twice or pass a limit, so give it persistence and no eviction.
    pub url: SecretUrls,
    /// How the server of `redis.cache_url` is found. Default `standalone`; without a `cache_url` it is `redis.mode`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_mode: Option<RedisMode>,
    /// Server for the caches (query results, profiles). Default: that of `redis.url`. On one server with
    /// eviction, the cache's growth pushes claims out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_url: Option<SecretUrls>,
    /// The name under which the sentinels know the state's servers. Default `mymaster`.
    pub sentinel_service: String,
    /// The name under which the sentinels of `redis.cache_url` know the caches' servers. Default `mymaster`.
    pub cache_sentinel_service: String,
    /// ACL user of the sentinels themselves. Default none.
    pub sentinel_user: String,
    /// Password of the sentinels themselves, if they ask for one. Default none.
    pub sentinel_password: Secret,
    /// Certificates, in PEM, that the servers' are checked against, beside the system's. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    /// Our certificate, in PEM, where servers ask for one; its key is `tls_key_file`. Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// The certificate's private key, in PEM (PKCS#8). Default none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
    /// Put in front of every key. Default empty. Two deployments on one server need two prefixes; changing it
    /// forgets every claim.
    pub key_prefix: String,
    /// Connections to each server, 1 to 100. Default 10. Few are enough, as they are multiplexed.
    pub max_connections: u32,
    /// Seconds between two looks at each server for `sluice_redis_*`, 0 for none, at most 3600. Default 15. A look is
    /// about 1 ms of the server's CPU, shared by the primaries of a Cluster; without it nobody is told of evictions and of
    /// memory that runs out.
    pub sample_seconds: u32,
}

/// How a Redis is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RedisMode {
    /// The URL is the server's.
    Standalone,
    /// The URLs are sentinels', which are asked for the primary, again after each failover.
    Sentinel,
    /// The URLs are some nodes', which are asked for all of them and their slots.
    Cluster,
}

impl RedisMode {
    const ALL: [Self; 3] = [Self::Standalone, Self::Sentinel, Self::Cluster];

    const fn name(self) -> &'static str {
        match self {
            Self::Standalone => "standalone",
            Self::Sentinel => "sentinel",
            Self::Cluster => "cluster",
        }
    }
}

impl fmt::Display for RedisMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Redis {
    /// The server of the caches: that of the state, unless it has one of its own.
    pub fn cache_url(&self) -> &SecretUrls {
        self.cache_url.as_ref().unwrap_or(&self.url)
    }

    /// What the TLS files hold; none if there are none.
    pub fn certificates(&self) -> std::io::Result<Option<TlsCertificates>> {
        let read = |path: &Option<PathBuf>| path.as_ref().map(std::fs::read).transpose();
        let root_cert = read(&self.tls_ca_file)?;
        let pair = read(&self.tls_cert_file)?.zip(read(&self.tls_key_file)?);
        let client_tls = pair.map(|(client_cert, client_key)| ClientTlsConfig {
            client_cert,
            client_key,
        });
        let any = root_cert.is_some() || client_tls.is_some();
        Ok(any.then_some(TlsCertificates {
            client_tls,
            root_cert,
        }))
    }
}

/// Takes the section out of the raw values.
pub(super) fn read(layers: &mut Layers) -> Redis {
    let default = Redis::default();
    let choices = RedisMode::ALL.map(|mode| (mode.name(), mode));
    let mode = layers.choice("redis.mode", default.mode, &choices);
    let optional = choices.map(|(name, mode)| (name, Some(mode)));
    let cache_mode = layers.choice("redis.cache_mode", None, &optional);
    let url = urls(layers, "redis.url", mode).map_or(Ok(default.url.clone()), |url| url);
    let cache_url = urls(
        layers,
        "redis.cache_url",
        cache_mode.unwrap_or(RedisMode::Standalone),
    );
    if let (Some(mode), None) = (cache_mode, &cache_url) {
        layers.problem(format!(
            "redis.cache_mode = \"{mode}\" and no redis.cache_url: the caches are where redis.url is, in its mode"
        ));
    }
    let redis = Redis {
        mode,
        cache_mode: cache_url
            .is_some()
            .then_some(cache_mode.unwrap_or(RedisMode::Standalone)),
        url: url.unwrap_or(default.url),
        cache_url: cache_url.and_then(Result::ok),
        sentinel_service: layers.text("redis.sentinel_service", default.sentinel_service, check_service),
        cache_sentinel_service: layers.text(
            "redis.cache_sentinel_service",
            default.cache_sentinel_service,
            check_service,
        ),
        sentinel_user: layers.text("redis.sentinel_user", default.sentinel_user, |_| Ok(())),
        sentinel_password: Secret::new(
            layers
                .hidden_text("redis.sentinel_password")
                .map(|(text, _)| text)
                .unwrap_or_default(),
        ),
        tls_ca_file: file(layers, CA),
        tls_cert_file: file(layers, CERTIFICATE),
        tls_key_file: file(layers, KEY),
        key_prefix: layers.text("redis.key_prefix", default.key_prefix, check_key_prefix),
        max_connections: layers.number("redis.max_connections", default.max_connections, 1..=100),
        sample_seconds: layers.number("redis.sample_seconds", default.sample_seconds, 0..=3_600),
    };
    check_sentinel(&redis, layers);
    check_tls(&redis, layers);
    redis
}

/// The addresses under `key`, if it is set.
fn urls(layers: &mut Layers, key: &'static str, mode: RedisMode) -> Option<Result<SecretUrls, ()>> {
    let (text, source) = layers.hidden_text(key)?;
    // An empty variable is how a container's environment says "not set".
    if text.is_empty() && key == "redis.cache_url" {
        return None;
    }
    Some(parse(&text, mode).map_err(|problem| {
        layers.problem(format!("{key} = {} ({source}): {problem}", shown_url(&text)));
    }))
}

fn parse(text: &str, mode: RedisMode) -> Result<SecretUrls, String> {
    if mode == RedisMode::Standalone {
        return match redis_url(text) {
            Err(problem) if text.contains(',') => Err(format!(
                "{problem}; several addresses want a mode: sentinel or cluster"
            )),
            url => Ok(SecretUrls::new(SecretUrl::new(url?), Vec::new())),
        };
    }
    let mut texts = text.split(',').map(str::trim);
    let first = redis_url(texts.next().unwrap_or_default())?;
    if mode == RedisMode::Cluster && !FIRST_DATABASE.contains(&first.path()) {
        return Err("names a database, and a Cluster has only one".to_owned());
    }
    let rest = texts.map(|text| {
        let url = if text.contains("://") {
            redis_url(text)?
        } else {
            redis_url(&format!("{}://{text}", first.scheme()))?
        };
        let own = |url: &Url| (url.username().to_owned(), url.password().map(str::to_owned));
        if url.scheme() != first.scheme() {
            return Err(format!("must be {}:// throughout", first.scheme()));
        }
        if own(&url) != own(&first) && own(&url) != (String::new(), None) {
            return Err("must have its user and password in the first URL, for all".to_owned());
        }
        if url.path() != first.path() && !["", "/"].contains(&url.path()) {
            return Err("must have its database in the first URL, for all".to_owned());
        }
        Ok(SecretUrl::new(url))
    });
    let rest = rest.collect::<Result<_, _>>()?;
    Ok(SecretUrls::new(SecretUrl::new(first), rest))
}

fn redis_url(text: &str) -> Result<Url, String> {
    let url = service_url(text, &SCHEMES)?;
    if !url.username().is_empty() && url.password().is_none() {
        return Err("names a user without a password; a password alone is redis://:password@host".to_owned());
    }
    if url
        .query()
        .is_some_and(|query| query.to_ascii_lowercase().contains("pass"))
    {
        return Err("must have its password before the host: redis://:password@host".to_owned());
    }
    // The client's own error could repeat the URL.
    match url.as_str().into_connection_info() {
        Ok(_) => Ok(url),
        Err(_) => Err("must end in nothing or the number of a database: redis://host:6379/0".to_owned()),
    }
}

/// A file that can be read, if the key is set.
fn file(layers: &mut Layers, key: &'static str) -> Option<PathBuf> {
    let (text, source) = layers.hidden_text(key)?;
    if text.is_empty() {
        return None;
    }
    if let Err(error) = std::fs::read(Path::new(&text)) {
        refuse_file(layers, (key, &text, &source), &format!("cannot be read: {error}"));
        return None;
    }
    Some(PathBuf::from(text))
}

fn shown(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

fn refuse_file(layers: &mut Layers, (key, text, source): (&str, &str, &Source), problem: &str) {
    layers.problem(format!("{key} = {} ({source}): {problem}", quote(text)));
}

fn check_sentinel(redis: &Redis, layers: &mut Layers) {
    let anywhere = [Some(redis.mode), redis.cache_mode].contains(&Some(RedisMode::Sentinel));
    for (key, value) in [
        ("redis.sentinel_user", redis.sentinel_user.clone()),
        ("redis.sentinel_password", redis.sentinel_password.to_string()),
    ] {
        if !anywhere && !value.is_empty() {
            layers.problem(format!(
                "{key} = {value:?} and redis.mode = \"{}\": only sentinels are told it",
                redis.mode
            ));
        }
    }
    if !redis.sentinel_user.is_empty() && redis.sentinel_password.is_empty() {
        layers.problem(format!(
            "redis.sentinel_user = {:?} and no redis.sentinel_password: must be given together",
            redis.sentinel_user
        ));
    }
}

fn check_tls(redis: &Redis, layers: &mut Layers) {
    let files = [
        (CA, &redis.tls_ca_file),
        (CERTIFICATE, &redis.tls_cert_file),
        (KEY, &redis.tls_key_file),
    ];
    let encrypted = [Some(&redis.url), redis.cache_url.as_ref()]
        .into_iter()
        .flatten()
        .any(|urls| urls.expose().scheme() == "rediss");
    for (key, path) in files {
        if let Some(path) = path
            && !encrypted
        {
            layers.problem(format!(
                "{key} = {} and redis.url = \"{}\": would have no effect; TLS is rediss://",
                shown(path),
                redis.url
            ));
        }
    }
    let [_, (_, certificate), (_, key)] = files;
    match (certificate, key) {
        (Some(path), None) => {
            layers.problem(format!(
                "{CERTIFICATE} = {} and no {KEY}: must be given together",
                shown(path)
            ));
        }
        (None, Some(path)) => {
            layers.problem(format!(
                "{KEY} = {} and no {CERTIFICATE}: must be given together",
                shown(path)
            ));
        }
        _ => {}
    }
    // What is wrong with the contents, only the client knows; its words are for programmers.
    let Ok(Some(certificates)) = redis.certificates() else {
        return;
    };
    let usable = |client_tls: Option<ClientTlsConfig>, root_cert: Option<Vec<u8>>| {
        let certificates = TlsCertificates {
            client_tls,
            root_cert,
        };
        redis::Client::build_with_tls("rediss://localhost", certificates).is_ok()
    };
    if let (Some(path), false) = (&redis.tls_ca_file, usable(None, certificates.root_cert)) {
        layers.problem(format!("{CA} = {}: must hold certificates in PEM", shown(path)));
    }
    if let (Some(path), false) = (certificate, usable(certificates.client_tls, None)) {
        layers.problem(format!(
            "{CERTIFICATE} = {} and {KEY} = {}: must be a certificate and its key, both in PEM, the key in PKCS#8 \
             (it begins with BEGIN PRIVATE KEY)",
            shown(path),
            shown(key.as_deref().unwrap_or(Path::new("")))
        ));
    }
}

fn check_service(text: &str) -> Result<(), &'static str> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !text.is_empty() && text.chars().all(fits) {
        Ok(())
    } else {
        Err("a name of letters, digits, dots, underscores and hyphens")
    }
}

/// Braces would move a key's hash tag, and with it the keys that a script needs side by side.
fn check_key_prefix(text: &str) -> Result<(), &'static str> {
    if text.len() <= 64
        && text
            .chars()
            .all(|c| c.is_ascii_graphic() && !matches!(c, '{' | '}'))
    {
        Ok(())
    } else {
        Err("at most 64 printable ASCII characters without blanks and braces")
    }
}
