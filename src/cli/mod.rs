//! The command line: arguments and configuration in, an exit code out.
//!
//! Owns what all commands share: the global flags, the configuration that each of them refuses alike, and the
//! exit codes (0 done, 1 failed, 2 bad usage or configuration). A command is a file with `Args` and
//! `pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError>`, a variant of `Command` and a
//! line of [`Invocation::run`].

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub(crate) use crate::causes::with_causes;
use crate::config::{Config, ConfigError};
use crate::telemetry::{self, LogFormat};

pub mod check;
pub mod generate;
pub mod migrate;
pub mod plan;
mod progress;
pub mod run;
pub mod tasks;
pub mod verify;

const FAILED: u8 = 1;
const REFUSED: u8 = 2;

/// Exactly-once event ingestion from Kafka through Redis into ClickHouse.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Configuration, a TOML file. Each key is overridden by the variable `SLUICE_<SECTION>__<KEY>`.
    #[arg(long, global = true, value_name = "FILE", env = "SLUICE_CONFIG")]
    config: Option<PathBuf>,
    /// How logs are written to standard error; auto: text on a terminal, JSON elsewhere.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "auto")]
    log_format: LogFormat,
    /// What is logged: error, warn, info, debug or trace, or a filter such as `info,sluice::kafka=debug`.
    #[arg(
        long,
        global = true,
        value_name = "LEVEL",
        env = "RUST_LOG",
        default_value = "info",
        value_parser = log_filter
    )]
    log_level: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the effective configuration and try each service.
    Check(check::Args),
    /// Send made-up records to the topic, for demonstrations, tests and benchmarks.
    Generate(generate::Args),
    /// Process events (worker), answer queries (api), run background tasks (tasks), or all of it.
    Run(run::Args),
    /// Create the database and the tables where they are missing.
    Migrate,
    /// Estimate what a load takes of Redis, Kafka, the workers and ClickHouse.
    Plan(plan::Args),
    /// List background tasks, add some, and retry or drop those that were given up.
    Tasks(tasks::Args),
    /// Settle every record's outcome from the destinations themselves; exit code 1 if one is missing or twice.
    Verify(verify::Args),
}

/// Why a command ends without success; decides the exit code.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration is refused: exit code 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The arguments make no sense together: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The work could not be done: exit code 1.
    #[error(transparent)]
    Failure(#[from] anyhow::Error),
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Usage(_) => REFUSED,
            Self::Failure(_) => FAILED,
        }
    }
}

/// A command with everything it needs, ready to run.
#[derive(Debug)]
pub struct Invocation {
    config: Config,
    command: Command,
}

/// Reads arguments and configuration and sets up the logs. What is wrong with them is told on standard error
/// before the exit code is returned; so is `--help`.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Invocation, ExitCode> {
    let cli = Cli::try_parse_from(args).map_err(|error| {
        // Nobody is left to be told that the message could not be written.
        error.print().ok();
        ExitCode::from(error.exit_code() as u8)
    })?;
    prepare(cli).map_err(|error| fail(&error))
}

fn prepare(cli: Cli) -> Result<Invocation, CliError> {
    let Global {
        config,
        log_format,
        log_level,
    } = cli.global;
    let config = Config::load(config.as_deref())?;
    let filter = telemetry::log_filter(&log_level).map_err(CliError::Usage)?;
    telemetry::init_logs(log_format, filter).map_err(anyhow::Error::from)?;
    Ok(Invocation {
        config,
        command: cli.command,
    })
}

impl Invocation {
    /// Runs the command to its end.
    pub async fn run(self) -> ExitCode {
        let Self { config, command } = self;
        let result = match command {
            Command::Check(args) => check::run(config, args).await,
            Command::Generate(args) => generate::run(config, args).await,
            Command::Run(args) => run::run(config, args).await,
            Command::Migrate => migrate::run(config).await,
            Command::Plan(args) => plan::run(config, args).await,
            Command::Tasks(args) => tasks::run(config, args).await,
            Command::Verify(args) => verify::run(config, args).await,
        };
        result.unwrap_or_else(|error| fail(&error))
    }
}

/// Tells an error, with its causes, and gives the exit code that belongs to it.
pub fn fail(error: &CliError) -> ExitCode {
    let text = match error {
        CliError::Failure(error) => with_causes(error.as_ref()),
        CliError::Config(_) | CliError::Usage(_) => error.to_string(),
    };
    writeln!(io::stderr(), "sluice: {text}").ok();
    ExitCode::from(error.exit_code())
}

/// Writes a result to standard output. A reader that has enough (`sluice check | head`) is no failure.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(anyhow::Error::new(error)
            .context("cannot write to standard output")
            .into()),
        _ => Ok(()),
    }
}

/// An empty `RUST_LOG` is how an environment says "not set".
fn log_filter(text: &str) -> Result<String, String> {
    let text = if text.trim().is_empty() { "info" } else { text };
    telemetry::log_filter(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_cause_is_told_once_and_without_its_advice() {
        let error = anyhow::anyhow!("password is wrong\n\nTo reset it, see\nthe manual")
            .context("refused: password is wrong")
            .context("cannot migrate");
        assert_eq!(
            with_causes(error.as_ref()),
            "cannot migrate: refused: password is wrong"
        );
    }

    #[test]
    fn the_file_is_named_before_or_after_the_command() {
        for args in [
            ["sluice", "--config", "a.toml", "check"],
            ["sluice", "check", "--config", "a.toml"],
        ] {
            let cli = Cli::try_parse_from(args).unwrap();
            assert_eq!(cli.global.config, Some(PathBuf::from("a.toml")));
        }
    }

    #[test]
    fn usage_and_configuration_end_with_2_and_failures_with_1() {
        for args in [
            vec!["sluice", "chekc"],
            vec!["sluice"],
            vec!["sluice", "check", "--log-level", "a=b=c"],
            vec!["sluice", "check", "--log-level", "loud"],
        ] {
            assert_eq!(Cli::try_parse_from(&args).unwrap_err().exit_code(), 2, "{args:?}");
        }
        assert_eq!(CliError::Usage(String::new()).exit_code(), 2);
        assert_eq!(CliError::from(anyhow::anyhow!("x")).exit_code(), 1);
        let missing = Cli::try_parse_from(["sluice", "check", "--config", "/nowhere.toml"]).unwrap();
        assert_eq!(prepare(missing).unwrap_err().exit_code(), 2);
    }
}
