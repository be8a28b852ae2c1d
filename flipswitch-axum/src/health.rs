//! Health probes.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use axum_core::response::{IntoResponse, Response};
use flipswitch::{FlipswitchProvider, integration::HealthProbe};
use http::{Request, header};
use tower_service::Service;

/// Creates a service that responds with a provider's [`Health`](flipswitch::Health) as JSON: with 200, or with 503 once the
/// provider is shut down.
///
/// With the query `?ready`, it also responds with 503 until the flag service has responded once; `?live` is the default. An
/// outage changes neither status: flags keep their last values, and taking the process out of service would not help. Use
/// `?ready` only if no request may be served with defaults.
///
/// ```
/// use axum::Router;
/// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app: Router = Router::new().route_service("/health/flags", flipswitch_axum::health(provider));
/// ```
#[must_use]
pub fn health(provider: FlipswitchProvider) -> HealthService {
    HealthService(provider)
}

/// Service of [`health`].
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
        let probe = HealthProbe::new(self.0.health(), request.uri().query());
        let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
        ready(Ok((probe.status(), headers, probe.json()).into_response()))
    }
}
