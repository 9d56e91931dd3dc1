//! Serves the API until it is told to end, and then ends in time.

use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Api, router};

/// How long requests that are under way may take once the end has come: below the 30 s that a process has.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves on `listener` until `shutdown` is done, then takes no new connection and waits for the requests under way,
/// at most 10 s. Bind the listener by [`crate::health::bind`] under the key `http.listen`, so that an address that
/// cannot be had is told with its key.
pub async fn serve(listener: TcpListener, api: Api, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let ending = CancellationToken::new();
    let service = router(api).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum::serve(listener, service)
        .with_graceful_shutdown(ending.clone().cancelled_owned())
        .into_future();
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = shutdown => ending.cancel(),
    }
    if let Ok(ended) = tokio::time::timeout(DRAIN, serving).await {
        return ended;
    }
    tracing::warn!(
        drain_seconds = DRAIN.as_secs(),
        "requests were cut off at the end"
    );
    Ok(())
}
