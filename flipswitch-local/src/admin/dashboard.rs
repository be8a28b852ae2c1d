//! The dashboard, a page that uses the control endpoints.

use std::sync::Arc;

use axum::{Router, response::IntoResponse, routing::get};
use http::header;

use crate::state::AppState;

const PAGE: &str = include_str!("dashboard/page.html");
const STYLE: &str = include_str!("dashboard/style.css");
/// One script, whose files are in the order of their dependencies.
const SCRIPT: &str = concat!(
    include_str!("dashboard/common.js"),
    include_str!("dashboard/flags.js"),
    include_str!("dashboard/faults.js"),
    include_str!("dashboard/live.js"),
);
const ICON: &str = include_str!("dashboard/icon.svg");

/// Limits the page to its own files, and to requests to this server. Trusted types keep data from becoming a script, even
/// through a mistake in the page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'self'; require-trusted-types-for 'script'; \
                      trusted-types 'none'";

pub(crate) fn routes() -> Router<Arc<AppState>> {
    Router::new()
        .route("/", get(page))
        .route("/dashboard/style.css", get(async || asset("text/css; charset=utf-8", STYLE)))
        .route("/dashboard/script.js", get(async || asset("text/javascript; charset=utf-8", SCRIPT)))
        .route("/dashboard/icon.svg", get(async || asset("image/svg+xml", ICON)))
}

async fn page() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], asset("text/html; charset=utf-8", PAGE))
}

fn asset(content_type: &'static str, text: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, content_type)], text)
}
