//! What the client library does not do, straight over Kafka's protocol: a record as no well-behaved client sends it,
//! and the election of leaders.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// Produces one record, whose header names may be any bytes, to a partition whose leader is the first of `brokers`.
pub(crate) fn produce_with_headers(
    brokers: &str,
    topic: &str,
    partition: i32,
    payload: &[u8],
    headers: &[(&[u8], &[u8])],
) {
    let batch = batch(payload, headers);
    let mut body = Vec::new();
    // Header: produce (0) in version 3, a correlation id, the client's name.
    body.extend_from_slice(&[0, 0, 0, 3, 0, 0, 0, 7]);
    string(&mut body, b"it");
    // No transaction, acks of all, 10 s.
    body.extend_from_slice(&(-1_i16).to_be_bytes());
    body.extend_from_slice(&(-1_i16).to_be_bytes());
    body.extend_from_slice(&10_000_i32.to_be_bytes());
    body.extend_from_slice(&1_i32.to_be_bytes());
    string(&mut body, topic.as_bytes());
    body.extend_from_slice(&1_i32.to_be_bytes());
    body.extend_from_slice(&partition.to_be_bytes());
    body.extend_from_slice(&(batch.len() as i32).to_be_bytes());
    body.extend_from_slice(&batch);

    let answer = ask(brokers, &body);
    // Correlation id, one topic, its name, one partition, its number; then the error.
    let at = 4 + 4 + 2 + topic.len() + 4 + 4;
    assert_eq!(&answer[at..at + 2], [0, 0], "the broker took the record");
}

/// Has the first replica of every partition lead it. Answers how many leaders have changed.
pub(crate) fn elect_preferred_leaders(brokers: &str) -> usize {
    let mut body = Vec::new();
    // Header: elect leaders (43) in version 1, a correlation id, the client's name.
    body.extend_from_slice(&[0, 43, 0, 1, 0, 0, 0, 7]);
    string(&mut body, b"it");
    // Preferred ones, of all partitions, within 10 s.
    body.push(0);
    body.extend_from_slice(&(-1_i32).to_be_bytes());
    body.extend_from_slice(&10_000_i32.to_be_bytes());
    let answer = ask(brokers, &body);
    let mut rest = &answer[4..];
    let mut take = |n: usize| {
        let (some, more) = rest.split_at(n);
        rest = more;
        some.iter()
            .fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    // The time that it was throttled, the error, then topics of partitions that had another leader.
    take(4);
    assert_eq!(take(2), 0, "the brokers elect leaders");
    let mut elected = 0;
    for _ in 0..take(4) {
        let name = take(2);
        take(name);
        for _ in 0..take(4) {
            take(4);
            elected += usize::from(take(2) == 0);
            // A null message has the length -1.
            let length = take(2);
            if length != 0xFFFF {
                take(length);
            }
        }
    }
    elected
}

/// Sends a request to the first of `brokers`, and reads the answer.
fn ask(brokers: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(brokers.split(',').next().unwrap()).unwrap();
    stream.write_all(&(body.len() as i32).to_be_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    answer
}

/// A record batch, version 2, of one record.
fn batch(payload: &[u8], headers: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut record = vec![0];
    varint(&mut record, 0);
    varint(&mut record, 0);
    varint(&mut record, -1);
    varint(&mut record, payload.len() as i64);
    record.extend_from_slice(payload);
    varint(&mut record, headers.len() as i64);
    for (name, value) in headers {
        for part in [name, value] {
            varint(&mut record, part.len() as i64);
            record.extend_from_slice(part);
        }
    }
    let now = jiff::Timestamp::now().as_millisecond();
    // What the checksum covers: attributes, last delta, times, no producer, one record.
    let mut checked = Vec::new();
    checked.extend_from_slice(&0_i16.to_be_bytes());
    checked.extend_from_slice(&0_i32.to_be_bytes());
    checked.extend_from_slice(&now.to_be_bytes());
    checked.extend_from_slice(&now.to_be_bytes());
    checked.extend_from_slice(&(-1_i64).to_be_bytes());
    checked.extend_from_slice(&(-1_i16).to_be_bytes());
    checked.extend_from_slice(&(-1_i32).to_be_bytes());
    checked.extend_from_slice(&1_i32.to_be_bytes());
    varint(&mut checked, record.len() as i64);
    checked.extend_from_slice(&record);

    let mut batch = 0_i64.to_be_bytes().to_vec();
    batch.extend_from_slice(&(checked.len() as i32 + 9).to_be_bytes());
    batch.extend_from_slice(&(-1_i32).to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&crc32c(&checked).to_be_bytes());
    batch.extend_from_slice(&checked);
    batch
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as i16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Zigzag, seven bits a byte.
fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & 0_u32.wrapping_sub(crc & 1))
        })
    })
}
