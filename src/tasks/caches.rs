//! `refresh-query` and `warm-cache`: results of the read API's queries, made before somebody waits for them.

use super::held::{Held, TaskError};
use super::task::{Query, Token};
use crate::api::{Api, ahead};
use crate::config::Config;

#[derive(Debug)]
pub(super) struct Caches {
    api: Api,
}

impl Caches {
    pub(super) fn new(config: &Config) -> ::redis::RedisResult<Self> {
        Ok(Self {
            api: Api::new(config)?,
        })
    }

    /// Makes one result anew.
    pub(super) async fn refresh(&self, query: &Query) -> Result<(), TaskError> {
        ahead::refresh(&self.api, &query.token, &query.query).await
    }

    /// Makes those results anew that a token asked for in the last hour, and that are gone or old.
    pub(super) async fn warm(&self, token: &Token, held: &Held) -> Result<(), TaskError> {
        let queries = ahead::asked_lately(&self.api, &token.token).await?;
        let total = queries.len() as u64;
        for (done, query) in queries.iter().enumerate() {
            if ahead::is_old(&self.api, &token.token, query).await {
                ahead::refresh(&self.api, &token.token, query).await?;
            }
            held.tell(done as u64 + 1, Some(total)).await;
        }
        Ok(())
    }
}
