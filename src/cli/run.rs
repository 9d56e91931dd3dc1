//! `sluice run`: the long-running process, in the roles it was given.
//!
//! Owns the wiring and the order of start and stop. SIGTERM and SIGINT drain: what is being written is finished and
//! committed, the rest is left to whoever comes next. Metrics and health are served until everything else has ended.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::CliError;
use crate::api::{self, Api};
use crate::clickhouse;
use crate::config::{Config, OnRedisDown, WhenOver};
use crate::health::{self, Health, Prober, probes};
use crate::kafka::consumer;
use crate::kafka::producer::Rejects;
use crate::pipeline::Worker;
use crate::redis::sample::Sampler;
use crate::redis::{Redis, Settings};
use crate::tasks;
use crate::telemetry::{self, RedisServer, Service};

/// How long leaving the group may take once everything is drained.
const LEAVING: Duration = Duration::from_secs(4);

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Takes events from Kafka to ClickHouse.
    Worker,
    /// Answers queries over HTTP.
    Api,
    /// Runs background tasks.
    Tasks,
}

/// Arguments of `sluice run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What this process does, separated by commas [default: everything].
    #[arg(long = "role", value_name = "ROLE", value_enum, value_delimiter = ',')]
    roles: Vec<Role>,
}

impl Args {
    fn has(&self, role: Role) -> bool {
        self.roles.is_empty() || self.roles.contains(&role)
    }
}

/// Runs until a signal asks it to end, or a role cannot go on.
pub async fn run(config: Config, args: Args) -> Result<ExitCode, CliError> {
    let metrics = telemetry::install_metrics().context("metrics cannot be kept")?;
    let terminate = signal(SignalKind::terminate()).context("SIGTERM cannot be heard")?;
    let interrupt = signal(SignalKind::interrupt()).context("SIGINT cannot be heard")?;
    let shutdown = CancellationToken::new();
    let ended = CancellationToken::new();

    let needed: &[Service] = if args.has(Role::Worker) {
        Service::ALL
    } else {
        &[Service::Redis, Service::ClickHouse]
    };
    let health = Health::new(needed);
    let admin = health::bind("http.admin_listen", config.http.admin_listen)
        .await
        .context("cannot serve")?;
    let rejects = if args.has(Role::Worker) {
        Some(Rejects::new(&config.kafka).context("the Kafka producer cannot be made")?)
    } else {
        None
    };
    let probing = prober(&config, &health, rejects.clone())?;
    let api = if args.has(Role::Api) {
        let listener = health::bind("http.listen", config.http.listen)
            .await
            .context("cannot serve")?;
        Some((
            listener,
            Api::new(&config).context("redis.url or redis.cache_url cannot be used")?,
        ))
    } else {
        None
    };

    tracing::info!(address = %config.http.admin_listen, "serving metrics and health");
    if api.is_some() {
        tracing::info!(address = %config.http.listen, "serving the read API");
        if config.api.keys.is_empty() {
            tracing::warn!("api.keys is empty: the read API will refuse every request");
        }
    }
    let admin = tokio::spawn(health::serve(
        admin,
        Arc::clone(&health),
        metrics,
        ended.clone().cancelled_owned(),
    ));
    let probing = tokio::spawn(probing.run());
    let sampling = sampling(&config, &health)?;
    let signals = tokio::spawn(cancel_on_signal(terminate, interrupt, shutdown.clone()));
    let serving = async {
        match api {
            Some((listener, api)) => {
                let served = api::serve(listener, api, shutdown.cancelled()).await;
                // Without it the process is not what it was asked to be: let the worker drain, and say so.
                shutdown.cancel();
                served.context("the API cannot be served")
            }
            None => Ok(()),
        }
    };
    let tasking = async {
        if !args.has(Role::Tasks) {
            return Ok(());
        }
        let served = tasks::serve(config.clone(), shutdown.clone()).await;
        shutdown.cancel();
        served.context("tasks cannot be run")
    };
    let working = async {
        if let Some(rejects) = rejects {
            let worked = work(config.clone(), &health, rejects, &shutdown).await;
            shutdown.cancel();
            worked
        } else {
            shutdown.cancelled().await;
            Ok(())
        }
    };
    let (served, worked, tasked) = tokio::join!(serving, working, tasking);
    signals.abort();
    probing.abort();
    drop(sampling);
    ended.cancel();
    admin
        .await
        .context("the admin server panicked")?
        .context("metrics and health cannot be served")?;
    worked?;
    served?;
    tasked?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The worker role: until shutdown, or for good reason not.
async fn work(
    config: Config,
    health: &Arc<Health>,
    rejects: Rejects,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    health.starting(true);
    let starting = Worker::start(config, Arc::clone(health), rejects);
    let worker = tokio::select! {
        // Waiting for a service that is down ends with the process.
        () = shutdown.cancelled() => return Ok(()),
        worker = starting => Arc::new(worker.context("the worker does not start")?),
    };
    health.starting(false);
    let kafka = &worker.config.kafka;
    tracing::info!(
        topic = kafka.topic,
        group = kafka.group_id,
        incarnation = kafka.incarnation,
        "the worker starts"
    );
    let (polling, stop, runtime) = (Arc::clone(&worker), shutdown.clone(), Handle::current());
    let (done, ended) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("sluice-poll".to_owned())
        .spawn(move || {
            let outcome = consumer::run(&polling, &runtime, &stop);
            // The receiver lives as long as the command.
            drop(done.send(outcome));
        })
        .context("the polling thread cannot be started")?;
    let overdue = async {
        shutdown.cancelled().await;
        tokio::time::sleep(Duration::from_secs(worker.config.worker.drain_seconds) + LEAVING).await;
    };
    tokio::select! {
        outcome = ended => {
            health.polling_ended();
            outcome.context("the polling thread panicked")?.context("the worker cannot go on")
        }
        () = overdue => {
            // A broker that is gone holds the client up; what was not settled is recovered by the next owner.
            tracing::warn!("the group could not be left in good order");
            Ok(())
        }
    }
}

fn prober(config: &Config, health: &Arc<Health>, rejects: Option<Rejects>) -> anyhow::Result<Prober> {
    let redis = Settings::state(&config.redis)
        .and_then(|settings| Redis::open(&settings, 1))
        .context("redis.url cannot be used")?;
    let clickhouse = clickhouse::settings::reads(&clickhouse::client(&config.clickhouse))
        .with_setting("max_execution_time", "2");
    let prober = Prober::new(Arc::clone(health))
        .with(Service::Redis, move || probes::redis(redis.clone()))
        .with(Service::ClickHouse, move || {
            probes::clickhouse(clickhouse.clone())
        });
    let kafka = &config.kafka;
    let mut topics = vec![
        ("kafka.topic", kafka.topic.clone()),
        ("kafka.dead_letter_topic", kafka.dead_letter_topic.clone()),
    ];
    let limits = &config.rate_limit;
    // What was judged without Redis may be decided otherwise by the worker that recovers it.
    let is_needed = limits.when_over == WhenOver::Overflow || limits.allow_list;
    if limits.enabled && is_needed || limits.on_redis_down == OnRedisDown::Local {
        topics.push(("kafka.overflow_topic", kafka.overflow_topic.clone()));
    }
    let topics: Arc<[_]> = topics.into();
    Ok(match rejects {
        Some(rejects) => prober.with(Service::Kafka, move || {
            probes::kafka(rejects.clone(), Arc::clone(&topics))
        }),
        None => prober,
    })
}

/// Looks at each Redis now and then, until it is dropped.
fn sampling(config: &Config, health: &Arc<Health>) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let redis = &config.redis;
    if redis.sample_seconds == 0 {
        return Ok(tasks);
    }
    let mut servers = vec![(Settings::state(redis), RedisServer::State)];
    if redis.cache_url.is_some() {
        servers.push((Settings::cache(redis), RedisServer::Cache));
    }
    for (settings, server) in servers {
        let settings = settings.context("redis.url or redis.cache_url cannot be used")?;
        let connection = Redis::open(&settings, 1)
            .with_context(|| format!("the Redis of the {} cannot be looked at", server.name()))?;
        let sampler = Sampler::new(connection, server, &redis.key_prefix, Arc::clone(health));
        tasks.spawn(sampler.run(Duration::from_secs(u64::from(redis.sample_seconds))));
    }
    Ok(tasks)
}

async fn cancel_on_signal(mut terminate: Signal, mut interrupt: Signal, shutdown: CancellationToken) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("asked to stop; finishing what is being written");
    shutdown.cancel();
}
