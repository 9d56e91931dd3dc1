//! Sorts more byte strings than memory should hold: sorted runs in a temporary file, merged as they are read.
//!
//! The file has no name, so it is gone however the process ends. Knows nothing of what it sorts.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// Bytes of entries in memory before they go to the file.
const MEMORY: usize = 8 << 20;
/// Bytes that are read ahead of each run.
const AHEAD: usize = 32 << 10;

/// Takes byte strings of up to 64 KiB, and gives them back in order.
#[derive(Debug)]
pub(super) struct Sorter {
    arena: Vec<u8>,
    /// Start and length in the arena.
    entries: Vec<(u32, u16)>,
    memory: usize,
    file: Option<File>,
    /// Where the runs in the file end.
    ends: Vec<u64>,
    len: u64,
}

impl Default for Sorter {
    fn default() -> Self {
        Self::with_memory(MEMORY)
    }
}

impl Sorter {
    fn with_memory(memory: usize) -> Self {
        Self {
            // Untouched pages take no memory; doubling would take twice as much.
            arena: Vec::with_capacity(memory + usize::from(u16::MAX)),
            entries: Vec::new(),
            memory,
            file: None,
            ends: Vec::new(),
            len: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Adds one entry, the parts together. Fails if the temporary file cannot be written.
    pub(super) fn push(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u16::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?;
        let start = self.arena.len() as u32;
        for part in parts {
            self.arena.extend_from_slice(part);
        }
        self.entries.push((start, length));
        self.len += 1;
        if self.arena.len() >= self.memory {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let mut end = self.ends.last().copied().unwrap_or(0);
        let mut out = BufWriter::with_capacity(1 << 18, file);
        for (start, length) in &self.entries {
            out.write_all(&length.to_le_bytes())?;
            out.write_all(slice(&self.arena, *start, *length))?;
            end += 2 + u64::from(*length);
        }
        out.flush()?;
        self.ends.push(end);
        self.arena.clear();
        self.entries.clear();
        Ok(())
    }

    fn sort(&mut self) {
        let Self { arena, entries, .. } = self;
        entries.sort_unstable_by(|a, b| slice(arena, a.0, a.1).cmp(slice(arena, b.0, b.1)));
    }

    /// All entries in order, also those that are equal.
    pub(super) fn sorted(mut self) -> io::Result<Sorted> {
        self.sort();
        let mut runs = Vec::with_capacity(self.ends.len() + 1);
        if let Some(file) = self.file.map(Arc::new) {
            let mut at = 0;
            for end in self.ends {
                let part = Part {
                    file: Arc::clone(&file),
                    at,
                    end,
                };
                runs.push(Run::File(BufReader::with_capacity(AHEAD, part)));
                at = end;
            }
        }
        runs.push(Run::Memory {
            arena: self.arena,
            entries: self.entries.into_iter(),
        });
        let mut sorted = Sorted {
            heap: BinaryHeap::with_capacity(runs.len()),
            runs,
        };
        for run in 0..sorted.runs.len() {
            sorted.refill(run, Vec::new())?;
        }
        Ok(sorted)
    }
}

fn slice(arena: &[u8], start: u32, length: u16) -> &[u8] {
    &arena[start as usize..start as usize + usize::from(length)]
}

/// Entries in order.
#[derive(Debug)]
pub(super) struct Sorted {
    runs: Vec<Run>,
    /// The first entry of each run that has one left.
    heap: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

impl Sorted {
    /// Moves the next entry into `entry`; false if there is none.
    pub(super) fn next(&mut self, entry: &mut Vec<u8>) -> io::Result<bool> {
        let Some(Reverse((mut next, run))) = self.heap.pop() else {
            return Ok(false);
        };
        std::mem::swap(entry, &mut next);
        self.refill(run, next)?;
        Ok(true)
    }

    fn refill(&mut self, run: usize, mut buffer: Vec<u8>) -> io::Result<()> {
        if self.runs[run].next(&mut buffer)? {
            self.heap.push(Reverse((buffer, run)));
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Run {
    Memory {
        arena: Vec<u8>,
        entries: std::vec::IntoIter<(u32, u16)>,
    },
    File(BufReader<Part>),
}

impl Run {
    fn next(&mut self, out: &mut Vec<u8>) -> io::Result<bool> {
        out.clear();
        match self {
            Run::Memory { arena, entries } => {
                let Some((start, length)) = entries.next() else {
                    return Ok(false);
                };
                out.extend_from_slice(slice(arena, start, length));
            }
            Run::File(file) => {
                let mut length = [0; 2];
                match file.read_exact(&mut length) {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                    read => read?,
                }
                out.resize(usize::from(u16::from_le_bytes(length)), 0);
                file.read_exact(out)?;
            }
        }
        Ok(true)
    }
}

/// A part of a file that others read, too.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Read for Part {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = out.len().min(left);
        let read = self.file.read_at(&mut out[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(sorter: Sorter) -> Vec<Vec<u8>> {
        let mut entries = sorter.sorted().unwrap();
        let (mut found, mut entry) = (Vec::new(), Vec::new());
        while entries.next(&mut entry).unwrap() {
            found.push(entry.clone());
        }
        found
    }

    proptest! {
        #[test]
        fn entries_come_back_in_order_from_memory_and_file(
            mut entries: Vec<Vec<u8>>,
            memory in 1_usize..2_000,
        ) {
            let mut sorter = Sorter::with_memory(memory);
            for entry in &entries {
                let (head, tail) = entry.split_at(entry.len() / 2);
                sorter.push(&[head, tail]).unwrap();
            }
            prop_assert_eq!(sorter.len(), entries.len() as u64);
            entries.sort();
            prop_assert_eq!(all(sorter), entries);
        }
    }

    #[test]
    fn what_exceeds_the_memory_goes_to_the_file() {
        let mut sorter = Sorter::with_memory(1_000);
        for n in (0..1_000_u64).rev() {
            sorter.push(&[&n.to_be_bytes()]).unwrap();
            assert!(sorter.arena.len() < 1_000);
        }
        assert_eq!(sorter.ends.len(), 8);
        let found = all(sorter);
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(n, entry)| *entry == (n as u64).to_be_bytes())
        );
        assert_eq!(found.len(), 1_000);
    }

    #[test]
    fn an_entry_that_is_too_long_is_refused() {
        let mut sorter = Sorter::default();
        let longest = vec![0; 65_535];
        assert!(sorter.push(&[&longest]).is_ok());
        assert!(sorter.push(&[&longest, &[1]]).is_err());
    }
}
