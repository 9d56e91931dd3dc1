//! An exhaustive model of how a record comes to its outcome exactly once: the protocol of `src/pipeline` and
//! `src/kafka` with everything that can go wrong around it.
//!
//! Read in this order: [`state`] (the world), [`lane`], [`settle`] and [`recover`] (what a worker does, a step a
//! function), [`services`] (what ClickHouse and Redis do), [`steps`] and [`faults`] (what can happen when),
//! [`properties`] (what must hold), [`scenario`] and [`scenarios`] (the bounds), [`guard`] (what is taken out to see it
//! missed), [`questions`] (where the protocol ends).

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and tells its story on standard output"
)]

mod check;
mod faults;
mod guard;
mod lane;
mod properties;
mod questions;
mod recover;
mod scenario;
mod scenarios;
mod services;
mod settle;
mod state;
mod steps;
mod story;
