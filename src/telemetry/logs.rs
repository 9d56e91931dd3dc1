//! How logs are written: a lowercase fragment, with structured fields, to standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;
use tracing_subscriber::filter::LevelFilter;
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

/// While a broker is gone, the clients' default context repeats "all brokers are down" here tens of times a second,
/// at the level of an error. The outage is told once by `health`, and its cause by librdkafka's own lines.
const CHATTER: &str = "rdkafka::client";

/// The filter that `text` asks for, less the clients' chatter, unless it names that.
pub fn log_filter(text: &str) -> Result<EnvFilter, String> {
    for part in text.split(',').map(str::trim) {
        // A lone word would be taken for a target, and everything else would be silent.
        if !part.is_empty() && !part.contains(['=', '[', ':']) && part.parse::<LevelFilter>().is_err() {
            return Err(format!(
                "{part:?} is neither a level (error, warn, info, debug, trace) nor TARGET=LEVEL"
            ));
        }
    }
    let filter = EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    if text.contains("rdkafka") {
        return Ok(filter);
    }
    let quiet: Directive = format!("{CHATTER}=off")
        .parse()
        .map_err(|error| format!("{error}"))?;
    Ok(filter.add_directive(quiet))
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
