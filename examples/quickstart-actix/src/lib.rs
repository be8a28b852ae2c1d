//! The application: three routes, and the flags of whoever asks.

use actix_web::{
    Responder,
    dev::ServiceRequest,
    web::{self, Html, Json, Query, ServiceConfig},
};
use flipswitch_actix::{
    Flags, Flipswitch,
    flipswitch::{FlipswitchProvider, open_feature::EvaluationContext},
};
use serde::Deserialize;
use serde_json::json;

/// The application's routes. Runs once for each worker; all of them share the provider.
pub fn app(provider: FlipswitchProvider) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config.route("/", web::get().to(page)).service(
            web::scope("")
                .wrap(Flipswitch::new(provider).with_context(user))
                .service(web::resource("/feature").route(web::get().to(feature)))
                .service(web::resource("/flags").route(web::get().to(flags))),
        );
    }
}

#[derive(Deserialize)]
struct User {
    user_id: String,
    plan: Option<String>,
}

/// Finds the user of a request. A real application takes it from its session or token, with `with_user`.
fn user(request: &ServiceRequest) -> Option<EvaluationContext> {
    let Query(User { user_id, plan }) = Query::from_query(request.query_string()).ok()?;
    Some(quickstart_common::context(&user_id, plan.as_deref()))
}

async fn page() -> Html {
    Html::new(quickstart_common::PAGE)
}

async fn feature(flags: Flags) -> impl Responder {
    Json(json!({"feature_enabled": flags.bool("new-feature", false)}))
}

async fn flags(flags: Flags) -> impl Responder {
    Json(flags.to_json())
}
