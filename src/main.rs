//! Arguments to a command; nothing else.

use std::process::ExitCode;
use std::time::Duration;

use sluice::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A blocking call of a client library that hangs must not keep a command from ending.
const GRACE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    #[cfg(feature = "faults")]
    let _faults = sluice::faults::set_up();
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(exit) => return exit,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cli::fail(&anyhow::Error::new(error).context("cannot start threads").into()),
    };
    let exit = runtime.block_on(invocation.run());
    runtime.shutdown_timeout(GRACE);
    exit
}
