//! Slots of a Redis Cluster on their way from node to node, a key at a time, under a storm of claims: each event has one
//! owner, whatever half of its slot's keys is where.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use sluice::pipeline::claim::{Claim, Claims, Wanted};
use sluice::redis::Redis;
use sluice::redis::keys::Keys;
use tokio::runtime::Runtime;

use crate::harness::Scene;
use crate::harness::events::{Ledger, check_remembered};
use crate::harness::load::under_load;
use crate::harness::redis_server::Server;
use crate::harness::redises::{Redises, SLOTS};
use crate::tasks::{added, all_rebuilt, people, runner, state_becomes};

const PRIMARIES: usize = 3;
const CLIENTS: usize = 2;
/// So that a shard has ten and more buckets in the end.
const IDS: u32 = 300_000;
const SLOTS_MOVED: usize = 16;
/// Between two keys of a slot.
const PAUSE: Duration = Duration::from_millis(2);
/// No call of a client waits longer than a slot is on its way.
const PATIENCE: Duration = Duration::from_mins(1);

/// Where slots are moved to. To one server alone: its epoch is above the others' then, which a late word of the server that
/// gave a slot away cannot take back.
const TARGET: usize = PRIMARIES - 1;

/// Where a slot is, if none was moved yet.
fn first_owner(slot: u16) -> usize {
    usize::from(slot) / usize::from(SLOTS).div_ceil(PRIMARIES)
}

/// Of the slots of these keys some that are not at the target yet.
fn slots_of(scene: &Scene, keys: &[String], most: usize) -> Vec<u16> {
    let servers = &scene.redises.as_ref().unwrap().servers;
    let mut connection = servers[0].connect();
    let mut slots: Vec<u16> = Vec::new();
    for key in keys {
        let mut ask = redis::cmd("CLUSTER");
        let slot = ask
            .arg("KEYSLOT")
            .arg(scene.key(key))
            .query(&mut connection)
            .unwrap();
        if !slots.contains(&slot) && first_owner(slot) != TARGET {
            slots.push(slot);
        }
        if slots.len() == most {
            break;
        }
    }
    slots
}

/// Moves slots to the target, their keys in this or that order: what a script names may go first, or last.
fn move_slots(redises: &Redises, slots: &[u16]) -> usize {
    let mut random = StdRng::seed_from_u64(5);
    let mut moved = 0;
    for (n, slot) in slots.iter().enumerate() {
        let servers: (&Server, &Server) = (&redises.servers[first_owner(*slot)], &redises.servers[TARGET]);
        let order = |keys: &mut Vec<Vec<u8>>| {
            moved += keys.len();
            keys.sort_by_key(Vec::len);
            match n % 3 {
                0 => {}
                1 => keys.reverse(),
                _ => keys.shuffle(&mut random),
            }
        };
        redises.move_slot(*slot, servers, order, || std::thread::sleep(PAUSE));
    }
    moved
}

/// What a client knows of an event: the coordinate of its owner, or that it is somebody else's.
type Known = HashMap<u128, Option<i64>>;

/// Claims until it is over; answers what it has learnt. Every answer is held to those before.
fn storm(
    scene: &Scene,
    secret: Option<[u8; 16]>,
    client: usize,
    over: &AtomicBool,
) -> (Known, usize, usize, Duration) {
    let runtime = Runtime::new().unwrap();
    let settings = scene.redis_settings();
    let redis = runtime.block_on(async { Redis::open(&settings, 2).unwrap() });
    let claims = Claims::new(Keys::new(&scene.key("")), 86_400, secret.as_ref());
    let tokens = ["t".to_owned()];
    let mut random = StdRng::seed_from_u64(client as u64);
    let (mut known, mut wrong, mut failed, mut longest) = (Known::new(), 0, 0, Duration::ZERO);
    let mut coordinate = client as i64;
    while !over.load(Ordering::Relaxed) {
        let wanted: Vec<Wanted> = (0..1_000)
            .map(|_| {
                coordinate += CLIENTS as i64;
                Wanted {
                    token: 0,
                    id: u128::from(random.random_range(0..IDS)),
                    coordinate,
                    takes_over: None,
                }
            })
            .collect();
        let begun = Instant::now();
        let answers = loop {
            match runtime.block_on(claims.claim(&redis, &tokens, &wanted)) {
                Ok(answers) => break answers,
                Err(error) => {
                    assert!(begun.elapsed() < PATIENCE, "{error}");
                    failed += 1;
                }
            }
        };
        longest = longest.max(begun.elapsed());
        for (want, claim) in wanted.iter().zip(answers) {
            let ours = claim == Claim::Ours;
            match known.get(&want.id) {
                None => drop(known.insert(want.id, ours.then_some(want.coordinate))),
                Some(owner) => wrong += usize::from(ours != (*owner == Some(want.coordinate))),
            }
        }
    }
    (known, wrong, failed, longest)
}

fn slots_move_under_a_storm(secret: Option<[u8; 16]>) {
    // The claims are this process's: `FAILPOINTS=without-whole-slots=return` must make this fail.
    #[cfg(feature = "faults")]
    let _faults = std::env::var_os("FAILPOINTS").map(|_| sluice::faults::set_up());
    let name = if secret.is_some() {
        "movepacked"
    } else {
        "movekeys"
    };
    let scene = Scene::with_redis(name, 1, Redises::cluster(PRIMARIES, 0));
    let redises = scene.redises.as_ref().unwrap();
    let over = AtomicBool::new(false);
    let (moved, learnt) = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn({
                    let (scene, over) = (&scene, &over);
                    move || storm(scene, secret, client, over)
                })
            })
            .collect();
        let moving = scope.spawn(|| {
            let full = Instant::now();
            // Until a shard has some buckets; they go on being split while they move.
            let keys = loop {
                let keys = scene.keys();
                let enough = if secret.is_some() { 256 * 4 } else { 20_000 };
                if keys.len() >= enough || full.elapsed() > PATIENCE {
                    break keys;
                }
                std::thread::sleep(Duration::from_millis(200));
            };
            let slots = slots_of(&scene, &keys, SLOTS_MOVED);
            let begun = Instant::now();
            let moved = move_slots(redises, &slots);
            eprintln!(
                "{name}: {} ms to fill, {} ms to move",
                full.elapsed().saturating_sub(begun.elapsed()).as_millis(),
                begun.elapsed().as_millis()
            );
            moved
        });
        let moved = moving.join();
        over.store(true, Ordering::Relaxed);
        let learnt: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        (moved.unwrap(), learnt)
    });
    let mut owners: HashMap<u128, HashSet<i64>> = HashMap::new();
    let (mut wrong, mut failed, mut longest) = (0, 0, Duration::ZERO);
    for (known, own_wrong, own_failed, own_longest) in &learnt {
        wrong += own_wrong;
        failed += own_failed;
        longest = longest.max(*own_longest);
        for (id, owner) in known {
            owners.entry(*id).or_default().extend(owner);
        }
    }
    let not_one = owners.values().filter(|owners| owners.len() != 1).count();
    eprintln!(
        "{name}: {SLOTS_MOVED} slots with {moved} keys moved under {} events: {wrong} wrong answers, {not_one} events not \
         of one owner, {failed} calls repeated, the longest call {} ms",
        owners.len(),
        longest.as_millis()
    );
    assert!(moved > SLOTS_MOVED * 2 && owners.len() > 50_000);
    assert_eq!((wrong, not_one), (0, 0));
}

#[test]
fn packed_claims_are_exact_while_their_slots_move() {
    slots_move_under_a_storm(Some([7; 16]));
}

#[test]
fn claims_of_a_key_each_are_exact_while_their_slots_move() {
    slots_move_under_a_storm(None);
}

#[test]
fn slots_that_move_under_load_lose_and_repeat_nothing() {
    let scene = Scene::with_redis("moveload", 4, Redises::cluster(PRIMARIES, 0));
    let redises = scene.redises.as_ref().unwrap();
    let worker = scene.start().ready();
    let sent = under_load(&scene, || {
        scene.some_rows();
        let slots = slots_of(&scene, &scene.keys(), 60);
        let begun = Instant::now();
        let moved = move_slots(redises, &slots);
        eprintln!(
            "{} slots with {moved} keys moved in {} ms",
            slots.len(),
            begun.elapsed().as_millis()
        );
    });
    scene.settled();
    let redirects = worker.metric("sluice_redis_redirects_total");
    assert!(redirects.is_some_and(|n| n > 0.0), "{redirects:?}");
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
    assert_eq!(worker.terminate().code(), Some(0));
}

/// Longer than the leases of the tasks live.
const PAUSE_OF_TASKS: Duration = Duration::from_secs(3);

/// All keys of tasks are in one slot. It moves while a task runs, slower than its lease lives.
fn a_task_stays_where_it_is(name: &str, users_per_second: &str) {
    const TOKENS: [&str; 3] = ["a", "b", "c"];
    let scene = Scene::with_redis(name, 1, Redises::cluster(PRIMARIES, 0));
    people(&scene, &TOKENS, 500);
    let settings = [
        ("tasks.lease_seconds", "2"),
        ("tasks.users_per_second", users_per_second),
    ];
    let runs = scene.start_tasks(&settings).ready();
    let id = added(&scene, &["rebuild-users", "--all"]);
    runner(&scene, &id, &[&runs]);
    let other = scene.start_tasks(&settings).ready();
    let redises = scene.redises.as_ref().unwrap();
    let slot = slots_of(&scene, &["{task_queue}".to_owned()], 1)[0];
    let servers = (&redises.servers[first_owner(slot)], &redises.servers[TARGET]);
    let begun = Instant::now();
    redises.move_slot(
        slot,
        servers,
        |keys| keys.sort(),
        || std::thread::sleep(PAUSE_OF_TASKS),
    );
    eprintln!(
        "{name}: the tasks' slot moved in {} ms",
        begun.elapsed().as_millis()
    );
    assert!(begun.elapsed() > PAUSE_OF_TASKS * 2);
    state_becomes(&scene, &id, "done");
    for told in [
        "a tasks worker died with its task",
        "a lease ended while its task ran",
        "a task failed",
    ] {
        assert_eq!(scene.logged(told), 0, "{told}");
    }
    all_rebuilt(&scene, &TOKENS, 500);
    for worker in [runs, other] {
        assert_eq!(worker.terminate().code(), Some(0));
    }
}

#[test]
fn a_task_that_runs_while_the_slot_of_all_tasks_moves_stays_with_its_worker() {
    a_task_stays_where_it_is("movetask", "60");
}

#[test]
fn so_does_one_that_ends_meanwhile() {
    a_task_stays_where_it_is("moveend", "400");
}
