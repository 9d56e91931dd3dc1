//! `sluice run`: the long-running process, in the roles it was given.
//!
//! Owns the wiring and the order of start and stop. SIGTERM and SIGINT drain: what is being written is finished and
//! committed, the rest is left to whoever comes next.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::config::Config;
use crate::health::{self, Health, Prober};
use crate::kafka::consumer;
use crate::pipeline::Worker;
use crate::telemetry::{self, Service};

/// A question to Kafka that the prober asks; below the prober's own time-out.
const KAFKA_PROBE: Duration = Duration::from_millis(2500);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Consumes events.
    Worker,
}

/// Arguments of `sluice run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What this process does, separated by commas; everything by default.
    #[arg(long = "role", value_enum, value_delimiter = ',', default_values = ["worker"])]
    roles: Vec<Role>,
}

/// Runs until a signal asks it to end, or a role cannot go on.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let metrics = telemetry::install_metrics().context("metrics")?;
    let shutdown = CancellationToken::new();
    let _signals = tokio::spawn(cancel_on_signal(shutdown.clone()));
    let health = Health::new(Service::ALL);
    let admin = health::bind("http.admin_listen", config.http.admin_listen)
        .await
        .context("cannot serve")?;
    let _admin = tokio::spawn(health::serve(
        admin,
        Arc::clone(&health),
        metrics,
        shutdown.clone().cancelled_owned(),
    ));

    if args.roles.contains(&Role::Worker) {
        work(config, &health, &shutdown).await?;
    }
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The worker role: until shutdown, or for good reason not.
async fn work(config: Config, health: &Arc<Health>, shutdown: &CancellationToken) -> Result<(), CliError> {
    let starting = Worker::start(config, Arc::clone(health));
    let worker = tokio::select! {
        // Waiting for a service that is down ends with the process.
        () = shutdown.cancelled() => return Ok(()),
        worker = starting => Arc::new(worker.map_err(anyhow::Error::from).context("the worker does not start")?),
    };
    let probing = tokio::spawn(prober(&worker, health).run());
    tracing::info!(
        topic = worker.config.kafka.topic,
        group = worker.config.kafka.group_id,
        "the worker starts"
    );
    let (polling, stop, runtime) = (Arc::clone(&worker), shutdown.clone(), Handle::current());
    let thread = std::thread::Builder::new().name("sluice-poll".to_owned());
    let (done, ended) = tokio::sync::oneshot::channel();
    thread
        .spawn(move || {
            let outcome = consumer::run(&polling, &runtime, &stop);
            // The receiver lives as long as the command.
            drop(done.send(outcome));
        })
        .context("the polling thread cannot be started")?;
    let outcome = ended.await.context("the polling thread panicked")?;
    health.polling_ended();
    probing.abort();
    outcome
        .map_err(anyhow::Error::from)
        .context("the worker cannot go on")?;
    Ok(())
}

fn prober(worker: &Arc<Worker>, health: &Arc<Health>) -> Prober {
    let (redis, clickhouse, kafka) = (Arc::clone(worker), Arc::clone(worker), Arc::clone(worker));
    Prober::new(Arc::clone(health))
        .with(Service::Redis, move || {
            let worker = Arc::clone(&redis);
            async move { worker.ping_redis().await }
        })
        .with(Service::ClickHouse, move || {
            let worker = Arc::clone(&clickhouse);
            async move { worker.ping_clickhouse().await }
        })
        .with(Service::Kafka, move || {
            let worker = Arc::clone(&kafka);
            async move {
                let ask = move || worker.rejects.probe(&worker.config.kafka.topic, KAFKA_PROBE);
                match tokio::task::spawn_blocking(ask).await {
                    Ok(Ok(partitions)) if partitions > 0 => Ok(()),
                    Ok(Ok(_)) => Err("the topic has no partitions".to_owned()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(error) => Err(error.to_string()),
                }
            }
        })
}

async fn cancel_on_signal(shutdown: CancellationToken) {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be listened for; the process ends only by force");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to stop; finishing what is being written");
    shutdown.cancel();
}
