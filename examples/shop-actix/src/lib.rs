//! The shop on actix-web: sessions by `actix-session`, logins by `actix-identity`, and the flags of whoever asks.

use actix_identity::{Identity, IdentityExt, IdentityMiddleware, error::LoginError};
use actix_session::{SessionMiddleware, storage::CookieSessionStore};
use actix_web::{
    Either, HttpMessage, HttpRequest, Responder,
    cookie::Key,
    dev::ServiceRequest,
    http::StatusCode,
    web::{self, Form, Html, Redirect, ServiceConfig},
};
use flipswitch_actix::{Anonymous, Flag, FlagGate, Flags, FlipswitchMiddleware, flipswitch::FlipswitchProvider};
use shop_common::{Beta, Login, MaxItems, NewCheckout, SummerSale, Theme, User};

/// The application's routes. Runs once for each worker; all of them share the provider, and the key that session cookies
/// are sealed with.
pub fn app(provider: FlipswitchProvider, key: Key) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        // The shop is served over plain HTTP on your own machine, where few browsers take cookies that are `Secure`.
        // Behind HTTPS both of these stay at their better settings: `Anonymous::cookie()`, and `cookie_secure(true)`, the
        // default.
        let visitors = Anonymous::cookie().secure(false);
        let sessions = SessionMiddleware::builder(CookieSessionStore::default(), key).cookie_secure(false).build();

        let flags = FlipswitchMiddleware::new(provider.clone())
            // Without a user the visitor counts.
            .with_context(|request: &ServiceRequest| user(request.get_identity().ok()).map(shop_common::context))
            .with_anonymous(visitors);

        let beta = web::scope("/beta")
            .service(web::resource("").get(async || shop_common::BETA))
            .service(web::resource("/wishlist").get(async || shop_common::WISHLIST))
            .wrap(FlagGate::enabled(Beta));
        let sale = FlagGate::enabled(SummerSale).fallback(|| (shop_common::SALE_IS_OVER, StatusCode::GONE));

        // Before the scope below, which takes every path, and outside of it, so that probes touch no session.
        config.route("/health/flags", web::get().to(flipswitch_actix::health(provider)));
        config.service(
            web::scope("")
                .route("/", web::get().to(home))
                .route("/login", web::post().to(login))
                .route("/logout", web::post().to(logout))
                .route("/checkout", web::get().to(checkout))
                .service(web::resource("/sale").get(async || shop_common::SALE).wrap(sale))
                .service(beta)
                .wrap(flags)
                // What is added last runs first: these come after the flags, so that the user is known when they ask who
                // it is, and the session after the identity that is kept in it. With the flags last, `get_identity` would
                // panic for want of an identity; that is caught and warned of, and everybody would be a visitor.
                .wrap(IdentityMiddleware::default())
                .wrap(sessions),
        );
    }
}

async fn home(identity: Option<Identity>, flags: Flags) -> Html {
    Html::new(shop_common::home(user(identity), &flags))
}

async fn checkout(Flag(new): Flag<NewCheckout>, Flag(max_items): Flag<MaxItems>, Flag(theme): Flag<Theme>) -> Html {
    Html::new(shop_common::checkout(new, max_items, &theme))
}

async fn login(request: HttpRequest, Form(login): Form<Login>) -> Result<impl Responder, LoginError> {
    let Some(user) = User::named(&login.name) else {
        return Ok(Either::Left(
            Html::new(shop_common::unknown(&login.name)).customize().with_status(StatusCode::UNAUTHORIZED),
        ));
    };
    Identity::login(&request.extensions(), user.id.to_owned())?;
    // The flags of this request are those of whoever it came from. The user's are the next one's, so it goes there.
    Ok(Either::Right(Redirect::to("/").see_other()))
}

async fn logout(identity: Option<Identity>) -> impl Responder {
    if let Some(identity) = identity {
        identity.logout();
    }
    Redirect::to("/").see_other()
}

fn user(identity: Option<Identity>) -> Option<&'static User> {
    User::with_id(&identity?.id().ok()?)
}
