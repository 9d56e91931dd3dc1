//! Faults that a test asks for: moments at which the process dies or lingers, guards of the protocol that are taken
//! out, a clock that is off.
//!
//! Only with the feature `faults`, which no release has: without it every function here does nothing. Which faults,
//! the variable `FAILPOINTS` says, in the language of the crate `fail`, for example
//! `after-announce=3*off->1*return;without-epoch=return;clock=return(90000)`. Never decides anything by itself.

/// Reads `FAILPOINTS`. The faults are in force for as long as what it answers is kept.
#[cfg(feature = "faults")]
pub fn set_up() -> fail::FailScenario<'static> {
    fail::FailScenario::setup()
}

/// A named moment of a block: the process dies here at once, as if killed (`return`), or lingers for so many
/// milliseconds (`return(250)`).
#[cfg(feature = "faults")]
pub(crate) async fn moment(name: &'static str) {
    match fail::eval(name, |argument| argument) {
        None => {}
        Some(None) => std::process::abort(),
        Some(Some(ms)) => {
            let ms = ms.parse().unwrap_or(0);
            tokio::time::sleep(std::time::Duration::from_millis(ms)).await;
        }
    }
}

#[cfg(not(feature = "faults"))]
pub(crate) fn moment(_: &'static str) -> std::future::Ready<()> {
    std::future::ready(())
}

/// Whether a guard of the protocol is taken out: it must be missed, or the suite that misses nothing has no teeth.
#[cfg(feature = "faults")]
pub(crate) fn without(guard: &'static str) -> bool {
    fail::eval(guard, |_| ()).is_some()
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn without(_: &'static str) -> bool {
    false
}

/// Whether something that a test asks for happens now.
#[cfg(feature = "faults")]
pub(crate) fn happens(name: &'static str) -> bool {
    fail::eval(name, |_| ()).is_some()
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn happens(_: &'static str) -> bool {
    false
}

/// How far this process's clock is off, ms: `clock=return(-90000)` is a minute and a half late.
#[cfg(feature = "faults")]
pub(crate) fn clock_error_ms() -> i64 {
    let argument = fail::eval("clock", |argument| argument).flatten();
    argument.and_then(|ms| ms.parse().ok()).unwrap_or(0)
}

#[cfg(not(feature = "faults"))]
pub(crate) const fn clock_error_ms() -> i64 {
    0
}
