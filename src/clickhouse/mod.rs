//! The way to `ClickHouse`: the client, what its errors mean, the schema, settings, and rows as bytes.
//!
//! Never decides what is written: that is the pipeline's.

pub mod error;
pub mod rows;
pub mod schema;
pub mod settings;

use crate::config;

pub use ::clickhouse::Client;

/// A client for the configured server and database. It connects at its first use.
pub fn client(config: &config::ClickHouse) -> Client {
    let client = Client::default()
        .with_url(config.url.expose().as_str())
        .with_user(config.user.as_str())
        .with_password(config.password.expose())
        .with_database(config.database.as_str());
    settings::all(client)
}

/// A name or text as a quoted identifier.
pub fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

/// Text as a quoted string literal.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}
