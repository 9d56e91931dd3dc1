//! A round: topics, table and workers of its own on a stack that stays, a load, the faults of its plan, the verdict.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use redis::Commands as _;

use super::acts::act;
use super::judge::{self, LIMITED, Verdict};
use super::plan::{PARTITIONS, Plan};
use super::world::{Hit, World, lock};
use crate::harness::Scene;
use crate::harness::stack::{PrivateStack, Service};
use crate::harness::wait::eventually;

const BROKERS: i32 = 3;
/// After the last fault, on a machine that is busy with other things.
const SETTLES_WITHIN: Duration = Duration::from_mins(4);

/// What became of a round.
pub(super) struct Outcome {
    pub(super) seed: u64,
    pub(super) hits: Vec<Hit>,
    pub(super) exact: bool,
    pub(super) took: Duration,
}

/// A stack as rounds need it. Redis may forget nothing when it is killed.
pub(super) fn stack() -> PrivateStack {
    PrivateStack::up_with(&["--kafka-brokers", "3", "--redis-fsync", "always"])
}

/// Plays a round and prints what happened.
pub(super) fn play(plan: &Plan, stack: &PrivateStack, without: &str) -> Outcome {
    let began = Instant::now();
    eprintln!("\n=== {plan}");
    let mut hits = Vec::new();
    // A panic is a verdict, too; the scene that it passes through keeps the workers' logs.
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        for service in [Service::Kafka, Service::Redis, Service::ClickHouse] {
            stack.start(service);
        }
        let mut scene = Scene::beside(stack, &format!("chaos{}", plan.seed), PARTITIONS, BROKERS);
        scene.set("kafka.options", plan.protocol.options());
        scene.set("batch.max_age_ms", &plan.age_ms.to_string());
        scene.set_deadline(plan.deadline);
        judge::prepare(&scene);
        if let Some(limit) = plan.limit {
            let key = scene.key(&format!("config:rate_limit:{{{LIMITED}}}"));
            scene.redis().set::<_, _, ()>(key, limit).unwrap();
        }
        let world = World::new(plan, stack, scene, without);
        let ended = catch_unwind(AssertUnwindSafe(|| disturbed(&world)));
        hits = std::mem::take(&mut *lock(&world.hits));
        hits.sort_by_key(|hit| hit.met.at);
        let mut verdict = ended.unwrap_or_else(|panic| Verdict {
            ledger: "none".to_owned(),
            problems: vec![judge::message(&*panic)],
        });
        for hit in &hits {
            eprintln!("{}", line(hit));
        }
        eprintln!("    {}", verdict.ledger);
        if !verdict.problems.is_empty() {
            judge::keep_logs(&stack.folder(), world.scene.folder());
            verdict
                .problems
                .push(format!("all logs are in {}", world.scene.folder().display()));
        }
        assert!(
            verdict.problems.is_empty(),
            "seed {}: {}",
            plan.seed,
            verdict.problems.join("\n  ")
        );
    }));
    let exact = outcome.is_ok();
    if let Err(panic) = outcome {
        eprintln!("NOT EXACT: {}", judge::message(&*panic));
        eprintln!("    the schedule was:");
        for planned in &plan.faults {
            eprintln!("    after {:>6} records: {:?}", planned.after, planned.fault);
        }
    }
    let took = began.elapsed();
    eprintln!(
        "    {} in {:.0} s",
        if exact { "exact" } else { "NOT EXACT" },
        took.as_secs_f64()
    );
    Outcome {
        seed: plan.seed,
        hits,
        exact,
        took,
    }
}

fn line(hit: &Hit) -> String {
    let in_flight = match hit.met.in_flight {
        Some(n) => format!("{n:>6} in flight"),
        None => "   not counted".to_owned(),
    };
    format!(
        "  {:>5.1} s {:>6} records {in_flight}  {}  {}",
        hit.met.at.as_secs_f64(),
        hit.met.landed,
        hit.what,
        hit.met.note
    )
}

/// The load and all faults, until the group has settled; then the verdict.
fn disturbed(world: &World<'_>) -> Verdict {
    world.fill();
    let sent = std::thread::scope(|scope| {
        let produced = scope.spawn(|| world.produce());
        scope.spawn(|| world.watch());
        // Also where a fault panics: the scope waits for both.
        let end = EndOnDrop(world);
        let faults: Vec<_> = world
            .plan
            .faults
            .iter()
            .map(|planned| scope.spawn(move || act(world, planned)))
            .collect();
        let panics: Vec<_> = faults
            .into_iter()
            .filter_map(|fault| fault.join().err())
            .collect();
        drop(end);
        if let Some(panic) = panics.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
        produced.join().unwrap()
    });
    eventually("the cluster is whole", SETTLES_WITHIN, || {
        world.scene.kafka.is_whole()
    });
    world.scene.settled_within(SETTLES_WITHIN);
    world.no_insert_runs();
    let mut alive = Vec::new();
    for mut member in world.take_all() {
        let log = member.worker.log.clone();
        let ended = member.worker.ended();
        assert!(
            ended.is_none(),
            "a worker ended by itself with {ended:?}: {}",
            log.display()
        );
        alive.push(member);
    }
    for member in alive {
        member.terminate();
    }
    judge::judge(world, &sent)
}

struct EndOnDrop<'a>(&'a World<'a>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}
