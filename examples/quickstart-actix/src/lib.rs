//! The demo that `cargo run -p quickstart-actix` starts: the application of `main.rs`, and a page that shows the flags of two
//! users and follows their changes.

use std::convert::Infallible;

use actix_web::{
    HttpResponse, Responder,
    http::header,
    web::{self, Bytes, Data, Html, ServiceConfig},
};
use flipswitch_actix::FlipswitchProvider;
use futures_util::StreamExt;
use quickstart_common::Stop;

#[path = "main.rs"]
pub mod application;

/// Adds the page to the application. Its event streams end at `stop`.
pub fn app(provider: FlipswitchProvider, stop: Stop) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        config.app_data(Data::new(provider.clone())).app_data(Data::new(stop));
        // Before the application, whose scope matches every path.
        config.route("/", web::get().to(page)).route("/events", web::get().to(events));
        config.configure(application::app(provider));
    }
}

async fn page() -> Html {
    Html::new(quickstart_common::PAGE)
}

/// Responds with an event stream that tells the page when to request the flags again.
async fn events(provider: Data<FlipswitchProvider>, stop: Data<Stop>) -> impl Responder {
    let events = quickstart_common::follow(provider.as_ref().clone(), stop.as_ref().clone());
    HttpResponse::Ok()
        .insert_header((header::CONTENT_TYPE, "text/event-stream"))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .streaming(events.map(|event| Ok::<_, Infallible>(Bytes::from(event))))
}
