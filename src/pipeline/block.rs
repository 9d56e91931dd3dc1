//! A block: consecutive records of one partition, `[start, end)`, and the bytes that they came in.
//!
//! Owns the canonical encoding of records, the digest over it, and the accounting of the worker's memory in flight.
//! Never looks into a payload.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::outstanding::Slot;
use super::spare::Spare;
use crate::event::{Headers, Record};
use crate::kafka::metadata::{Announcement, Previous};

/// Bytes of records in this worker that no service has taken over yet, and the memory of settled blocks, to be used
/// again: clearing fresh pages for every block was a quarter of the worker's time.
#[derive(Debug, Default)]
pub struct InFlight {
    bytes: AtomicU64,
    spare: Spare<Records>,
}

impl InFlight {
    /// A block that grew larger than this keeps no memory for the next one, in bytes.
    const LARGEST_SPARE: usize = 64 << 20;

    /// The bytes now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts `records` out, and keeps their memory.
    fn give(&self, mut records: Records) {
        self.bytes
            .fetch_sub(records.arena.len() as u64, Ordering::Relaxed);
        records.arena.clear();
        records.starts.clear();
        if (1..=Self::LARGEST_SPARE).contains(&records.arena.capacity()) {
            self.spare.give(records);
        }
    }
}

/// How a block came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// By rows, bytes or age.
    Free,
    /// Exactly as an earlier attempt announced it.
    Announced(Announcement),
}

/// The records, encoded one after the other: offset and timestamp (i64), key and payload (i32 length or -1 for
/// none, bytes), headers (u32 length, bytes as in [`Headers`]); little-endian. The digest is taken over
/// this as it stands: every part has its length before it, so no two different blocks read alike.
#[derive(Debug, Default)]
struct Records {
    arena: Vec<u8>,
    starts: Vec<u32>,
}

impl Records {
    fn push(&mut self, record: &Record<'_>) {
        self.starts.push(self.arena.len() as u32);
        self.arena.extend_from_slice(&record.offset.to_le_bytes());
        self.arena.extend_from_slice(&record.timestamp.to_le_bytes());
        for part in [record.key, record.payload] {
            match part {
                Some(bytes) => {
                    self.arena.extend_from_slice(&(bytes.len() as i32).to_le_bytes());
                    self.arena.extend_from_slice(bytes);
                }
                None => self.arena.extend_from_slice(&(-1i32).to_le_bytes()),
            }
        }
        self.arena
            .extend_from_slice(&(record.headers.0.len() as u32).to_le_bytes());
        self.arena.extend_from_slice(record.headers.0);
    }

    fn encoded(&self, index: usize) -> &[u8] {
        let start = self.starts[index] as usize;
        let end = self
            .starts
            .get(index + 1)
            .map_or(self.arena.len(), |&next| next as usize);
        &self.arena[start..end]
    }

    fn get(&self, index: usize) -> Record<'_> {
        let mut rest = self.encoded(index);
        let mut take = |n: usize| {
            let (head, tail) = rest.split_at(n);
            rest = tail;
            head
        };
        let offset = i64::from_le_bytes(array(take(8)));
        let timestamp = i64::from_le_bytes(array(take(8)));
        let mut part = || {
            let len = i32::from_le_bytes(array(take(4)));
            usize::try_from(len).ok().map(&mut take)
        };
        let (key, payload) = (part(), part());
        let len = u32::from_le_bytes(array(take(4))) as usize;
        Record {
            offset,
            timestamp,
            key,
            payload,
            headers: Headers(take(len)),
        }
    }
}

/// The first `N` bytes; callers pass exactly as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

/// The hash by which a record is recognised when its offset is met again.
pub fn fingerprint(record: &Record<'_>) -> u64 {
    let mut records = Records::default();
    records.push(record);
    xxh3_64(&records.arena)
}

/// A block that still takes records.
#[derive(Debug)]
pub struct Open {
    start: i64,
    next: i64,
    records: Records,
    in_flight: Arc<InFlight>,
    previous: Option<Previous>,
}

impl Open {
    /// Starts at offset `start`; `previous` is the record before it, where it is known.
    pub fn new(start: i64, previous: Option<Previous>, in_flight: &Arc<InFlight>) -> Self {
        Self {
            start,
            next: start,
            records: Records::default(),
            in_flight: Arc::clone(in_flight),
            previous,
        }
    }

    /// Appends the next record; offsets rise, with gaps where the topic has them.
    pub fn push(&mut self, record: &Record<'_>) {
        if self.records.arena.capacity() == 0 {
            self.records = self.in_flight.spare.take();
        }
        let before = self.records.arena.len();
        self.records.push(record);
        let added = (self.records.arena.len() - before) as u64;
        self.in_flight.bytes.fetch_add(added, Ordering::Relaxed);
        self.next = record.offset + 1;
    }

    /// Goes on at `next`: no record lies before it any more.
    pub fn pass_over(&mut self, next: i64) {
        self.next = next;
    }

    /// Records so far.
    pub fn len(&self) -> usize {
        self.records.starts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records.starts.is_empty()
    }

    /// Bytes so far, as encoded.
    pub fn bytes(&self) -> usize {
        self.records.arena.len()
    }

    /// The offset after the last record.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// Ends the block: at the announced end, or after its last record. The next one starts where it ends.
    pub fn close(&mut self, cut: Cut, epoch: u64, slot: Slot) -> Block {
        let end = match cut {
            Cut::Free => self.next,
            Cut::Announced(announced) => announced.end,
        };
        let records = std::mem::take(&mut self.records);
        let previous = match records.starts.len() {
            0 => self.previous,
            n => Some(Previous {
                offset: records.get(n - 1).offset,
                hash: xxh3_64(records.encoded(n - 1)),
            }),
        };
        let block = Block {
            epoch,
            start: self.start,
            end,
            cut,
            before: self.previous,
            last: previous,
            records,
            in_flight: Arc::clone(&self.in_flight),
            _slot: slot,
        };
        *self = Self::new(end, previous, &self.in_flight);
        block
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.in_flight.give(std::mem::take(&mut self.records));
    }
}

/// A closed block. Its memory counts as in flight until it is dropped.
#[derive(Debug)]
pub struct Block {
    /// The assignment in which it was read.
    pub epoch: u64,
    /// The first offset.
    pub start: i64,
    /// The offset after the last one.
    pub end: i64,
    /// How it was cut.
    pub cut: Cut,
    /// The record before `start`, where it is known.
    pub before: Option<Previous>,
    /// The last record before `end`, where it is known.
    pub last: Option<Previous>,
    records: Records,
    in_flight: Arc<InFlight>,
    _slot: Slot,
}

impl Block {
    /// The number of records.
    pub fn len(&self) -> usize {
        self.records.starts.len()
    }

    /// Whether retention or compaction left none.
    pub fn is_empty(&self) -> bool {
        self.records.starts.is_empty()
    }

    /// A record by its place in the block.
    pub fn record(&self, index: u32) -> Record<'_> {
        self.records.get(index as usize)
    }

    /// All records, in offset order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|i| self.records.get(i))
    }

    /// Bytes of the records as encoded.
    pub fn bytes(&self) -> usize {
        self.records.arena.len()
    }

    /// xxh3-128 over all records: two reads of the same block give the same digest.
    pub fn digest(&self) -> u128 {
        xxh3_128(&self.records.arena)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.in_flight.give(std::mem::take(&mut self.records));
    }
}

#[cfg(test)]
mod tests {
    use super::super::outstanding::Outstanding;
    use super::*;

    fn slot() -> Slot {
        Arc::<Outstanding>::default().take(0)
    }

    #[test]
    fn records_come_back_as_they_went_in_and_memory_is_accounted_for() {
        let in_flight = Arc::new(InFlight::default());
        let mut headers = Vec::new();
        Headers::encode(&mut headers, b"a", Some(b"1"));
        Headers::encode(&mut headers, b"b", None);
        let mut open = Open::new(5, None, &in_flight);
        let records = [
            Record {
                offset: 5,
                timestamp: 1,
                key: Some(b"k"),
                payload: Some(b"p"),
                headers: Headers(&headers),
            },
            Record {
                offset: 7,
                timestamp: -1,
                key: None,
                payload: None,
                headers: Headers(&[]),
            },
            Record {
                offset: 8,
                timestamp: 3,
                key: Some(b""),
                payload: Some(b""),
                headers: Headers(&[]),
            },
        ];
        for record in &records {
            open.push(record);
        }
        let block = open.close(Cut::Free, 1, slot());
        assert_eq!((block.start, block.end, block.len()), (5, 9, 3));
        for (read, written) in block.records().zip(&records) {
            assert_eq!(
                (
                    read.offset,
                    read.timestamp,
                    read.key,
                    read.payload,
                    read.headers.0
                ),
                (
                    written.offset,
                    written.timestamp,
                    written.key,
                    written.payload,
                    written.headers.0
                )
            );
        }
        assert_eq!(
            block.last,
            Some(Previous {
                offset: 8,
                hash: fingerprint(&records[2])
            })
        );
        assert_eq!(in_flight.bytes(), block.bytes() as u64);
        drop(block);
        assert_eq!(in_flight.bytes(), 0);
        assert_eq!(open.next(), 9);
    }

    #[test]
    fn the_digest_tells_blocks_apart_that_read_alike_without_lengths() {
        let digest = |key: &'static [u8], payload: &'static [u8]| {
            let mut open = Open::new(0, None, &Arc::default());
            open.push(&Record {
                offset: 0,
                timestamp: 0,
                key: Some(key),
                payload: Some(payload),
                headers: Headers(&[]),
            });
            open.close(Cut::Free, 0, slot()).digest()
        };
        assert_eq!(digest(b"ab", b"c"), digest(b"ab", b"c"));
        assert_ne!(digest(b"ab", b"c"), digest(b"a", b"bc"));
    }
}
