//! The application on actix-web.

use std::{pin::pin, sync::Arc};

use actix_web::{
    Error, HttpMessage, HttpRequest, HttpResponse,
    body::MessageBody,
    dev::{HttpServiceFactory, ServiceRequest, ServiceResponse},
    http::{
        StatusCode,
        header::{CACHE_CONTROL, SET_COOKIE},
    },
    middleware::{Compress, Condition, Next, from_fn},
    web,
};
use flipswitch::{InRequest, open_feature::Client};
use flipswitch_actix::{Flag, FlagGate, Flags, FlagsExt, FlipswitchMiddleware, Unknown, flag_on};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{
    Beta, Limit, Missing, Order, Origin, Setup, Theme, User, Whoami,
    browsers::{self, set_up},
    clients, long_lived,
};

pub(crate) fn app(setup: &Setup) -> impl FnOnce(&mut web::ServiceConfig) + use<> {
    let Setup { provider, anonymous, order, prefetch, client, overrides, inspects, browsers } = setup.clone();
    let browsers = set_up!(flipswitch_actix::browser(provider.clone()), &browsers);
    let middleware = FlipswitchMiddleware::new(provider.clone())
        .with_user(super::context_of_user)
        .with_context(|request| {
            super::context_of_plan(request.headers().get("x-plan").and_then(|plan| plan.to_str().ok()))
        })
        .with_anonymous(anonymous)
        .prefetch(prefetch);
    let middleware = match overrides {
        Some(overrides) => middleware.with_overrides(overrides),
        None => middleware,
    };
    let middleware = match inspects {
        true => middleware.with_inspection(|request| request.headers().contains_key("x-staff")),
        false => middleware,
    };
    let second = FlipswitchMiddleware::new(provider.clone()).with_context(|_| crate::support::user("inner"));
    move |config| {
        let covered = web::scope("")
            .configure(routes)
            .service(web::scope("/nested").configure(routes))
            .service(web::scope("/gate").configure(gates))
            .service(web::scope("/gated").configure(routes).wrap(FlagGate::enabled("beta")))
            .configure(guards)
            .route("/inspection", web::get().to(flipswitch_actix::inspection(provider.clone())))
            .configure(clients(client))
            .service(web::scope("/flags").service(browsers.clone()))
            .service(web::scope("/deep").service(web::scope("/flags").service(browsers.clone())))
            .service(web::scope("/compressed/flags").service(browsers.clone()).wrap(Compress::default()))
            .route("/page", web::get().to(page))
            .wrap(Condition::new(order == Order::Twice, second))
            .wrap(Condition::new(order != Order::AsItShould, from_fn(authenticate)))
            .wrap(middleware.clone());
        let bare = web::scope("/bare")
            .route("/flag", web::get().to(flag))
            .route("/optional", web::get().to(optional))
            .route("/typed", web::get().to(typed))
            .service(behind("/gate", FlagGate::enabled("beta")))
            .service(web::scope("/flags").service(browsers));
        let app = web::scope("")
            .service(bare)
            .service(web::resource("/single/flag").wrap(middleware).get(flag))
            .route("/npm/{path:.*}", web::get().to(package_file))
            .route("/health", web::to(flipswitch_actix::health(provider)))
            .service(covered)
            .wrap(Condition::new(order == Order::AsItShould, from_fn(authenticate)));
        config.service(app);
    }
}

async fn authenticate(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let header = |name| request.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()));
    let user = User::of(header("x-user").as_deref(), header("cookie").as_deref());
    if let Some(user) = user {
        request.extensions_mut().insert(user);
    }
    next.call(request).await
}

async fn page(flags: Flags, request: HttpRequest) -> HttpResponse {
    let page = browsers::page(&flags, request.query_string() != "bare");
    HttpResponse::Ok().content_type("text/html; charset=utf-8").body(page)
}

async fn package_file(path: web::Path<String>) -> HttpResponse {
    match browsers::package_file(&path) {
        Some(file) => HttpResponse::Ok().content_type("text/javascript").body(file),
        None => HttpResponse::NotFound().finish(),
    }
}

fn routes(config: &mut web::ServiceConfig) {
    config
        .route("/free", web::get().to(async || "free"))
        .route("/flag", web::get().to(flag))
        .route("/public-flag", web::get().to(public_flag))
        .route("/overridden", web::get().to(async |flags: Flags| super::overridden(&flags)))
        .route("/twice", web::get().to(twice))
        .route("/typed", web::get().to(typed))
        .route("/optional", web::get().to(optional))
        .route("/me", web::get().to(async |flags: Flags| super::subject(&flags)))
        .route("/together", web::get().to(together))
        .route(
            "/cookie",
            web::get().to(async |_: Flags| HttpResponse::Ok().insert_header((SET_COOKIE, "own=1")).body("cookie")),
        )
        .route("/panic", web::get().to(panic))
        .route("/socket", web::get().to(socket))
        .route("/unchanged", web::get().to(async |_: Flags| HttpResponse::NotModified().finish()))
        .route("/public", web::get().to(async |_: Flags| cached("public, max-age=60")))
        .route("/private", web::get().to(async |_: Flags| cached("private, max-age=60")))
        .route("/agree", web::get().to(agree))
        .route("/live/socket", web::get().to(live_socket))
        .route("/live/events", web::get().to(live_events))
        .route("/live/body", web::get().to(live_body))
        .route("/echo", web::post().to(echo));
}

async fn flag(flags: Flags) -> String {
    super::describe(&flags)
}

async fn public_flag(flags: Flags) -> HttpResponse {
    let mut response = HttpResponse::Ok();
    response.insert_header((CACHE_CONTROL, "public, max-age=60")).insert_header(("x-accel-expires", "60"));
    response.body(super::describe(&flags))
}

async fn twice(one: Flags, other: Flags) -> String {
    assert_eq!(one.to_json(), other.to_json());
    super::describe(&one)
}

async fn typed(Flag(who): Flag<Whoami>, Flag(origin): Flag<Origin>, flags: Flags, limit: Flag<Limit>) -> String {
    assert_eq!((&who, limit.0), (&flags.get(Whoami), 7));
    format!("{who} {origin}")
}

async fn optional(flags: Option<Flags>) -> String {
    flags.map_or("none".to_owned(), |flags| super::describe(&flags))
}

/// Reads in several futures at the same time.
async fn together(request: HttpRequest) -> String {
    let scope = request.flag_scope().unwrap();
    let read = stream::iter(0..10).map(|_| scope.flags()).buffer_unordered(10);
    let flags: Vec<_> = read.map(|flags| super::describe(&flags)).collect().await;
    assert!(flags.iter().all(|each| *each == flags[0]));
    flags[0].clone()
}

async fn panic(_: Flags) -> &'static str {
    panic!("a handler panics");
}

async fn socket(flags: Flags, request: HttpRequest, body: web::Payload) -> Result<HttpResponse, Error> {
    let (response, mut session, mut messages) = actix_ws::handle(&request, body)?;
    actix_web::rt::spawn(async move {
        while let Some(Ok(actix_ws::Message::Text(text))) = messages.recv().await {
            if session.text(format!("{text} {}", super::describe(&flags))).await.is_err() {
                return;
            }
        }
    });
    Ok(response)
}

fn cached(cache_control: &'static str) -> HttpResponse {
    HttpResponse::Ok().insert_header((CACHE_CONTROL, cache_control)).body("cached")
}

async fn agree(flags: Flags) -> HttpResponse {
    HttpResponse::Ok().streaming(long_lived::agree(&flags).await.map_ok(web::Bytes::from))
}

async fn live_socket(request: HttpRequest, body: web::Payload) -> Result<HttpResponse, Error> {
    let scope = request.flag_scope().unwrap();
    let (response, mut session, _messages) = actix_ws::handle(&request, body)?;
    actix_web::rt::spawn(async move {
        let mut on = pin!(long_lived::while_on(scope));
        while let Some(text) = on.next().await {
            if session.text(text).await.is_err() {
                return;
            }
        }
        let _ = session.close(None).await;
    });
    Ok(response)
}

async fn live_events(request: HttpRequest) -> HttpResponse {
    let events = long_lived::while_on(request.flag_scope().unwrap());
    HttpResponse::Ok()
        .content_type("text/event-stream")
        .streaming(events.map(|text| Ok::<_, Error>(web::Bytes::from(format!("data: {text}\n\n")))))
}

async fn live_body(request: HttpRequest) -> HttpResponse {
    let body = long_lived::while_on(request.flag_scope().unwrap());
    HttpResponse::Ok().streaming(body.map(|text| Ok::<_, Error>(web::Bytes::from(text))))
}

/// Streams the body of the request back.
async fn echo(_: Flags, body: web::Payload) -> HttpResponse {
    HttpResponse::Ok().streaming(body)
}

fn clients(client: Option<Arc<Client>>) -> impl FnOnce(&mut web::ServiceConfig) {
    async fn plain(client: web::Data<Client>) -> String {
        clients::whoami(&client).await
    }
    async fn deep(client: web::Data<Client>) -> String {
        let whose = clients::deep(Arc::clone(&client)).await;
        let local = async move { clients::whoami(&client).await };
        // A local task may hold values that are not `Send`, such as the request.
        assert_eq!(actix_web::rt::spawn(local.with_current_scope()).await.unwrap(), whose);
        whose
    }
    async fn streamed(client: web::Data<Client>) -> HttpResponse {
        HttpResponse::Ok().streaming(clients::streamed(client.into_inner()).map_ok(web::Bytes::from))
    }
    |config| {
        let Some(client) = client else { return };
        config
            .app_data(web::Data::from(client))
            .route("/plain", web::get().to(plain))
            .route("/deep", web::get().to(deep))
            .route("/streamed", web::get().to(streamed));
    }
}

async fn open() -> &'static str {
    "open"
}

fn behind(path: &str, gate: FlagGate) -> impl HttpServiceFactory + use<> {
    web::resource(path).get(open).wrap(gate)
}

fn gates(config: &mut web::ServiceConfig) {
    let either = || FlagGate::when(|flags| flags.bool("beta", false) || flags.bool("staff", false));
    let message = || HttpResponse::Gone().insert_header(("x-closed", "yes")).body("not for you");
    config
        .service(behind("/requires", FlagGate::enabled("beta")))
        .service(web::resource("/any").to(open).wrap(FlagGate::enabled("beta")))
        .service(behind("/requires-not", FlagGate::disabled("beta")))
        .service(behind("/typed", FlagGate::enabled(Beta)))
        .service(behind("/typed-not", FlagGate::disabled(Beta)))
        .service(behind("/missing", FlagGate::enabled("missing")))
        .service(behind("/missing-not", FlagGate::disabled("missing")))
        .service(behind("/missing-typed", FlagGate::enabled(Missing)))
        .service(behind("/missing-typed-not", FlagGate::disabled(Missing)))
        .service(behind("/other-type", FlagGate::enabled("whoami")))
        .service(behind("/other-type-not", FlagGate::disabled("whoami")))
        .service(behind("/variant", FlagGate::variant("theme", "dark")))
        .service(behind("/variant-typed", FlagGate::variant(Theme, "dark".to_owned())))
        .service(behind("/variant-missing", FlagGate::variant("missing", "dark")))
        .service(behind("/variant-none", FlagGate::variant("plain", "dark")))
        .service(behind("/when", FlagGate::when(|flags| flags.get(Beta) && flags.string("theme", "") == "#000")))
        .service(behind("/when-not", FlagGate::when(|flags| flags.get(Beta) && flags.bool("staff", false))))
        .service(behind("/either", either()))
        .service(behind("/unknown-closed", FlagGate::disabled("beta").unknown(Unknown::Closed)))
        .service(behind("/unknown-open", FlagGate::enabled("beta").unknown(Unknown::Open)))
        .service(behind("/fallback", FlagGate::enabled("beta").fallback(StatusCode::FORBIDDEN)))
        .service(behind("/response", FlagGate::enabled("beta").fallback(message)))
        .service(web::resource("/many").get(twice).wrap(FlagGate::enabled("beta")).wrap(either()));
}

/// Two handlers for one path, chosen by a guard.
fn guards(config: &mut web::ServiceConfig) {
    config
        .service(web::resource("/guarded-any").guard(flag_on("beta")).to(async || "new"))
        .service(web::resource("/guarded-any").to(async || "old"))
        .service(web::resource("/guarded").guard(flag_on("beta")).get(async || "new"))
        .service(web::resource("/guarded").get(async || "old"))
        .service(web::resource("/guarded-typed").guard(flag_on(Missing)).get(async || "new"))
        .service(web::resource("/guarded-typed").get(async || "old"));
}
