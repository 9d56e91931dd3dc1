//! One connection for what tests ask of a Redis, whatever it is.

use redis::cluster::ClusterConnection;
use redis::{Connection, ConnectionLike, RedisResult, Value};

/// A connection to a Redis of any kind. On a Cluster the commands of a pipeline go one by one.
pub(crate) enum AnyConnection {
    One(Connection),
    Cluster(Box<ClusterConnection>),
}

impl ConnectionLike for AnyConnection {
    fn req_packed_command(&mut self, cmd: &[u8]) -> RedisResult<Value> {
        match self {
            Self::One(connection) => connection.req_packed_command(cmd),
            Self::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands(&mut self, cmd: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Self::One(connection) => connection.req_packed_commands(cmd, offset, count),
            Self::Cluster(connection) => {
                let commands = commands_of(cmd).into_iter().skip(offset).take(count);
                commands
                    .map(|command| connection.req_packed_command(command))
                    .collect()
            }
        }
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// The commands of a packed pipeline, each in its packed form.
fn commands_of(mut packed: &[u8]) -> Vec<&[u8]> {
    /// The number in a line like `*3` at a place, and where the next line begins.
    fn line(bytes: &[u8], at: usize) -> (usize, usize) {
        let end = at + bytes[at..].iter().position(|byte| *byte == b'\r').unwrap();
        (
            std::str::from_utf8(&bytes[at + 1..end]).unwrap().parse().unwrap(),
            end + 2,
        )
    }
    let mut commands = Vec::new();
    while !packed.is_empty() {
        let (arguments, mut at) = line(packed, 0);
        for _ in 0..arguments {
            let (length, begin) = line(packed, at);
            at = begin + length + 2;
        }
        let (command, rest) = packed.split_at(at);
        commands.push(command);
        packed = rest;
    }
    commands
}
