//! The page of inspected requests.

use std::future::{Ready, ready};

use actix_web::{Handler, HttpMessage, HttpRequest, HttpResponse};
use flipswitch::{FlipswitchProvider, integration::InspectionPage};

/// Creates a handler that responds with a page of the latest 100 requests that were
/// [inspected](crate::FlipswitchMiddleware::with_inspection).
///
/// The page lists the flags that each request has read, with the value, variant, reason, source and age, the default if it is
/// a plain value, and the number of reads. It shows only the names of the attributes of a context. The route must be inside the
/// middleware. Only requests that are themselves inspected get the page; others get 404.
///
/// ```
/// use actix_web::{App, HttpMessage, web};
/// use flipswitch_actix::FlipswitchMiddleware;
/// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// struct Staff;
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let flags = FlipswitchMiddleware::new(provider.clone())
///     .with_inspection(|request| request.extensions().contains::<Staff>());
/// let app = App::new()
///     .wrap(flags)
///     .route("/flags/requests", web::get().to(flipswitch_actix::inspection(provider)));
/// ```
#[must_use]
pub fn inspection(provider: FlipswitchProvider) -> impl Handler<(HttpRequest,), Output = HttpResponse> {
    move |request| respond(&provider, &request)
}

fn respond(provider: &FlipswitchProvider, request: &HttpRequest) -> Ready<HttpResponse> {
    let Some(page) = InspectionPage::new(request.extensions().get(), provider) else {
        return ready(HttpResponse::NotFound().finish());
    };
    let mut response = HttpResponse::Ok();
    for header in page.headers() {
        response.insert_header(header);
    }
    ready(response.body(page.html().to_owned()))
}
