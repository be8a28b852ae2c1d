//! The provider's health, for probes.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use axum_core::response::{IntoResponse, Response};
use flipswitch::{FlipswitchProvider, web::HealthProbe};
use http::{Request, StatusCode, header};
use tower_service::Service;

/// Makes a service that answers a provider's [`Health`](flipswitch::Health) as JSON: 200, or 503 once the provider was
/// shut down.
///
/// With the query `?ready` it is 503 also while the service has never answered, and with `?live` it is as without. An
/// outage is no reason for either: flags keep their last values then, and a process that is taken out of service or
/// restarted would help nobody. Ask for `?ready` only where no request may be served with defaults.
///
/// ```
/// use axum::Router;
/// # use flipswitch_axum::flipswitch::{FlipswitchProvider, serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app: Router = Router::new().route_service("/health/flags", flipswitch_axum::health(provider));
/// ```
#[must_use]
pub fn health(provider: FlipswitchProvider) -> HealthService {
    HealthService(provider)
}

/// Answers every request with a provider's health; made by [`health`].
#[derive(Clone, Debug)]
pub struct HealthService(FlipswitchProvider);

impl<B> Service<Request<B>> for HealthService {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let probe = HealthProbe::new(&self.0, request.uri().query());
        let status = if probe.is_passed() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        ready(Ok((status, headers, probe.json()).into_response()))
    }
}
