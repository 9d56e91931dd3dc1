//! A question to several who may disagree, be gone, or be the same one under two names.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use ::redis::{Cmd, FromRedisValue as _, Pipeline, RedisResult, Value};
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use super::node::Node;

/// Asks all at the same time, until most of them have said the same or there is no more to hear. What was said most
/// often, and why others said nothing. Each says who it is, and has one voice however often it was asked.
pub(super) async fn most<V, T, E, F>(asked: impl IntoIterator<Item = F>) -> (Option<T>, Vec<E>)
where
    V: Eq + Hash,
    T: Eq + Hash,
    F: Future<Output = Result<(V, T), E>>,
{
    let mut answers: FuturesUnordered<F> = asked.into_iter().collect();
    let mut all = answers.len();
    let mut heard = HashSet::new();
    let mut votes: HashMap<T, usize> = HashMap::new();
    let mut reasons = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok((who, answer)) => {
                if heard.insert(who) {
                    *votes.entry(answer).or_default() += 1;
                } else {
                    all -= 1;
                }
            }
            Err(reason) => reasons.push(reason),
        }
        if votes.values().any(|votes| votes * 2 > all) {
            break;
        }
    }
    let said = votes.into_iter().max_by_key(|(_, votes)| *votes);
    (said.map(|(answer, _)| answer), reasons)
}

/// A server's answer to a question, and who it is by its own word (`MYID` of `kind`), for two names may lead to one server.
/// Where it does not tell that, its address stands for it.
pub(super) async fn told_by(node: &Node, question: &Cmd, kind: &str) -> RedisResult<(String, Value)> {
    let mut pipe = Pipeline::with_capacity(2);
    pipe.add_command(question.clone());
    pipe.cmd(kind).arg("MYID");
    let mut answers = node.ask(&pipe).await?.into_iter();
    let answer = answers.next().unwrap_or(Value::Nil).extract_error()?;
    let id = answers.next().and_then(|id| id.extract_error().ok());
    let id = id.and_then(|id| String::from_redis_value(id).ok());
    Ok((id.unwrap_or_else(|| node.address()), answer))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use super::*;

    type Answer = Pin<Box<dyn Future<Output = Result<(u8, u8), u8>>>>;

    fn says(answer: Result<(u8, u8), u8>) -> Answer {
        Box::pin(std::future::ready(answer))
    }

    #[tokio::test]
    async fn most_are_believed_and_the_others_are_not_waited_for() {
        let silent: Answer = Box::pin(std::future::pending());
        assert_eq!(
            most([silent, says(Ok((1, 1))), says(Ok((2, 1)))]).await,
            (Some(1), vec![])
        );
        let (said, reasons) = most([says(Err(9)), says(Ok((1, 2))), says(Err(9))]).await;
        assert_eq!((said, reasons), (Some(2), vec![9, 9]));
        assert_eq!(most::<u8, u8, u8, Answer>([]).await, (None, vec![]));
    }

    #[tokio::test]
    async fn who_is_asked_under_two_names_has_one_voice() {
        let old = || says(Ok((1, 0)));
        let (said, _) = most([old(), old(), old(), says(Ok((2, 5))), says(Ok((3, 5)))]).await;
        assert_eq!(said, Some(5));
    }
}
