//! How logs are written: a lowercase fragment, with structured fields, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::TelemetryError;

/// How logs are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// A line of text for a reader.
    Text,
    /// An object a line for a machine.
    Json,
}

/// Sends logs to standard error, as standard output is for results. Events of the `log` crate, librdkafka's
/// among them, come along.
pub fn init_logs(format: LogFormat, filter: EnvFilter) -> Result<(), TelemetryError> {
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text | LogFormat::Auto if terminal || format == LogFormat::Text => {
            builder.with_ansi(terminal).finish().try_init()?;
        }
        _ => builder
            .json()
            .flatten_event(true)
            .with_span_list(false)
            .finish()
            .try_init()?,
    }
    Ok(())
}
