//! Which rejects may settle a record: those of others, and not those that it replays.
//!
//! A replay takes the claim of the reject over that its headers name. So that reject says nothing about what became of
//! the replay, and nor does one that the named record was itself a replay of, as far as that one is in the range. Any
//! other reject of its key is one that the replay lost its claim to.
//!
//! Owns the order in which keys, rejects and replays meet; memory follows the longest chain of replays of one event.

use std::collections::{HashMap, HashSet};
use std::io;

use super::ledger::Position;
use super::sorter::{Sorted, Sorter};
use crate::config;
use crate::event::Origin;

/// The longest name of a topic.
const LONGEST_TOPIC: usize = 249;

/// A record's place, as bytes: those of its position in the topic that is settled, or more for others.
pub(super) type Place = Vec<u8>;

/// The place that headers name; none if Kafka can have no such topic.
pub(super) fn place(origin: &Origin, kafka: &config::Kafka) -> Option<Place> {
    let at = Position {
        partition: origin.partition,
        offset: origin.offset,
    };
    let mut place = at.to_bytes().to_vec();
    if origin.topic != kafka.topic || origin.incarnation != kafka.incarnation {
        place.extend_from_slice(&origin.incarnation.to_be_bytes());
        place.extend_from_slice(origin.topic.as_bytes());
    }
    (origin.topic.len() <= LONGEST_TOPIC).then_some(place)
}

/// Takes down places that belong to a key.
pub(super) fn push<const N: usize>(to: &mut Sorter, key: &[u8], places: [&[u8]; N]) -> io::Result<()> {
    // Lengths come after, so that entries are in the order of their keys.
    let lengths = places.map(|place| (place.len() as u16).to_be_bytes());
    let mut parts = vec![key];
    for (place, length) in places.iter().zip(&lengths) {
        parts.extend([place, length.as_slice()]);
    }
    to.push(&parts)
}

/// The key and the places of an entry.
fn split<const N: usize>(entry: &[u8]) -> Option<(&[u8], [&[u8]; N])> {
    let mut rest = entry;
    let mut places = [&[][..]; N];
    for place in places.iter_mut().rev() {
        let (before, length) = rest.split_last_chunk()?;
        let start = before
            .len()
            .checked_sub(usize::from(u16::from_be_bytes(*length)))?;
        (rest, *place) = before.split_at(start);
    }
    Some((rest, places))
}

/// Entries by key, each with as many places.
struct Cursor<const N: usize> {
    entries: Sorted,
    /// Empty at the end.
    entry: Vec<u8>,
}

impl<const N: usize> Cursor<N> {
    fn of(sorter: Sorter) -> io::Result<Self> {
        let mut cursor = Self {
            entries: sorter.sorted()?,
            entry: Vec::new(),
        };
        cursor.advance()?;
        Ok(cursor)
    }

    fn advance(&mut self) -> io::Result<()> {
        if !self.entries.next(&mut self.entry)? {
            self.entry.clear();
        }
        Ok(())
    }

    /// Hands over the places of each entry of this key. Keys come in order.
    fn each_of(&mut self, key: &[u8], mut each: impl FnMut([&[u8]; N])) -> io::Result<()> {
        while !self.entry.is_empty() {
            let (at, places) = split(&self.entry).ok_or(io::ErrorKind::InvalidData)?;
            if at > key {
                break;
            }
            if at == key {
                each(places);
            }
            self.advance()?;
        }
        Ok(())
    }
}

/// Rejects, and replays with what they replay, by key.
pub(super) struct Groups {
    others: Cursor<1>,
    replays: Cursor<2>,
    key: Vec<u8>,
    group: Group,
}

impl Groups {
    pub(super) fn of(others: Sorter, replays: Sorter) -> io::Result<Self> {
        Ok(Self {
            others: Cursor::of(others)?,
            replays: Cursor::of(replays)?,
            key: Vec::new(),
            group: Group::default(),
        })
    }

    /// Those of a key. Keys are asked for in order.
    pub(super) fn of_key(&mut self, key: &[u8]) -> io::Result<&Group> {
        if self.key != key {
            self.key.clear();
            self.key.extend_from_slice(key);
            self.group = Group::default();
            let Group { parents, others } = &mut self.group;
            self.replays.each_of(key, |[child, parent]| {
                parents.insert(child.to_vec(), parent.to_vec());
            })?;
            // Of more than any chain has, one is of another.
            let enough = parents.len() + 1;
            self.others.each_of(key, |[other]| {
                if others.len() < enough {
                    others.insert(other.to_vec());
                }
            })?;
        }
        Ok(&self.group)
    }
}

/// The rejects and the replays of one key.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// What each replay replays.
    parents: HashMap<Place, Place>,
    others: HashSet<Place>,
}

impl Group {
    /// Whether a reject of another record settles the one at this place.
    pub(super) fn settles(&self, at: Position) -> bool {
        let mut replayed = HashSet::new();
        let mut next = self.parents.get(at.to_bytes().as_slice());
        while let Some(place) = next.filter(|place| replayed.insert(*place)) {
            next = self.parents.get(place);
        }
        self.others.iter().any(|other| !replayed.contains(other))
    }

    /// Takes the replays down again.
    pub(super) fn keep_replays(&self, key: &[u8], to: &mut Sorter) -> io::Result<()> {
        for (child, parent) in &self.parents {
            push(to, key, [child.as_slice(), parent])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(topic: &str, incarnation: u32, offset: i64) -> Origin {
        Origin {
            topic: topic.to_owned(),
            incarnation,
            partition: 0,
            offset,
        }
    }

    fn ours(offset: i64) -> Place {
        place(
            &origin("events", 0, offset),
            &config::Config::load_with(None, []).unwrap().kafka,
        )
        .unwrap()
    }

    fn at(offset: i64) -> Position {
        Position { partition: 0, offset }
    }

    #[test]
    fn a_place_is_the_position_in_the_settled_topic_and_another_elsewhere() {
        let kafka = config::Config::load_with(None, []).unwrap().kafka;
        assert_eq!(ours(7), at(7).to_bytes());
        let places = [("events", 1), ("other", 0), ("othe", 0)].map(|(topic, incarnation)| {
            let place = place(&origin(topic, incarnation, 7), &kafka).unwrap();
            assert!(place.len() > 12);
            place
        });
        assert_eq!(places.into_iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(place(&origin(&"t".repeat(250), 0, 7), &kafka), None);
    }

    #[test]
    fn entries_give_back_their_key_and_places() {
        let mut sorter = Sorter::default();
        push(&mut sorter, b"key", [b"one", b""]).unwrap();
        push(&mut sorter, b"", [b"", b"two"]).unwrap();
        let mut entries = sorter.sorted().unwrap();
        let mut entry = Vec::new();
        assert!(entries.next(&mut entry).unwrap());
        assert_eq!(split(&entry), Some((&b""[..], [&b""[..], b"two"])));
        assert!(entries.next(&mut entry).unwrap());
        assert_eq!(split(&entry), Some((&b"key"[..], [&b"one"[..], b""])));
        assert_eq!(split::<1>(b"\0\x05"), None);
    }

    #[test]
    fn a_reject_settles_all_of_its_key_but_those_that_replay_it() {
        let (mut others, mut replays) = (Sorter::default(), Sorter::default());
        // 0 was rejected; 1 replayed it, was rejected, and was replayed by 2. 3 replayed 0, too, and 5 itself.
        for (child, parent) in [(1, 0), (2, 1), (3, 0), (5, 5)] {
            push(&mut replays, b"k", [&ours(child), &ours(parent)]).unwrap();
        }
        push(&mut replays, b"l", [&ours(7), &ours(6)]).unwrap();
        for offset in [0, 1, 1] {
            push(&mut others, b"k", [&ours(offset)]).unwrap();
        }
        for key in [b"a", b"l", b"m"] {
            push(&mut others, key, [&ours(6)]).unwrap();
        }
        let mut groups = Groups::of(others, replays).unwrap();
        let group = groups.of_key(b"k").unwrap();
        assert!(!group.settles(at(2)), "all that is there leads to it");
        assert!(group.settles(at(3)), "1 has taken the claim that it wanted");
        assert!(group.settles(at(4)) && group.settles(at(5)));
        let mut kept = Sorter::default();
        group.keep_replays(b"k", &mut kept).unwrap();
        assert_eq!(kept.len(), 4);
        assert!(!groups.of_key(b"l").unwrap().settles(at(7)));
        assert!(groups.of_key(b"m").unwrap().settles(at(7)));
        assert!(!groups.of_key(b"n").unwrap().settles(at(7)));
    }

    #[test]
    fn more_rejects_than_replays_are_not_kept() {
        let mut others = Sorter::default();
        for offset in 0..100 {
            push(&mut others, b"k", [&ours(offset)]).unwrap();
        }
        let mut groups = Groups::of(others, Sorter::default()).unwrap();
        let group = groups.of_key(b"k").unwrap();
        assert_eq!(group.others.len(), 1);
        assert!(group.settles(at(200)));
    }
}
