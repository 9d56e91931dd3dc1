//! Records that no destination names: duplicates, if another record of their id has come to one.
//!
//! Owns them until they are settled. A record here has no row and no copy, so whatever is found under its id is
//! another's.

use std::collections::{BTreeMap, HashMap, HashSet};

use ::clickhouse::error::Result;

use super::ledger::{Ledger, Position};

/// Ids that are asked for at once: some hundred kilobytes of query text.
const IDS_A_QUERY: usize = 20_000;

/// A record and its id within its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// What it is deduplicated by.
    pub(super) id: u128,
    /// When the event happened, ms since 1970.
    pub(super) time_ms: i64,
    /// The record.
    pub(super) at: Position,
}

/// Where ids can be looked up.
pub(super) trait Ids {
    /// Those that have a row, of ids (with their events' times) of some tokens; more may be among the answers.
    fn with_rows(
        &self,
        asked: &BTreeMap<&str, Vec<(u128, i64)>>,
    ) -> impl Future<Output = Result<Vec<(String, u128)>>>;
}

/// The records that wait, and those that the table does not settle.
#[derive(Debug, Default)]
pub(super) struct Claims {
    tokens: Vec<String>,
    numbers: HashMap<String, u32>,
    waiting: Vec<(u32, Claim)>,
    /// By token and id, sorted once all are there.
    left: Vec<(u32, u128, Position)>,
    rejected: HashSet<(u32, u128)>,
}

impl Claims {
    pub(super) fn push(&mut self, token: &str, claim: Claim) {
        let number = if let Some(number) = self.numbers.get(token) {
            *number
        } else {
            let number = self.tokens.len() as u32;
            self.tokens.push(token.to_owned());
            self.numbers.insert(token.to_owned(), number);
            number
        };
        self.waiting.push((number, claim));
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nothing is left to be looked for.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.left.is_empty()
    }

    /// Looks up what waits; what has no row is left for the rejects.
    pub(super) async fn settle(&mut self, ids: &impl Ids, ledger: &mut Ledger) -> Result<()> {
        // Token by token, the order of the table's key.
        self.waiting
            .sort_unstable_by_key(|(token, claim)| (*token, claim.id));
        for batch in self.waiting.chunks(IDS_A_QUERY) {
            let mut asked: BTreeMap<&str, Vec<(u128, i64)>> = BTreeMap::new();
            for (token, claim) in batch {
                let of_token = asked.entry(&self.tokens[*token as usize]).or_default();
                of_token.push((claim.id, claim.time_ms));
            }
            let found: HashSet<(u32, u128)> = ids
                .with_rows(&asked)
                .await?
                .into_iter()
                .filter_map(|(token, id)| Some((*self.numbers.get(&token)?, id)))
                .collect();
            for (token, claim) in batch {
                if found.contains(&(*token, claim.id)) {
                    ledger.duplicate();
                } else {
                    self.left.push((*token, claim.id, claim.at));
                }
            }
        }
        self.waiting.clear();
        self.left.sort_unstable();
        Ok(())
    }

    /// A reject has this id.
    pub(super) fn found_rejected(&mut self, token: &str, id: u128) {
        let Some(number) = self.numbers.get(token) else {
            return;
        };
        let wanted = (*number, id);
        let sought = |left: &(u32, u128, Position)| (left.0, left.1).cmp(&wanted);
        if self.left.binary_search_by(sought).is_ok() {
            self.rejected.insert(wanted);
        }
    }

    /// Counts what is left: duplicates of rejects, or missing.
    pub(super) fn finish(&mut self, ledger: &mut Ledger) {
        for (token, id, at) in self.left.drain(..) {
            if self.rejected.contains(&(token, id)) {
                ledger.duplicate();
            } else {
                ledger.missing(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows(Vec<(&'static str, u128)>);

    impl Ids for Rows {
        async fn with_rows(&self, asked: &BTreeMap<&str, Vec<(u128, i64)>>) -> Result<Vec<(String, u128)>> {
            assert!(asked.values().map(Vec::len).sum::<usize>() <= IDS_A_QUERY);
            // A table answers by token and id each, so it may also name pairs that were not asked for.
            Ok(self
                .0
                .iter()
                .map(|(token, id)| ((*token).to_owned(), *id))
                .collect())
        }
    }

    fn claim(id: u128, offset: i64) -> Claim {
        Claim {
            id,
            time_ms: 0,
            at: Position { partition: 0, offset },
        }
    }

    #[tokio::test]
    async fn a_record_is_a_duplicate_if_its_id_has_a_row_or_a_reject_within_its_token() {
        let mut claims = Claims::default();
        let mut ledger = Ledger::default();
        for (token, id, offset) in [
            ("a", 1, 10), // has a row
            ("a", 1, 11), // and again
            ("b", 1, 12), // another token's
            ("a", 2, 13), // rejected
            ("a", 2, 14), // and again
            ("b", 2, 15), // another token's
            ("b", 3, 16), // nowhere
        ] {
            claims.push(token, claim(id, offset));
        }
        assert_eq!(claims.waiting(), 7);
        let rows = Rows(vec![("a", 1), ("c", 1), ("a", 99)]);
        claims.settle(&rows, &mut ledger).await.unwrap();
        assert_eq!((claims.waiting(), claims.is_empty()), (0, false));
        assert_eq!(ledger.duplicates, 2);
        for (token, id) in [("a", 2), ("a", 2), ("c", 3), ("a", 77)] {
            claims.found_rejected(token, id);
        }
        claims.finish(&mut ledger);
        assert!(claims.is_empty());
        assert_eq!(ledger.duplicates, 4);
        let missing: Vec<i64> = ledger.missing.first.iter().map(|at| at.offset).collect();
        assert_eq!(missing, [12, 15, 16]);
    }

    #[tokio::test]
    async fn many_records_are_asked_for_in_batches_and_settled_in_rounds() {
        let mut claims = Claims::default();
        let mut ledger = Ledger::default();
        for round in 0..2 {
            for offset in 0..2 * IDS_A_QUERY as i64 + 7 {
                claims.push("a", claim(offset as u128, offset * 2 + round));
            }
            let rows = Rows((1..IDS_A_QUERY as u128 * 2 + 7).map(|id| ("a", id)).collect());
            claims.settle(&rows, &mut ledger).await.unwrap();
        }
        claims.finish(&mut ledger);
        let missing: Vec<i64> = ledger.missing.first.iter().map(|at| at.offset).collect();
        assert_eq!(missing, [0, 1]);
        assert_eq!(ledger.duplicates, 2 * (2 * IDS_A_QUERY as u64 + 6));
    }
}
