//! `sluice check`: the effective configuration, and whether each service can be worked with.
//!
//! Changes nothing anywhere. Each service has a file that turns its answers into findings; what they judge
//! by is pure and tested there.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use futures::FutureExt;
use futures::future::LocalBoxFuture;

use super::{CliError, print};
use crate::config::Config;

mod clickhouse;
mod kafka;
mod redis;
mod redis_marks;
mod redis_mode;
mod redis_overrides;
mod redis_state;
mod redis_walk;

/// For one question to a service.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// For all questions to one service; they are asked at the same time, so this bounds the command.
const SERVICE_TIMEOUT: Duration = Duration::from_secs(40);
/// How often a service is asked for its time.
const CLOCK_QUESTIONS: usize = 5;
/// Clocks further apart are worth a look.
const CLOCK_WARNING_SECONDS: f64 = 1.0;

/// `sluice check` has no arguments of its own.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// How bad a finding is, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Good,
    Warning,
    Problem,
}

/// One thing found out about a service.
#[derive(Debug)]
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    detail: String,
    remedy: String,
}

/// Everything found out about one service.
#[derive(Debug)]
struct Report {
    service: &'static str,
    address: String,
    findings: Vec<Finding>,
}

/// Prints the configuration, tries the services, prints what was found.
pub async fn run(config: Config, _args: Args) -> Result<ExitCode, CliError> {
    let shown = config
        .to_toml()
        .map_err(|error| anyhow::Error::new(error).context("cannot show the configuration"))?;
    print(&format!("# effective configuration, secrets hidden\n{shown}\n"))?;

    let (kafka, redis, cache, clickhouse) = tokio::join!(
        within(
            "kafka",
            config.kafka.brokers.clone(),
            kafka::check(&config.kafka).boxed_local()
        ),
        within(
            "redis",
            config.redis.url.to_string(),
            redis::check(&config).boxed_local()
        ),
        async {
            match &config.redis.cache_url {
                Some(url) => Some(
                    within(
                        "redis (cache)",
                        url.to_string(),
                        redis::check_cache(&config).boxed_local(),
                    )
                    .await,
                ),
                None => None,
            }
        },
        within(
            "clickhouse",
            config.clickhouse.url.to_string(),
            clickhouse::check(&config.clickhouse).boxed_local()
        ),
    );
    let reports: Vec<Report> = [Some(kafka), Some(redis), cache, Some(clickhouse)]
        .into_iter()
        .flatten()
        .collect();
    // The texts of client libraries are not ours to trust with a secret.
    print(&config.scrub(&render(&reports)))?;
    let problems = problems(&reports);
    if problems.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(anyhow::anyhow!("{}", config.scrub(&problems.join("\nsluice: "))).into())
}

async fn within(service: &'static str, address: String, check: LocalBoxFuture<'_, Vec<Finding>>) -> Report {
    let findings = tokio::time::timeout(SERVICE_TIMEOUT, check)
        .await
        .unwrap_or_else(|_| {
            vec![Finding::unreachable(format!(
                "no answer within {} s",
                SERVICE_TIMEOUT.as_secs()
            ))]
        });
    Report {
        service,
        address,
        findings,
    }
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Good => "ok",
            Self::Warning => "warning",
            Self::Problem => "PROBLEM",
        }
    }
}

impl Finding {
    fn is_good(&self) -> bool {
        self.verdict == Verdict::Good
    }

    fn good(subject: &'static str, detail: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Good,
            detail: detail.into(),
            remedy: String::new(),
        }
    }

    fn warning(subject: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Warning,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn problem(subject: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            subject,
            verdict: Verdict::Problem,
            detail: detail.into(),
            remedy: remedy.into(),
        }
    }

    fn unreachable(detail: impl Into<String>) -> Self {
        Self::problem(
            "connection",
            detail,
            "start it, or correct its address or credentials",
        )
    }
}

fn problems(reports: &[Report]) -> Vec<String> {
    let sentence = |report: &Report, finding: &Finding| {
        format!(
            "{} at {}: {}: {}",
            report.service, report.address, finding.subject, finding.detail
        )
    };
    reports
        .iter()
        .flat_map(|report| report.findings.iter().map(move |finding| (report, finding)))
        .filter(|(_, finding)| finding.verdict == Verdict::Problem)
        .map(|(report, finding)| sentence(report, finding))
        .collect()
}

fn render(reports: &[Report]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(["service", "what", "", "found", "what to do"]);
    for Report {
        service,
        address,
        findings,
    } in reports
    {
        table.add_row([*service, "address", "", address, ""]);
        for Finding {
            subject,
            verdict,
            detail,
            remedy,
        } in findings
        {
            table.add_row([*service, subject, verdict.word(), detail, remedy]);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// Microseconds since 1970, by this machine's clock.
fn now_micros() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_micros() as i64)
}

/// How far this clock is ahead of a service's, in seconds. `ask` answers the service's time in microseconds.
///
/// The answer that came soonest says it best: others wait for a connection that opens, or for this program, which asks
/// all services at the same time.
async fn clock_difference<E>(ask: impl AsyncFn() -> Result<i64, E>) -> Result<f64, E> {
    let mut best: Option<(Duration, f64)> = None;
    for _ in 0..CLOCK_QUESTIONS {
        let (begun, before) = (Instant::now(), now_micros());
        let service = ask().await?;
        let took = begun.elapsed();
        if best.is_none_or(|(soonest, _)| took < soonest) {
            best = Some((took, ahead_by(before, service, took)));
        }
    }
    Ok(best.map_or(0.0, |(_, difference)| difference))
}

/// The same from one answer, which was asked for at `before` by this clock and took so long.
fn ahead_by(before: i64, service: i64, took: Duration) -> f64 {
    let ours = before + took.as_micros() as i64 / 2;
    (ours - service) as f64 / 1e6
}

/// What a difference of clocks means for inserts, which a table refuses when their time is off by the deadline.
fn clock_finding(difference: f64, deadline_seconds: u32) -> Finding {
    let detail = format!("this machine is {difference:+.3} s from it");
    let remedy = "synchronise the clocks (NTP) of both machines";
    if difference.abs() > f64::from(deadline_seconds) / 2.0 {
        let detail =
            format!("{detail}, more than half of clickhouse.insert_deadline_seconds = {deadline_seconds}");
        Finding::problem("clock", detail, remedy)
    } else if difference.abs() > CLOCK_WARNING_SECONDS {
        Finding::warning("clock", detail, remedy)
    } else {
        Finding::good("clock", detail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_by_the_deadline() {
        for (seconds, verdict) in [
            (0.2, Verdict::Good),
            (-0.9, Verdict::Good),
            (1.5, Verdict::Warning),
            (-29.0, Verdict::Warning),
            (31.0, Verdict::Problem),
            (-31.0, Verdict::Problem),
        ] {
            assert_eq!(clock_finding(seconds, 60).verdict, verdict, "{seconds}");
        }
    }

    #[test]
    fn a_clock_is_compared_with_the_middle_of_the_question() {
        let difference = ahead_by(1_000_000, 500_000, Duration::from_secs(2));
        assert!((difference - 1.5).abs() < 1e-9, "{difference}");
    }

    #[tokio::test]
    async fn what_a_connection_takes_to_open_is_no_difference_of_clocks() {
        let opened = std::sync::atomic::AtomicBool::new(false);
        let ask = async || {
            if !opened.swap(true, std::sync::atomic::Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            Ok::<_, ()>(now_micros())
        };
        let difference = clock_difference(ask).await.unwrap();
        assert!(difference.abs() < 0.1, "{difference}");
    }

    #[test]
    fn problems_name_service_and_address() {
        let reports = [Report {
            service: "redis",
            address: "redis://:***@cache:6379".to_owned(),
            findings: vec![
                Finding::good("a", "b"),
                Finding::unreachable("connection refused"),
            ],
        }];
        assert_eq!(
            problems(&reports),
            ["redis at redis://:***@cache:6379: connection: connection refused"]
        );
        let table = render(&reports);
        assert!(
            table.contains("redis://:***@cache:6379") && table.contains("connection refused"),
            "{table}"
        );
    }
}
