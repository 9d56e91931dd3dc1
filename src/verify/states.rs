//! What the destinations have at each offset of a partition, in four bits an offset.

use std::ops::Range;

/// Offsets of one page: 32 KiB. Pages without anything take no memory, so gaps cost little.
const PAGE: usize = 1 << 16;

const ROWS: u8 = 0b0011;
/// In place of rows: the record has been judged.
const JUDGED: u8 = 0b0011;
const OVERFLOW: u8 = 0b0100;
const DEAD: u8 = 0b1000;
/// In place of the rejects, once it has been judged: its event is known to repeat another's.
const REPEATED: u8 = 0b0100;

/// What the destinations have of one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Rows in the table; 2 stands for more, too.
    pub(super) rows: u8,
    /// A copy in the overflow topic.
    pub(super) overflow: bool,
    /// A dead letter.
    pub(super) dead: bool,
}

impl State {
    fn of(bits: u8) -> Self {
        Self {
            rows: bits & ROWS,
            overflow: bits & OVERFLOW != 0,
            dead: bits & DEAD != 0,
        }
    }
}

/// The offsets of one partition. What is outside of its range is ignored.
#[derive(Debug)]
pub(super) struct States {
    start: i64,
    end: i64,
    pages: Vec<Option<Box<[u8]>>>,
}

impl States {
    pub(super) fn new(start: i64, end: i64) -> Self {
        let pages = usize::try_from(end - start).unwrap_or(0).div_ceil(PAGE);
        Self {
            start,
            end,
            pages: vec![None; pages],
        }
    }

    pub(super) fn add_row(&mut self, offset: i64) {
        self.update(offset, |bits| {
            let rows = (bits & ROWS) + 1;
            bits & !ROWS | rows.min(2)
        });
    }

    pub(super) fn mark_overflow(&mut self, offset: i64) {
        self.update(offset, |bits| bits | OVERFLOW);
    }

    /// Answers whether it is the first one in range.
    pub(super) fn mark_dead(&mut self, offset: i64) -> bool {
        self.update(offset, |bits| bits | DEAD)
            .is_some_and(|before| before & DEAD == 0)
    }

    /// What the destinations have of a record. From here on the offset is known to hold one.
    pub(super) fn judge(&mut self, offset: i64) -> State {
        let bits = self.bits(offset);
        // A page that nothing touched stays so.
        if bits != 0 {
            self.update(offset, |_| JUDGED);
        }
        State::of(bits)
    }

    /// Whether there is a record that a destination has something of; known once all are judged.
    pub(super) fn is_judged(&self, offset: i64) -> bool {
        self.bits(offset) & ROWS == JUDGED
    }

    /// Answers whether it is the first time that a judged record is marked so.
    pub(super) fn mark_repeated(&mut self, offset: i64) -> bool {
        self.is_judged(offset)
            && self
                .update(offset, |bits| bits | REPEATED)
                .is_some_and(|before| before & REPEATED == 0)
    }

    /// Offsets of a range that were never judged although a destination has something there.
    pub(super) fn never_judged(&self, range: Range<i64>) -> impl Iterator<Item = (i64, State)> {
        let pages = self.pages.iter().enumerate();
        let touched = pages.filter_map(|(number, page)| Some((number, page.as_ref()?)));
        touched
            .flat_map(|(number, page)| {
                let start = self.start + (number * PAGE) as i64;
                page.iter().enumerate().flat_map(move |(at, byte)| {
                    let offset = start + at as i64 * 2;
                    [(offset, byte & 0xf), (offset + 1, byte >> 4)]
                })
            })
            .filter(move |(offset, bits)| range.contains(offset) && *bits != 0 && bits & ROWS != JUDGED)
            .map(|(offset, bits)| (offset, State::of(bits)))
    }

    fn bits(&self, offset: i64) -> u8 {
        self.place(offset)
            .and_then(|(page, at)| Some(self.pages[page].as_ref()?[at / 2] >> (at % 2 * 4)))
            .unwrap_or(0)
            & 0xf
    }

    fn place(&self, offset: i64) -> Option<(usize, usize)> {
        let index = usize::try_from(offset - self.start).ok()?;
        (offset < self.end).then_some((index / PAGE, index % PAGE))
    }

    /// The bits before.
    fn update(&mut self, offset: i64, change: impl FnOnce(u8) -> u8) -> Option<u8> {
        let (page, at) = self.place(offset)?;
        let page = self.pages[page].get_or_insert_with(|| vec![0; PAGE / 2].into_boxed_slice());
        let (byte, shift) = (&mut page[at / 2], at % 2 * 4);
        let before = *byte >> shift & 0xf;
        *byte = *byte & !(0xf << shift) | change(before) << shift;
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_offset_has_a_state_of_its_own() {
        let (start, end) = (1_000, 1_000 + 3 * PAGE as i64);
        let mut states = States::new(start, end);
        let last = end - 1;
        states.add_row(start);
        states.mark_overflow(start + 1);
        assert!(states.mark_dead(last));
        assert!(!states.mark_dead(last), "the same dead letter again");
        states.add_row(last);
        for _ in 0..9 {
            states.add_row(last - 1);
        }
        let state = |rows, overflow, dead| State { rows, overflow, dead };
        let found: Vec<_> = states.never_judged(start + 1..end).collect();
        assert_eq!(
            found,
            [
                (start + 1, state(0, true, false)),
                (last - 1, state(2, false, false)),
                (last, state(1, false, true)),
            ]
        );
        assert_eq!(states.never_judged(start..end).count(), 4);
        assert_eq!(states.judge(start), state(1, false, false));
        assert_eq!(states.judge(start + 1), state(0, true, false));
        assert_eq!(states.judge(start + 2), State::default());
        assert_eq!(states.judge(start + PAGE as i64), State::default());
        assert_eq!(states.judge(last - 1), state(2, false, false));
        assert_eq!(
            states.never_judged(0..end).collect::<Vec<_>>(),
            [(last, state(1, false, true))]
        );
        assert_eq!(states.judge(last), state(1, false, true));
        assert_eq!(states.never_judged(0..end).count(), 0);
        assert!(states.pages[1].is_none(), "an untouched page takes no memory");
    }

    #[test]
    fn a_judged_record_is_marked_as_repeated_once_whatever_it_was_before() {
        let mut states = States::new(0, 10);
        for offset in 0..2 {
            states.add_row(offset);
            states.mark_overflow(offset);
        }
        states.judge(0);
        assert_eq!((states.is_judged(0), states.is_judged(1)), (true, false));
        assert_eq!(
            [0, 0, 1, 5, 20].map(|offset| states.mark_repeated(offset)),
            [true, false, false, false, false]
        );
        assert!(states.is_judged(0));
        assert_eq!(
            states
                .never_judged(0..10)
                .map(|(offset, _)| offset)
                .collect::<Vec<_>>(),
            [1]
        );
    }

    #[test]
    fn offsets_outside_of_the_range_are_ignored() {
        let mut states = States::new(10, 20);
        for offset in [-1, 0, 9, 20, i64::MAX] {
            states.add_row(offset);
            assert!(!states.mark_dead(offset));
            assert_eq!(states.judge(offset), State::default(), "{offset}");
        }
        assert_eq!(states.never_judged(i64::MIN..i64::MAX).count(), 0);
        assert_eq!(States::new(5, 5).judge(5), State::default());
    }
}
