//! Rows of the table `events` as one block of `ClickHouse`'s Native format, column by column.
//!
//! Owns the byte layout only. A block's bytes are made once: a retry sends the same ones.
//! Format: <https://clickhouse.com/docs/interfaces/formats/Native>: number of columns, number of rows,
//! then for each column its name, its type and its values.

use bytes::{BufMut, Bytes, BytesMut};

/// The columns in the order in which they are sent, with the types that the bytes have. The server
/// converts String to `LowCardinality(String)`.
const COLUMNS: [(&str, &str); 11] = [
    ("uuid", "UUID"),
    ("token", "String"),
    ("event", "String"),
    ("distinct_id", "String"),
    ("timestamp", "DateTime64(3, 'UTC')"),
    ("properties", "String"),
    ("kafka_topic", "String"),
    ("kafka_incarnation", "UInt32"),
    ("kafka_partition", "UInt32"),
    ("kafka_offset", "UInt64"),
    ("ingested_at", "DateTime64(3, 'UTC')"),
];

/// The names of the columns, for the INSERT statement.
pub fn column_list() -> String {
    COLUMNS.map(|(name, _)| name).join(", ")
}

/// One row, borrowed from its block.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// The event's identity.
    pub uuid: u128,
    /// The project's token.
    pub token: &'a [u8],
    /// The event's name.
    pub event: &'a [u8],
    /// The user.
    pub distinct_id: &'a [u8],
    /// The event's time, ms since 1970.
    pub timestamp: i64,
    /// A JSON object's text.
    pub properties: &'a [u8],
    /// The Kafka offset.
    pub offset: i64,
}

/// What all rows of a block share.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The Kafka topic.
    pub topic: &'a str,
    /// `kafka.incarnation`.
    pub incarnation: u32,
    /// The Kafka partition.
    pub partition: i32,
    /// The announcement's time, ms since 1970.
    pub ingested_at: i64,
}

fn varint(out: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn string(out: &mut BytesMut, value: &[u8]) {
    varint(out, value.len());
    out.put_slice(value);
}

/// Encodes the rows that `rows` yields into `out`, whose memory is used again; `rows` is walked once for each column
/// that differs between rows.
pub fn encode<'a, I>(mut out: BytesMut, origin: Origin<'_>, rows: &I) -> Bytes
where
    I: Iterator<Item = Row<'a>> + Clone,
{
    let (mut count, mut bytes) = (0, 0);
    for row in rows.clone() {
        count += 1;
        bytes += row.token.len() + row.event.len() + row.distinct_id.len() + row.properties.len();
    }
    out.clear();
    out.reserve(bytes + count * (72 + origin.topic.len()) + 1024);
    varint(&mut out, COLUMNS.len());
    varint(&mut out, count);
    for (name, kind) in COLUMNS {
        string(&mut out, name.as_bytes());
        string(&mut out, kind.as_bytes());
        match name {
            "uuid" => rows.clone().for_each(|r| {
                // Two little-endian halves, the high one first.
                out.put_u64_le((r.uuid >> 64) as u64);
                out.put_u64_le(r.uuid as u64);
            }),
            "token" => rows.clone().for_each(|r| string(&mut out, r.token)),
            "event" => rows.clone().for_each(|r| string(&mut out, r.event)),
            "distinct_id" => rows.clone().for_each(|r| string(&mut out, r.distinct_id)),
            "timestamp" => rows.clone().for_each(|r| out.put_i64_le(r.timestamp)),
            "properties" => rows.clone().for_each(|r| string(&mut out, r.properties)),
            "kafka_topic" => (0..count).for_each(|_| string(&mut out, origin.topic.as_bytes())),
            "kafka_incarnation" => (0..count).for_each(|_| out.put_u32_le(origin.incarnation)),
            "kafka_partition" => (0..count).for_each(|_| out.put_u32_le(origin.partition as u32)),
            "kafka_offset" => rows.clone().for_each(|r| out.put_u64_le(r.offset as u64)),
            _ => (0..count).for_each(|_| out.put_i64_le(origin.ingested_at)),
        }
    }
    out.freeze()
}
