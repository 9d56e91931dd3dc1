//! A question to several who may disagree, or be gone.

use std::collections::HashMap;
use std::hash::Hash;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

/// Asks all at the same time, until most of them have said the same or there is no more to hear. What was said most
/// often, and why others said nothing.
pub(super) async fn most<T, E, F>(asked: impl IntoIterator<Item = F>) -> (Option<T>, Vec<E>)
where
    T: Eq + Hash,
    F: Future<Output = Result<T, E>>,
{
    let mut answers: FuturesUnordered<F> = asked.into_iter().collect();
    let all = answers.len();
    let mut votes: HashMap<T, usize> = HashMap::new();
    let mut reasons = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => *votes.entry(answer).or_default() += 1,
            Err(reason) => reasons.push(reason),
        }
        if votes.values().any(|votes| votes * 2 > all) {
            break;
        }
    }
    let said = votes.into_iter().max_by_key(|(_, votes)| *votes);
    (said.map(|(answer, _)| answer), reasons)
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    type Answer = Pin<Box<dyn Future<Output = Result<u8, u8>>>>;

    fn says(answer: Result<u8, u8>) -> Answer {
        Box::pin(std::future::ready(answer))
    }

    #[tokio::test]
    async fn most_are_believed_and_the_others_are_not_waited_for() {
        let silent: Answer = Box::pin(std::future::pending());
        assert_eq!(most([silent, says(Ok(1)), says(Ok(1))]).await, (Some(1), vec![]));
        let (said, reasons) = most([says(Err(9)), says(Ok(2)), says(Err(9))]).await;
        assert_eq!((said, reasons), (Some(2), vec![9, 9]));
        assert_eq!(most::<u8, u8, Answer>([]).await, (None, vec![]));
    }
}
