//! Records in, rows out: what every column, key and topic holds afterwards. `every_redis` runs it.

use crate::harness::Scene;
use crate::harness::events::{Ledger, Load, check_remembered};

/// A worker settles a load, and remembers it.
pub(crate) fn settles(scene: &Scene) {
    let mut load = Load::new(4);
    let mut sent = scene.produce(load.take(3_000));
    let worker = scene.start().ready();
    scene.some_rows();
    sent.extend(scene.produce(load.take(3_000)));
    scene.settled();
    let ledger = Ledger::check(&sent, scene);
    assert_eq!(ledger.limited, 0);
    check_remembered(scene, &scene.rows());
    let counted = |outcome: &str| worker.metric(&format!("sluice_events_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(counted("written"), Some(ledger.written as f64));
    assert_eq!(counted("duplicate"), Some(ledger.duplicates as f64));
    assert_eq!(counted("dead_letter"), Some(ledger.dead_letters as f64));
    assert_eq!(worker.terminate().code(), Some(0));
}
