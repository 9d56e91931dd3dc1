//! Whether the way in which a Redis is looked for fits the servers that are there: `redis.mode` and `redis.cache_mode`.
//!
//! Pure. Owns what is advised where no server could be asked.

use redis::{ErrorKind, RedisError};

use super::Finding;
use crate::config::RedisMode;
use crate::redis::info::text as field;
use crate::redis::{Server, is_no_sentinel};

const SUBJECT: &str = "mode";
const IS_SENTINEL: &str = "a sentinel, which holds no data";

/// What names a Redis in the configuration.
pub(super) struct Named {
    url: &'static str,
    mode: &'static str,
    service: &'static str,
}

pub(super) const STATE: Named = Named {
    url: "redis.url",
    mode: "redis.mode",
    service: "redis.sentinel_service",
};
pub(super) const CACHE: Named = Named {
    url: "redis.cache_url",
    mode: "redis.cache_mode",
    service: "redis.cache_sentinel_service",
};

/// An error where a data server was looked for and a sentinel is.
pub(super) fn is_sentinel(info: &str, server: &Server) -> Option<RedisError> {
    let error = || RedisError::from((ErrorKind::InvalidClientConfig, IS_SENTINEL, server.address()));
    (field(info, "redis_mode") == "sentinel").then(error)
}

impl Named {
    /// What is wrong where no server could be asked, and what to do: it may be the mode, and not the address.
    pub(super) fn not_found(&self, error: &RedisError) -> Finding {
        let Self { url, mode, service } = self;
        let (text, at) = (error.to_string(), error.detail().unwrap_or_default());
        let (detail, remedy) = if is_no_sentinel(error) {
            (
                format!("{mode} = \"sentinel\", but the server at {at} is no sentinel"),
                format!(
                    "for this one server set {mode} = \"standalone\"; behind sentinels name their addresses in {url}, \
                     usually with port 26379"
                ),
            )
        } else if error.kind() == ErrorKind::MasterNameNotFoundBySentinel {
            (
                format!("the sentinels know no {at:?}"),
                format!("set {service} to the name that `sentinel monitor` gives it in their file"),
            )
        } else if text.starts_with(IS_SENTINEL) {
            (
                format!("the server at {at} is {IS_SENTINEL}"),
                format!(
                    "set {mode} = \"sentinel\", or name the server itself in {url}, usually with port 6379"
                ),
            )
        } else if at.contains("cluster support disabled") {
            (
                format!("{mode} = \"cluster\", but the server is no node of a Cluster"),
                format!("set {mode} = \"standalone\", or name nodes of the Cluster in {url}"),
            )
        } else {
            return Finding::unreachable(text);
        };
        Finding::problem(SUBJECT, detail, remedy)
    }

    /// A node of a Cluster that is taken for a server with all keys.
    pub(super) fn misfit(&self, info: &str, mode: RedisMode) -> Option<Finding> {
        let is_node = field(info, "redis_mode") == "cluster";
        (is_node && mode != RedisMode::Cluster).then(|| {
            Finding::problem(
                SUBJECT,
                format!(
                    "{} = \"{mode}\", but this is a node of a Cluster: it refuses others' keys",
                    self.mode
                ),
                format!("set {} = \"cluster\"", self.mode),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(error: &RedisError) -> String {
        let finding = STATE.not_found(error);
        format!("{}: {} | {}", finding.subject, finding.detail, finding.remedy)
    }

    #[test]
    fn a_wrong_mode_is_told_from_a_server_that_is_not_there() {
        let of = |kind, text| RedisError::from((kind, text, "host:1".to_owned()));
        let sentinel = told(&of(ErrorKind::InvalidClientConfig, IS_SENTINEL));
        assert!(sentinel.contains("redis.mode = \"sentinel\""), "{sentinel}");
        let unknown = told(&of(ErrorKind::MasterNameNotFoundBySentinel, "unknown"));
        assert!(unknown.contains("redis.sentinel_service"), "{unknown}");
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let refused = told(&refused.into());
        assert!(refused.starts_with("connection: refused"), "{refused}");
        let other = told(&of(ErrorKind::InvalidClientConfig, "no such file"));
        assert!(other.starts_with("connection: no such file"), "{other}");
    }

    #[test]
    fn a_node_of_a_cluster_is_no_server_of_all_keys() {
        let cluster = "redis_mode:cluster\r\n";
        assert!(STATE.misfit(cluster, RedisMode::Standalone).is_some());
        assert!(STATE.misfit(cluster, RedisMode::Cluster).is_none());
        assert!(
            STATE
                .misfit("redis_mode:standalone\r\n", RedisMode::Standalone)
                .is_none()
        );
    }
}
