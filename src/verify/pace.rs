//! How fast may be read, where the user has said so.

use std::num::NonZeroU32;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

/// Lets so many pass in a second, a tenth of them at once.
#[derive(Debug)]
pub(super) struct Pace(Option<DefaultDirectRateLimiter>);

impl Pace {
    pub(super) fn new(per_second: Option<NonZeroU32>) -> Self {
        Self(per_second.map(|per_second| {
            let at_once = NonZeroU32::new(per_second.get() / 10).unwrap_or(NonZeroU32::MIN);
            RateLimiter::direct(Quota::per_second(per_second).allow_burst(at_once))
        }))
    }

    /// Blocks until the next one may pass.
    pub(super) fn wait(&self) {
        let Some(limit) = &self.0 else {
            return;
        };
        while let Err(until) = limit.check() {
            std::thread::sleep(until.wait_time_from(DefaultClock::default().now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn no_more_than_a_tenth_pass_at_once_and_the_rest_in_its_time() {
        let pace = Pace::new(NonZeroU32::new(200));
        let begun = Instant::now();
        for _ in 0..60 {
            pace.wait();
        }
        // 20 at once, and the other 40 one every 5 ms.
        assert!(
            begun.elapsed() >= Duration::from_millis(195),
            "{:?}",
            begun.elapsed()
        );
    }
}
