//! The routes of a server, and the task that serves them.

use std::{
    future,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::{self, Body},
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{access, control, dashboard},
    api::{cors, routes},
    faults::{
        connection::{Listener, Peer},
        middleware::apply_faults,
    },
    request_log::RecordedRequest,
    state::AppState,
};

/// Limits request bodies, in bytes.
const MAX_BODY: usize = 1 << 20;

/// Time that connections have to end at shutdown before they are aborted.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves connections until shutdown. Afterwards, no connection is open.
pub(crate) async fn serve(listener: TcpListener, state: Arc<AppState>) {
    let stop = state.stop.clone();
    let abort = CancellationToken::new();
    let _abort_on_return = abort.clone().drop_guard();
    let listener = Listener { listener, faults: Arc::clone(&state.faults), abort: abort.clone() };
    let app = app(state).into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned());
    let abort_late = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_TIMEOUT).await;
        abort.cancel();
        // The server still waits for the connections that were aborted.
        future::pending::<()>().await;
    };
    tokio::select! {
        outcome = serving.into_future() => {
            if let Err(error) = outcome {
                tracing::error!(target: "flipswitch_local", %error, "the server stopped");
            }
        }
        () = abort_late => {}
    }
}

fn app(state: Arc<AppState>) -> Router {
    let faults = Arc::clone(&state.faults);
    // Faults come before the API key is checked, so that they apply regardless of the key.
    let api = routes::routes(&state).route_layer(middleware::from_fn_with_state(faults, apply_faults));
    let api = cors::allow(api, &state.allowed_origins);
    let admin = control::routes()
        .merge(dashboard::routes())
        .method_not_allowed_fallback(control::method_not_allowed)
        .route_layer(middleware::from_fn_with_state(Arc::clone(&state), access::restrict));
    Router::new()
        .merge(api)
        .merge(admin)
        .fallback(control::not_found)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), log_request))
        .with_state(state)
}

async fn log_request(State(state): State<Arc<AppState>>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = body::to_bytes(body, MAX_BODY).await else {
        return control::payload_too_large(MAX_BODY).into_response();
    };
    let recorded = RecordedRequest {
        method: parts.method.clone(),
        path: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: parts.headers.clone(),
        body: body.clone(),
        at: Instant::now(),
    };
    let pending = state.request_log.add(recorded, !control::is_admin_path(parts.uri.path()));
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    pending.complete(response.status());
    response
}
