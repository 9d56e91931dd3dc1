//! How often each client may ask.
//!
//! A client is an API key, with all its sessions: opening more of them gives no more requests. Where no valid
//! credential is shown, it is the address (the /64 of an IPv6 one), so that guessing is slow. Limits are this
//! process's own; a proxy's address counts as one client.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::auth::KeyTag;
use super::problem::Problem;

/// So many requests after another pass before clients that have been quiet are forgotten.
const FORGET_EVERY: u32 = 4096;

/// Who a request counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Key(KeyTag),
    Address(Option<u128>),
}

impl Client {
    pub(super) fn at(address: Option<IpAddr>) -> Self {
        Self::Address(address.map(|address| {
            match address {
                IpAddr::V4(v4) => u128::from(v4.to_bits()),
                IpAddr::V6(v6) => v6
                    .to_ipv4_mapped()
                    .map_or(v6.to_bits() >> 64 << 64, |v4| u128::from(v4.to_bits())),
            }
        }))
    }
}

#[derive(Debug)]
pub(super) struct Clients {
    limiter: DefaultKeyedRateLimiter<Client>,
    clock: DefaultClock,
    asked: AtomicU32,
}

impl Clients {
    /// Each client may make `requests_per_second`, as many at once.
    pub(super) fn new(requests_per_second: u32) -> Self {
        let rate = NonZeroU32::new(requests_per_second).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: RateLimiter::keyed(Quota::per_second(rate)),
            clock: DefaultClock::default(),
            asked: AtomicU32::new(0),
        }
    }

    /// Counts one request; refused if it is one too many.
    pub(super) fn admit(&self, client: Client) -> Result<(), Problem> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
        self.limiter
            .check_key(&client)
            .map_err(|until| Problem::too_many_requests(until.wait_time_from(self.clock.now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_client_has_its_own_limit() {
        let clients = Clients::new(2);
        let (a, b) = (
            Client::at("10.0.0.1".parse().ok()),
            Client::at("10.0.0.2".parse().ok()),
        );
        assert!(clients.admit(a).is_ok() && clients.admit(a).is_ok());
        assert!(clients.admit(a).is_err());
        assert!(clients.admit(b).is_ok());
    }

    #[test]
    fn one_network_of_ipv6_is_one_client() {
        let at = |text: &str| Client::at(text.parse().ok());
        assert_eq!(at("2001:db8::1"), at("2001:db8::2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    }
}
