//! Routes that serve flags to browsers.

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse,
    dev::{AppService, HttpServiceFactory},
    http::{
        StatusCode,
        header::{ContentEncoding, HeaderValue},
    },
    web::{self, Payload},
};
use flipswitch::{
    FlipswitchProvider,
    integration::{BrowserBody, BrowserRequest, BrowserRoute, BrowserService, MAX_BROWSER_BODY},
};

use crate::extract::scope;

/// Creates routes that serve flags to browsers over OFREP. A page that uses the OpenFeature web SDK then reads the flags for
/// the user of the request, as handlers do.
///
/// The routes must be inside the [middleware](crate::FlipswitchMiddleware), which finds the user. A targeting key in the
/// browser's request is ignored. The API key stays on the server. No flag is public unless
/// [`public`](BrowserRoutes::public) names it.
///
/// ```
/// use actix_web::{App, web};
/// use flipswitch_actix::FlipswitchMiddleware;
/// # use flipswitch_actix::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let flags = flipswitch_actix::browser(provider.clone()).public(["new-checkout", "theme"]);
/// let app = App::new()
///     .wrap(FlipswitchMiddleware::new(provider))
///     .service(web::scope("/flags").service(flags));
/// ```
///
/// In the page, with `@openfeature/web-sdk` and `@openfeature/ofrep-web-provider`:
///
/// ```js
/// import { connect } from "/flags/flipswitch.js";
/// const { client } = await connect(OpenFeature, OFREPWebProvider);
/// client.getBooleanValue("new-checkout", false);
/// ```
///
/// [`to_ofrep_json`](flipswitch::Flags::to_ofrep_json) embeds the first values in the page. A [`Lifespan`](crate::Lifespan)
/// ends the event streams when the server drains; without one, shut the provider down before the server waits for its
/// connections. `middleware::Compress` leaves the streams alone.
pub fn browser(provider: FlipswitchProvider) -> BrowserRoutes {
    BrowserRoutes(BrowserService::new(provider))
}

/// Routes for browsers, made by [`browser`]. Clone them into the closure of `HttpServer::new`.
#[derive(Clone, Debug)]
#[must_use = "routes do nothing until they are added with `.service(..)`"]
pub struct BrowserRoutes(BrowserService);

impl BrowserRoutes {
    flipswitch::__browser_options!();
}

impl HttpServiceFactory for BrowserRoutes {
    fn register(self, config: &mut AppService) {
        for route in BrowserRoute::ALL {
            let service = self.0.clone();
            let respond = move |request, payload| respond(service.clone(), route, request, payload);
            web::resource(route.path()).route(web::route().to(respond)).register(config);
        }
    }
}

async fn respond(service: BrowserService, route: BrowserRoute, request: HttpRequest, payload: Payload) -> HttpResponse {
    let (method, uri) = (request.method().as_str(), request.uri());
    let head = BrowserRequest::new(route, method, uri.path(), uri.query(), |name| {
        request.headers().get_all(name).map(HeaderValue::as_bytes)
    });
    let body = match route.reads_body(method) {
        true => payload.to_bytes_limited(MAX_BROWSER_BODY).await.ok().and_then(Result::ok),
        false => Some(web::Bytes::new()),
    };
    let scope = scope(&request.extensions());
    let answer = service.respond(&head, scope.as_ref(), body).await;
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    for header in answer.headers {
        response.append_header(header);
    }
    match answer.body {
        BrowserBody::Full(body) => response.body(body),
        // Otherwise `middleware::Compress` would hold events back.
        BrowserBody::Events(events) => response.insert_header(ContentEncoding::Identity).streaming(events),
        _ => response.finish(),
    }
}
