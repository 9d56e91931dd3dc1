//! The admin port: `/metrics`, `/healthz`, `/readyz`.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;

use super::Health;

/// Histograms are folded and long waits told so often, also while nobody scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// An address that could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{key} = \"{address}\": cannot listen there")]
pub struct BindError {
    key: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Listens on the address that `key` of the configuration gives.
pub async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BindError { key, address, source })
}

/// Serves the admin port until `shutdown` is done. Requests that are under way then are cut off: nobody's data
/// depends on them.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: PrometheusHandle,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let router = router(Arc::clone(&health), metrics.clone());
    let upkeep = async {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            metrics.run_upkeep();
            health.tell_waits();
        }
    };
    tokio::select! {
        served = axum::serve(listener, router).into_future() => served,
        () = upkeep => Ok(()),
        () = shutdown => Ok(()),
    }
}

fn router(health: Arc<Health>, metrics: PrometheusHandle) -> Router {
    let scrape = move || {
        let text = metrics.render();
        async move {
            (
                [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
                text,
            )
        }
    };
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(health)
        .route("/metrics", get(scrape))
}

/// 200 while the process is worth keeping, also with every service gone; 503 once its poll loop has stood still
/// for a minute, which only a restart mends.
async fn healthz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    match health.alive() {
        Ok(()) => (StatusCode::OK, "alive\n".to_owned()),
        Err(idle) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the worker has not polled for {} s\n", idle.as_secs()),
        ),
    }
}

async fn readyz(State(health): State<Arc<Health>>) -> impl IntoResponse {
    let readiness = health.readiness();
    let status = if readiness.ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(readiness))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::telemetry::Service;

    async fn answer(address: SocketAddr, path: &'static str) -> (u16, String) {
        let url = format!("http://{address}{path}");
        let request = move || {
            let agent = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .build()
                .new_agent();
            let mut response = agent.get(url).call().unwrap();
            (
                response.status().as_u16(),
                response.body_mut().read_to_string().unwrap(),
            )
        };
        tokio::task::spawn_blocking(request).await.unwrap()
    }

    #[tokio::test]
    async fn the_admin_port_tells_health_readiness_and_metrics() {
        let listener = bind("http.admin_listen", (Ipv4Addr::LOCALHOST, 0).into())
            .await
            .unwrap();
        let address = listener.local_addr().unwrap();
        let health = Health::new(&[Service::Redis]);
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let task = tokio::spawn(serve(
            listener,
            Arc::clone(&health),
            metrics,
            std::future::pending(),
        ));

        assert_eq!(answer(address, "/healthz").await, (200, "alive\n".to_owned()));
        assert_eq!(answer(address, "/metrics").await.0, 200);
        health.down(Service::Redis, "connection refused");
        let (status, body) = answer(address, "/readyz").await;
        assert_eq!(status, 503);
        assert!(body.contains("redis is down: connection refused"), "{body}");
        assert_eq!(answer(address, "/healthz").await.0, 200);
        health.up(Service::Redis);
        assert_eq!(answer(address, "/readyz").await.0, 200);
        task.abort();
    }

    #[tokio::test]
    async fn a_port_that_is_taken_is_told_with_its_key() {
        let taken = bind("http.admin_listen", (Ipv4Addr::LOCALHOST, 0).into())
            .await
            .unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind("http.admin_listen", address).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("http.admin_listen = \"{address}\": cannot listen there")
        );
    }
}
