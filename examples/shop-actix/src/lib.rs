//! The shop on actix-web: sessions with `actix-session`, logins with `actix-identity`, and flags for users and visitors. The
//! users and the HTML are in `shop-common`.

use actix_identity::{Identity, IdentityExt, IdentityMiddleware, error::LoginError};
use actix_session::{SessionMiddleware, storage::CookieSessionStore};
use actix_web::{
    Either, HttpMessage, HttpRequest, Responder,
    cookie::Key,
    dev::ServiceRequest,
    http::StatusCode,
    web::{self, Form, Html, Redirect, ServiceConfig},
};
use flipswitch_actix::{Anonymous, Context, Flag, FlagGate, Flags, FlipswitchMiddleware, FlipswitchProvider};
use shop_common::{Login, User};

flipswitch_actix::flags! {
    /// Whether the checkout has one page.
    NewCheckout: bool = "new-checkout", default false;
    /// How many items a cart holds.
    MaxItems: i64 = "max-items", default 10;
    /// The color scheme of the pages.
    Theme: String = "theme", default "light";
    /// Whether the user has access to the beta.
    Beta: bool = "beta", default false;
    /// Whether the sale is on.
    SummerSale: bool = "summer-sale", default false;
}

/// Configures the application. Runs once per worker; all workers share the provider, and the key that encrypts the session
/// cookies.
pub fn app(provider: FlipswitchProvider, key: Key) -> impl FnOnce(&mut ServiceConfig) {
    move |config| {
        // Only for plain HTTP on a local machine, where browsers may reject `Secure` cookies. With HTTPS, keep the
        // defaults: `Anonymous::cookie()`, and no `cookie_secure`.
        let visitors = Anonymous::cookie().secure(false);
        let sessions = SessionMiddleware::builder(CookieSessionStore::default(), key).cookie_secure(false).build();

        let flags = FlipswitchMiddleware::new(provider.clone())
            // Without a user, the request is a visitor's.
            .with_context(|request: &ServiceRequest| user(request.get_identity().ok()).map(context))
            .with_anonymous(visitors);

        let beta = web::scope("/beta")
            .service(web::resource("").get(async || shop_common::BETA))
            .service(web::resource("/wishlist").get(async || shop_common::WISHLIST))
            .wrap(FlagGate::enabled(Beta));
        let sale = FlagGate::enabled(SummerSale).fallback(|| (shop_common::SALE_IS_OVER, StatusCode::GONE));

        // Before the scope below, which matches every path, and outside of it, so that probes have no session.
        config.route("/health/flags", web::to(flipswitch_actix::health(provider)));
        config.service(
            web::scope("")
                .route("/", web::get().to(home))
                .route("/login", web::post().to(login))
                .route("/logout", web::post().to(logout))
                .route("/checkout", web::get().to(checkout))
                .service(web::resource("/sale").get(async || shop_common::SALE).wrap(sale))
                .service(beta)
                .wrap(flags)
                // The middleware that is added last runs first: the session, then the identity that is stored in it, then
                // the flags. If the flags ran first, `get_identity` would panic. The middleware would catch the panic and
                // log a warning, and all users would be visitors.
                .wrap(IdentityMiddleware::default())
                .wrap(sessions),
        );
    }
}

/// Builds the context of a user. It has the attributes that rules use, and no others: every distinct context is evaluated
/// separately.
fn context(user: &User) -> Context {
    Context::user(user.id).with("plan", user.plan)
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
    // This request still has the flags of the visitor. The next one has those of the user.
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
