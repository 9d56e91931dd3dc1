//! Where a Redis is and who we are to it: the configuration's section as what the client library takes.

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisConnectionInfo,
    RedisError, RedisResult, TlsCertificates,
};

use crate::config::{self, RedisMode, SecretUrls};

/// A host and a port.
pub(super) type Address = (String, u16);

/// Where a Redis is, how its server is found, and who we are to it.
#[derive(Clone, Debug)]
pub struct Settings {
    mode: RedisMode,
    /// The server's, the sentinels', or those of some nodes.
    addresses: Vec<Address>,
    /// The first URL: encryption, user, password and database for all.
    first: ConnectionInfo,
    certificates: Option<TlsCertificates>,
    /// The name that the sentinels know the servers by.
    pub(super) service: String,
    sentinels: RedisConnectionInfo,
}

impl Settings {
    /// Of the state: `redis.url`.
    pub fn state(config: &config::Redis) -> RedisResult<Self> {
        Self::of(config, config.mode, &config.url, &config.sentinel_service)
    }

    /// Of the caches: `redis.cache_url`, or those of the state.
    pub fn cache(config: &config::Redis) -> RedisResult<Self> {
        match (&config.cache_url, config.cache_mode) {
            (Some(urls), Some(mode)) => Self::of(config, mode, urls, &config.cache_sentinel_service),
            _ => Self::state(config),
        }
    }

    /// Of one server without more ado: for benchmarks and tests.
    pub fn standalone(url: &str) -> RedisResult<Self> {
        Ok(Self {
            mode: RedisMode::Standalone,
            addresses: Vec::new(),
            first: url.into_connection_info()?,
            certificates: None,
            service: String::new(),
            sentinels: RedisConnectionInfo::default(),
        })
    }

    fn of(config: &config::Redis, mode: RedisMode, urls: &SecretUrls, service: &str) -> RedisResult<Self> {
        let addresses = urls
            .iter()
            .map(|url| match url.expose().as_str().into_connection_info()?.addr() {
                ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                    Ok((host.clone(), *port))
                }
                _ => Err(RedisError::from((
                    ErrorKind::InvalidClientConfig,
                    "an address is a host and a port",
                ))),
            })
            .collect::<RedisResult<_>>()?;
        let mut sentinels = RedisConnectionInfo::default();
        if !config.sentinel_user.is_empty() {
            sentinels = sentinels.set_username(&config.sentinel_user);
        }
        if !config.sentinel_password.is_empty() {
            sentinels = sentinels.set_password(config.sentinel_password.expose());
        }
        Ok(Self {
            mode,
            addresses,
            first: urls.expose().as_str().into_connection_info()?,
            certificates: config.certificates()?,
            service: service.to_owned(),
            sentinels,
        })
    }

    /// How the server is found.
    pub fn mode(&self) -> RedisMode {
        self.mode
    }

    pub(super) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// For the server of the first URL itself.
    pub(super) fn first(&self) -> RedisResult<Client> {
        self.client(self.first.clone())
    }

    /// For a data server that was found.
    pub(super) fn server(&self, address: &Address) -> RedisResult<Client> {
        self.client(self.first.clone().set_addr(self.encrypted_as_first(address)))
    }

    /// For a sentinel.
    pub(super) fn sentinel(&self, address: &Address) -> RedisResult<Client> {
        self.client(
            self.first
                .clone()
                .set_addr(self.encrypted_as_first(address))
                .set_redis_settings(self.sentinels.clone()),
        )
    }

    fn encrypted_as_first(&self, (host, port): &Address) -> ConnectionAddr {
        match self.first.addr() {
            ConnectionAddr::TcpTls { insecure, .. } => ConnectionAddr::TcpTls {
                host: host.clone(),
                port: *port,
                insecure: *insecure,
                tls_params: None,
            },
            _ => ConnectionAddr::Tcp(host.clone(), *port),
        }
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match (&self.certificates, info.addr()) {
            (Some(certificates), ConnectionAddr::TcpTls { .. }) => {
                Client::build_with_tls(info, certificates.clone())
            }
            _ => Client::open(info),
        }
    }
}
