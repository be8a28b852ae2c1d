//! The provider's health, for probes.

use std::future::{Ready, ready};

use actix_web::{
    Handler, HttpRequest, HttpResponse,
    http::{StatusCode, header},
};
use flipswitch::{FlipswitchProvider, web::HealthProbe};

/// Makes a handler that answers a provider's [`Health`](flipswitch::Health) as JSON: 200, or 503 once the provider was
/// shut down.
///
/// With the query `?ready` it is 503 also while the service has never answered, and with `?live` it is as without. An
/// outage is no reason for either: flags keep their last values then, and a process that is taken out of service or
/// restarted would help nobody. Ask for `?ready` only where no request may be served with defaults.
///
/// ```
/// use actix_web::{App, web};
/// # use flipswitch_actix::flipswitch::{FlipswitchProvider, serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app = App::new().route("/health/flags", web::get().to(flipswitch_actix::health(provider)));
/// ```
#[must_use]
pub fn health(provider: FlipswitchProvider) -> impl Handler<(HttpRequest,), Output = HttpResponse> {
    move |request| answer(&provider, &request)
}

fn answer(provider: &FlipswitchProvider, request: &HttpRequest) -> Ready<HttpResponse> {
    let probe = HealthProbe::new(provider, request.uri().query());
    let status = if probe.is_passed() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut response = HttpResponse::build(status);
    response.insert_header((header::CONTENT_TYPE, "application/json"));
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    ready(response.body(probe.json()))
}
