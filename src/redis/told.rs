//! What an error of Redis is, in words for whoever runs it.

use ::redis::RedisError;

use crate::causes::with_causes;

/// What went wrong, without a word of the client library's or of a script: fit for everybody's eyes.
pub fn told(error: &RedisError) -> String {
    match known(error) {
        Some(known) => known.to_owned(),
        None if error.is_timeout() => "no answer in time".to_owned(),
        None if error.is_io_error() => "it cannot be reached".to_owned(),
        None => error.code().map_or_else(
            || error.category().to_owned(),
            |code| format!("it answers with {code}"),
        ),
    }
}

/// What went wrong, for the log: the same, and the whole of it, which names commands, nodes and slots.
pub fn logged(error: &RedisError) -> String {
    let all = with_causes(error);
    known(error).map_or_else(|| all.clone(), |known| format!("{known} ({all})"))
}

/// What the server's own words for a refusal mean, where they are known.
fn known(error: &RedisError) -> Option<&'static str> {
    Some(match error.code()? {
        "OOM" => "its memory is full (maxmemory), and it refuses writes",
        "READONLY" => "it is a replica, and refuses writes",
        "NOREPLICAS" => "it refuses writes for want of replicas (min-replicas-to-write)",
        "MISCONF" => "it cannot write to its disk, and refuses writes",
        "LOADING" => "it is still loading its data",
        "MASTERDOWN" => "it is no primary, or a replica that has lost its own",
        "CLUSTERDOWN" => "its Cluster is down, or nodes do not say whose some slots are",
        "NOPERM" => "its user may not do this (see docs/redis-connections.md)",
        "NOAUTH" | "WRONGPASS" => "it refuses user or password",
        "WRONGTYPE" => "a key holds another type of value than it should",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(line: &str) -> RedisError {
        let parsed = ::redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        parsed.extract_error().unwrap_err()
    }

    #[test]
    fn refusals_are_told_in_words_and_without_the_scripts() {
        for (line, word) in [
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: 63, on @user_script:4.",
                "maxmemory",
            ),
            (
                "NOREPLICAS Not enough good replicas to write.",
                "min-replicas-to-write",
            ),
            ("READONLY You can't write against a read only replica.", "replica"),
            (
                "NOPERM this user has no permissions to run the 'get' command",
                "may not",
            ),
            ("ERR user_script:7: oh", "it answers with"),
        ] {
            let told = told(&server(line));
            assert!(told.contains(word) && !told.contains("script"), "{told}");
        }
        let refused = server("NOPERM this user has no permissions to run the 'get' command");
        assert!(logged(&refused).contains("may not") && logged(&refused).contains("'get'"));
        let gone = RedisError::from(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(told(&gone), "it cannot be reached");
        let late = RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        assert_eq!(told(&late), "no answer in time");
    }
}
