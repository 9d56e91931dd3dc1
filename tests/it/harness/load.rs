//! A steady load beside what a test does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Scene;
use super::events::Load;
use super::kafka::Record;

/// Records at a time, and the pause between: some 1,500 a second.
const BATCH: u64 = 200;
const PAUSE: Duration = Duration::from_millis(50);

/// Produces while `act` acts, and returns what was sent.
pub(crate) fn under_load(scene: &Scene, act: impl FnOnce()) -> Vec<Record> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let producing = scope.spawn(|| {
            let mut load = Load::new(scene.partitions);
            let mut sent = Vec::new();
            while !over.load(Ordering::Relaxed) {
                sent.extend(scene.produce(load.take(BATCH)));
                std::thread::sleep(PAUSE);
            }
            sent
        });
        // Also when `act` panics: the scope waits for the thread.
        let end = SetOnDrop(&over);
        act();
        drop(end);
        producing.join().unwrap()
    })
}

struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
