//! `sluice migrate`: creates the database and the tables where they are missing.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{CliError, print};
use crate::clickhouse::{client, schema};
use crate::config::Config;

/// Runs the command; safe to run again, and by several at once.
pub async fn run(config: Config) -> Result<ExitCode, CliError> {
    let clickhouse = &config.clickhouse;
    let client = client(clickhouse);
    let (database, deadline) = (clickhouse.database.as_str(), clickhouse.insert_deadline_seconds);
    schema::migrate(&client, database, deadline)
        .await
        .with_context(|| format!("ClickHouse at {} cannot be migrated", clickhouse.url))?;
    // A table that was there already may enforce another deadline.
    if let Err(mismatch) = schema::compare(&client, database, deadline)
        .await
        .context("the table cannot be read")?
    {
        return Err(anyhow::Error::from(mismatch).into());
    }
    print(&format!("{database}.events is ready\n"))?;
    Ok(ExitCode::SUCCESS)
}
