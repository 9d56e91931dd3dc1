//! What each statement, each read and each insert of the protocol asks of the server, so that neither a user's profile nor the server's
//! changes what an answer or an acknowledgement means.
//!
//! Owns these settings, each with its reason. Never decides what is asked or inserted.

use std::collections::HashMap;
use std::time::Duration;

use ::clickhouse::Client;
use ::clickhouse::error::Result;

use super::literal;

/// How long a read may take. The table's order does not help those for a block's offsets: the older the table, the more
/// of it they scan.
pub const LONGEST_READ: Duration = Duration::from_mins(10);

/// Settings of every statement. These and [`READS`] are older than any server that one would run.
const ALL: [(&str, &str); 9] = [
    // Limits end a statement with an error, and not quietly with a part (`break`, `any`).
    ("timeout_overflow_mode", "throw"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("read_overflow_mode", "throw"),
    ("read_overflow_mode_leaf", "throw"),
    ("result_overflow_mode", "throw"),
    ("group_by_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    // An answer of before; and refused by system tables, and by others of these settings.
    ("use_query_cache", "0"),
    // A status of 200 that is sent before the statement is done would say nothing of its end.
    ("send_progress_in_http_headers", "0"),
];

/// Settings of every read of the protocol.
const READS: [(&str, &str); 27] = [
    // A table that a statement names at its beginning is known in all of it.
    ("enable_global_with_statement", "1"),
    // A replica that is behind refuses instead of answering with what it has.
    ("select_sequential_consistency", "1"),
    // Rows that an answer would lack. Merged as by FINAL,
    ("final", "0"),
    // cut off,
    ("limit", "0"),
    ("offset", "0"),
    // or filtered out.
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    // Rows that it would have too many: those that were deleted.
    ("apply_deleted_mask", "1"),
    // Other replicas answer for a part of the table, and may be behind.
    ("max_parallel_replicas", "1"),
    // Limits, and demands on how a query is run, that refuse an answer at every repeat.
    ("max_rows_to_read", "0"),
    ("max_bytes_to_read", "0"),
    ("max_rows_to_read_leaf", "0"),
    ("max_bytes_to_read_leaf", "0"),
    ("max_result_rows", "0"),
    ("max_result_bytes", "0"),
    ("max_rows_to_group_by", "0"),
    ("max_rows_in_set", "0"),
    ("max_partitions_to_read", "-1"),
    ("max_estimated_execution_time", "0"),
    // A block's events may all be asked for: `pipeline/claim/beyond.rs`.
    ("max_query_size", "1073741824"),
    ("force_primary_key", "0"),
    ("force_index_by_date", "0"),
    ("force_data_skipping_indices", ""),
    ("force_optimize_projection", "0"),
    // `max` would be of another type, and its bytes be read as something else.
    ("aggregate_functions_null_for_empty", "0"),
    // Whoever gave up asks again: two such queries at once would be one too many. Only what reads alone is cancelled.
    ("readonly", "2"),
    ("cancel_http_readonly_queries_on_client_close", "1"),
];

/// Settings of every insert. One insert must stay one block on the server, or its token would be remembered in parts.
const INSERTS: [(&str, &str); 11] = [
    // On by default since 26.3; asynchronous inserts coalesce, and are acknowledged under other tokens.
    ("async_insert", "0"),
    ("insert_deduplicate", "1"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1"),
    ("max_partitions_per_insert_block", "0"),
    ("max_insert_block_size", "1048449"),
    ("min_insert_block_size_rows", "1048449"),
    ("min_insert_block_size_bytes", "268435456"),
    ("max_insert_threads", "1"),
    // Rows of one block that the table's engine takes for the same would be one row before anybody has seen them.
    ("optimize_on_insert", "0"),
    // The bytes are of String where the table has LowCardinality(String).
    ("input_format_native_allow_types_conversion", "1"),
    // Columns that operators added have their defaults.
    ("input_format_defaults_for_omitted_fields", "1"),
];

/// More settings of every insert, on the servers that know them.
const RECENT_INSERTS: [(&str, &str); 4] = [
    // Comes before `insert_deduplicate`.
    ("deduplicate_insert", "enable"),
    // These split a block.
    ("max_insert_block_size_bytes", "0"),
    ("use_strict_insert_block_limits", "0"),
    // Types have their names in the bytes that are sent. Every row would be refused for good.
    ("input_format_native_decode_types_in_binary_format", "0"),
];

/// More settings of every insert into a replicated table, unless an operator has set them: only of inserts that were
/// written to a quorum, one after the other, does a replica know whether it has them all. `select_sequential_consistency`
/// does nothing about others.
const QUORUM: [(&str, &str); 2] = [("insert_quorum", "auto"), ("insert_quorum_parallel", "0")];

/// A client for statements of any kind.
pub fn all(client: Client) -> Client {
    with(client, &ALL)
}

/// The same for reads.
pub fn reads(client: &Client) -> Client {
    let seconds = LONGEST_READ.as_secs().to_string();
    with(client.clone().with_setting("max_execution_time", seconds), &READS)
}

fn with(client: Client, settings: &[(&str, &str)]) -> Client {
    settings
        .iter()
        .fold(client, |client, (name, value)| client.with_setting(*name, *value))
}

/// What inserts carry besides what all carry: it depends on the server and on the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additional(Vec<(&'static str, &'static str)>);

impl Additional {
    /// Asks the server which settings it knows, and which an operator has set.
    pub async fn ask(client: &Client, engine: &str) -> Result<Self> {
        let names: Vec<String> = RECENT_INSERTS
            .iter()
            .chain(&QUORUM)
            .map(|(name, _)| literal(name))
            .collect();
        let sql = format!(
            "SELECT name, changed FROM system.settings WHERE name IN ({})",
            names.join(", ")
        );
        let known: Vec<(String, u8)> = reads(client).query_raw(&sql).fetch_all().await?;
        let known = known.into_iter().map(|(name, changed)| (name, changed != 0));
        Ok(Self::of(engine, &known.collect()))
    }

    /// `known`: whether each setting that the server knows was set by an operator.
    fn of(engine: &str, known: &HashMap<String, bool>) -> Self {
        let recent = RECENT_INSERTS
            .into_iter()
            .filter(|(name, _)| known.contains_key(*name));
        // SharedMergeTree does without.
        let quorum = QUORUM
            .into_iter()
            .filter(|(name, _)| engine.starts_with("Replicated") && known.get(*name) == Some(&false));
        Self(recent.chain(quorum).collect())
    }
}

/// Settings of an insert, under a token or (where nothing is kept) under none. `patience` bounds it on the server: a
/// client's time-out does not stop an insert, it would land afterwards.
pub fn inserts(
    additional: &Additional,
    patience: Duration,
    token: Option<&str>,
) -> Vec<(&'static str, String)> {
    let token = token.map(|token| ("insert_deduplication_token", token.to_owned()));
    INSERTS
        .iter()
        .chain(&additional.0)
        .map(|(name, value)| (*name, (*value).to_owned()))
        .chain([("max_execution_time", patience.as_secs().max(1).to_string())])
        .chain(token)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(names: &[(&str, bool)]) -> HashMap<String, bool> {
        names
            .iter()
            .map(|(name, set)| ((*name).to_owned(), *set))
            .collect()
    }

    #[test]
    fn a_replicated_table_is_written_to_a_quorum_unless_an_operator_says_otherwise() {
        let quorum = |engine, set| {
            let known = known(&[("insert_quorum", set), ("insert_quorum_parallel", false)]);
            Additional::of(engine, &known).0
        };
        assert_eq!(quorum("ReplicatedReplacingMergeTree", false), QUORUM);
        assert_eq!(
            quorum("ReplicatedReplacingMergeTree", true),
            [("insert_quorum_parallel", "0")]
        );
        assert_eq!(quorum("ReplacingMergeTree", false), []);
        assert_eq!(quorum("SharedReplacingMergeTree", false), []);
    }

    #[test]
    fn a_server_is_not_asked_for_what_it_does_not_know() {
        let known = known(&[("deduplicate_insert", true)]);
        assert_eq!(
            Additional::of("ReplacingMergeTree", &known).0,
            [("deduplicate_insert", "enable")]
        );
    }

    #[test]
    fn no_setting_is_sent_twice() {
        let additional = Additional(RECENT_INSERTS.into_iter().chain(QUORUM).collect());
        let inserts = inserts(&additional, Duration::ZERO, Some("t"));
        let names = inserts.iter().map(|(name, _)| *name);
        let mut names: Vec<&str> = names.chain(ALL.map(|(name, _)| name)).collect();
        names.sort_unstable();
        assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
        assert!(inserts.contains(&("max_execution_time", "1".to_owned())));
    }
}
