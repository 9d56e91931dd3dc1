//! Which slot of a Cluster a command belongs to, and which node has which slots. Pure.

use ::redis::{Arg, Cmd, FromRedisValue as _, Value};

use super::settings::Address;

/// How many slots a Cluster has.
pub(super) const SLOTS: usize = 16_384;

/// The slot of a command's first key; `None` if it has none. Commands of several keys are for their callers to keep in
/// one slot: the server refuses others.
pub(super) fn slot_of(command: &Cmd) -> Option<u16> {
    key_of(command).map(|key| slot_of_key(&key))
}

/// Whether the command runs a script, which may touch keys that it does not name.
pub(super) fn runs_script(command: &Cmd) -> bool {
    name_of(command).is_some_and(|name| is_script(&name))
}

fn name_of(command: &Cmd) -> Option<Vec<u8>> {
    argument(command, 0).map(<[u8]>::to_ascii_uppercase)
}

fn argument(command: &Cmd, at: usize) -> Option<&[u8]> {
    match command.args_iter().nth(at)? {
        Arg::Simple(bytes) => Some(bytes),
        _ => None,
    }
}

fn is_script(name: &[u8]) -> bool {
    matches!(
        name,
        b"EVAL" | b"EVALSHA" | b"EVAL_RO" | b"EVALSHA_RO" | b"FCALL" | b"FCALL_RO"
    )
}

fn key_of(command: &Cmd) -> Option<Vec<u8>> {
    let name = name_of(command)?;
    let key = match name.as_slice() {
        name if is_script(name) => {
            let keys: usize = std::str::from_utf8(argument(command, 2)?).ok()?.parse().ok()?;
            argument(command, 3).filter(|_| keys > 0)
        }
        b"XGROUP" | b"XINFO" | b"OBJECT" | b"MEMORY" => argument(command, 2),
        b"XREAD" | b"XREADGROUP" => {
            let mut arguments = command.args_iter();
            arguments.find(
                |argument| matches!(argument, Arg::Simple(word) if word.eq_ignore_ascii_case(b"STREAMS")),
            )?;
            match arguments.next()? {
                Arg::Simple(key) => Some(key),
                _ => None,
            }
        }
        b"ACL" | b"ASKING" | b"CLIENT" | b"CLUSTER" | b"COMMAND" | b"CONFIG" | b"DBSIZE" | b"ECHO"
        | b"INFO" | b"PING" | b"ROLE" | b"SCAN" | b"SCRIPT" | b"TIME" | b"WAIT" => None,
        _ => argument(command, 1),
    };
    key.map(<[u8]>::to_vec)
}

/// The slot of a key.
pub(crate) fn slot_of_key(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        Some(&rest[..close]).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS as u16
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    const TABLE: [u16; 256] = table();
    bytes.iter().fold(0, |crc: u16, byte| {
        (crc << 8) ^ TABLE[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

const fn table() -> [u16; 256] {
    let mut table = [0; 256];
    let mut n = 0;
    while n < 256 {
        let mut crc = (n as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
            bit += 1;
        }
        table[n] = crc;
        n += 1;
    }
    table
}

/// A range of slots, both ends included, and the primary that serves it.
pub(super) type Range = (u16, u16, Address);

/// Reads the answer of `CLUSTER SLOTS` of the node at `asked`. A node that does not know its own address leaves it
/// out: it is the one that was asked for.
pub(super) fn ranges(answer: Value, asked: &str) -> Option<Vec<Range>> {
    let ranges = Vec::<Vec<Value>>::from_redis_value(answer).ok()?;
    let mut read = ranges
        .into_iter()
        .map(|range| {
            let mut parts = range.into_iter();
            let first = u16::from_redis_value(parts.next()?).ok()?;
            let last = u16::from_redis_value(parts.next()?).ok()?;
            let mut primary = Vec::<Value>::from_redis_value(parts.next()?).ok()?.into_iter();
            let host = Option::<String>::from_redis_value(primary.next()?).ok()?;
            let port = u16::from_redis_value(primary.next()?).ok()?;
            let host = match host {
                Some(host) if !host.is_empty() && host != "?" => host,
                _ => asked.to_owned(),
            };
            (first <= last && usize::from(last) < SLOTS).then_some((first, last, (host, port)))
        })
        .collect::<Option<Vec<Range>>>()?;
    read.sort();
    Some(read)
}

/// What `MOVED slot host:port` and `ASK slot host:port` tell, if the answer came from a node at `asked`.
pub(super) fn redirected(detail: &str, asked: &str) -> Option<(u16, Address)> {
    let (slot, address) = detail.split_once(' ')?;
    let (host, port) = address.trim().rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" {
        asked
    } else {
        host
    };
    Some((slot.parse().ok()?, (host.to_owned(), port.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(slot_of_key(b"foo"), 12_182);
        assert_eq!(slot_of_key(b"{user1000}.following"), slot_of_key(b"user1000"));
        assert_eq!(slot_of_key(b"foo{}{bar}"), crc16(b"foo{}{bar}") % SLOTS as u16);
        assert_eq!(slot_of_key(b"foo{{bar}}zap"), crc16(b"{bar") % SLOTS as u16);
        assert_eq!(slot_of_key(b"foo{bar"), crc16(b"foo{bar") % SLOTS as u16);
    }

    #[test]
    fn a_commands_key_is_found() {
        let key = |words: &[&str]| {
            let mut command = ::redis::cmd(words[0]);
            command.arg(&words[1..]);
            key_of(&command).map(|key| String::from_utf8(key).unwrap())
        };
        let known: [(&[&str], Option<&str>); 8] = [
            (&["set", "k", "v"], Some("k")),
            (&["EVALSHA", "sha", "2", "k", "l", "v"], Some("k")),
            (&["EVALSHA", "sha", "0", "v"], None),
            (&["XGROUP", "CREATE", "k", "g", "0"], Some("k")),
            (&["XREADGROUP", "GROUP", "g", "c", "STREAMS", "k", ">"], Some("k")),
            (&["TIME"], None),
            (&["SCRIPT", "LOAD", "return 1"], None),
            (&["LPUSH", "k", "v"], Some("k")),
        ];
        for (words, expected) in known {
            assert_eq!(key(words).as_deref(), expected, "{words:?}");
        }
    }

    #[test]
    fn redirections_are_read() {
        assert_eq!(
            redirected("3999 127.0.0.1:6381", "x"),
            Some((3_999, ("127.0.0.1".to_owned(), 6_381)))
        );
        assert_eq!(
            redirected("3999 :6381", "x"),
            Some((3_999, ("x".to_owned(), 6_381)))
        );
        assert_eq!(
            redirected("1 ::1:6381", "x"),
            Some((1, ("::1".to_owned(), 6_381)))
        );
        assert_eq!(redirected("nonsense", "x"), None);
    }

    #[test]
    fn ranges_are_read_and_an_absent_address_is_the_one_that_was_asked() {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |first, last, host: Value, port| {
            Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                Value::Array(vec![host, Value::Int(port), text("id"), Value::Array(Vec::new())]),
            ])
        };
        let answer = Value::Array(vec![
            range(8_192, 16_383, Value::Nil, 2),
            range(0, 8_191, text("a"), 1),
        ]);
        assert_eq!(
            ranges(answer, "asked"),
            Some(vec![
                (0, 8_191, ("a".to_owned(), 1)),
                (8_192, 16_383, ("asked".to_owned(), 2))
            ])
        );
        assert_eq!(
            ranges(Value::Array(vec![range(5, 16_384, text("a"), 1)]), "x"),
            None
        );
        assert_eq!(ranges(Value::Okay, "x"), None);
    }
}
