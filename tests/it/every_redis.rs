//! The same on every Redis: claims in both layouts, on one server, behind sentinels and on a Cluster.
//!
//! What is tested stands beside the other tests of its part. Those of one mode share its servers.

use crate::claims::exact_claims;
use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};
use crate::harness::redises::{Mode, Redises};
use crate::limits::the_first_pass;
use crate::main_path::settles;
use crate::tasks::given_back;

/// Blocks that are remembered before the worker dies.
const REMEMBERED: usize = 3;

/// A mode, none for one server, and a layout of claims.
#[derive(Clone, Copy)]
struct On {
    name: &'static str,
    mode: Option<Mode>,
    layout: &'static str,
}

impl On {
    fn scene(self, part: &str, partitions: i32) -> Scene {
        let name = format!("{part}_{}", self.name);
        let mut scene = match self.mode {
            Some(mode) => Scene::with_redis(&name, partitions, Redises::shared(mode)),
            None => Scene::new(&name, partitions),
        };
        scene.set("dedup.layout", self.layout);
        scene
    }
}

/// Blocks come again whose counters, recent actions, timelines and properties are there already.
fn remembered_once(mut scene: Scene) {
    scene.set(
        "kafka.options",
        r#"{"session.timeout.ms":"2000","heartbeat.interval.ms":"400"}"#,
    );
    scene.set("batch.max_rows", "200");
    let sent = scene.produce(Load::new(2).take(2_000));
    let faults = format!("before-advance={REMEMBERED}*off->return");
    scene.start_failing(&faults, &[]).dies();
    let worker = scene.start().ready();
    scene.settled();
    assert!(scene.logged("a block was recovered") > 0, "no block came again");
    Ledger::check(&sent, &scene);
    check_remembered(&scene, &scene.rows());
    assert_eq!(worker.terminate().code(), Some(0));
}

macro_rules! on_every_redis {
    ($($name:ident: $mode:expr, $layout:literal;)*) => {$(
        mod $name {
            use super::*;

            const ON: On = On {
                name: stringify!($name),
                mode: $mode,
                layout: $layout,
            };

            #[test]
            fn claims_are_exact() {
                exact_claims(|part| ON.scene(part, 1), ON.layout == "packed");
            }

            #[test]
            fn a_load_is_settled_and_remembered() {
                settles(&ON.scene("load", 4));
            }

            #[test]
            fn the_first_of_a_token_pass_and_another_token_is_not_slowed() {
                the_first_pass(ON.scene("first", 1));
            }

            #[test]
            fn what_comes_again_is_remembered_once() {
                remembered_once(ON.scene("once", 2));
            }

            #[test]
            fn a_task_is_given_back_at_the_end_of_its_process_and_done_by_another() {
                given_back(ON.scene("given_back", 1));
            }
        }
    )*};
}

on_every_redis! {
    alone_keys: None, "keys";
    alone_packed: None, "packed";
    sentinel_keys: Some(Mode::Sentinel), "keys";
    sentinel_packed: Some(Mode::Sentinel), "packed";
    cluster_keys: Some(Mode::Cluster), "keys";
    cluster_packed: Some(Mode::Cluster), "packed";
}
