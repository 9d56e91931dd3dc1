//! The smallest input that still fails.

use crate::cases::Case;

/// Takes away whatever can go without `fails` becoming false.
pub(crate) fn shrink(case: Case, fails: impl Fn(&Case) -> bool) -> Case {
    let mut smallest = case;
    let keep = |smaller: Case, smallest: &mut Case| {
        let kept = smaller != *smallest && fails(&smaller);
        if kept {
            *smallest = smaller;
        }
        kept
    };
    let mut at = 0;
    while at < smallest.headers.len() {
        let mut smaller = smallest.clone();
        smaller.headers.remove(at);
        if !keep(smaller, &mut smallest) {
            at += 1;
        }
    }
    keep(
        Case {
            key: None,
            ..smallest.clone()
        },
        &mut smallest,
    );
    // Ever shorter pieces of the payload.
    let mut piece = smallest.payload.as_ref().map_or(0, |payload| payload.len() / 2);
    while piece > 0 {
        let mut at = 0;
        while let Some(payload) = smallest.payload.as_ref().filter(|payload| at < payload.len()) {
            let mut payload = payload.clone();
            payload.drain(at..(at + piece).min(payload.len()));
            let smaller = Case {
                payload: Some(payload),
                ..smallest.clone()
            };
            if !keep(smaller, &mut smallest) {
                at += piece;
            }
        }
        piece /= 2;
    }
    smallest
}
