//! The application: a few routes, and the flags of whoever asks.

use std::convert::Infallible;

use actix_web::{
    HttpResponse, Responder,
    dev::ServiceRequest,
    http::header,
    web::{self, Bytes, Data, Html, Json, Query, ServiceConfig},
};
use flipswitch_actix::{
    Flags, FlipswitchMiddleware,
    flipswitch::{FlipswitchProvider, open_feature::EvaluationContext},
};
use futures_util::StreamExt;
use quickstart_common::Stop;
use serde::Deserialize;
use serde_json::json;

/// The application's routes. Runs once for each worker; all of them share the provider. At `stop` open streams end.
pub fn app(provider: FlipswitchProvider, stop: Stop) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config.app_data(Data::new(provider.clone())).app_data(Data::new(stop));
        config.route("/", web::get().to(page)).route("/events", web::get().to(events)).service(
            web::scope("")
                .wrap(FlipswitchMiddleware::new(provider).with_context(user))
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

/// Tells an open page when to read its flags again.
async fn events(provider: Data<FlipswitchProvider>, stop: Data<Stop>) -> impl Responder {
    let events = quickstart_common::follow(provider.as_ref().clone(), stop.as_ref().clone());
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .streaming(events.map(|event| Ok::<_, Infallible>(Bytes::from(event))))
}
