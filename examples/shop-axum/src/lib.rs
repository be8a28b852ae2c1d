//! The shop on axum: sessions by `tower-sessions`, logins by `axum-login`, and the flags of whoever asks.

use std::convert::Infallible;

use axum::{
    Form, Router,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use flipswitch_axum::{Anonymous, Flag, FlagGate, Flags, FlipswitchLayer, flipswitch::FlipswitchProvider};
use shop_common::{Beta, Login, MaxItems, NewCheckout, SummerSale, Theme, User};
use tower_sessions::{MemoryStore, SessionManagerLayer, cookie::SameSite};

/// The application. `provider` may be shared with other parts of the process.
pub fn app(provider: FlipswitchProvider) -> Router {
    // The shop is served over plain HTTP on your own machine, where few browsers take cookies that are `Secure`. Behind
    // HTTPS both of these stay at their better settings: `Anonymous::cookie()`, and `with_secure(true)`, the default.
    let visitors = Anonymous::cookie().secure(false);
    let sessions = SessionManagerLayer::new(MemoryStore::default())
        .with_secure(false)
        // By default the cookie is kept back when a user follows a link from another site: the first page would be one
        // with a visitor's flags.
        .with_same_site(SameSite::Lax);

    let flags = FlipswitchLayer::new(provider.clone())
        // The extension that `axum-login` makes is a session, with or without a user: without one the visitor counts.
        .with_user(|session: &Session| user(session).map(shop_common::context))
        .with_anonymous(visitors);
    let authentication = AuthManagerLayerBuilder::new(Users, sessions).build();

    let beta = Router::new()
        .route("/beta", get(shop_common::BETA))
        .route("/beta/wishlist", get(shop_common::WISHLIST))
        // With `layer`, the gate would stand before the fallback, too, which `merge` makes the one of the whole shop: every
        // path that there is not would read a flag first.
        .route_layer(FlagGate::enabled(Beta));
    let sale = FlagGate::enabled(SummerSale).fallback((StatusCode::GONE, shop_common::SALE_IS_OVER));

    Router::new()
        .route("/", get(home))
        .route("/login", post(login))
        .route("/logout", post(logout))
        .route("/checkout", get(checkout))
        .route("/sale", get(shop_common::SALE).layer(sale))
        .merge(beta)
        .layer(flags)
        // What is added last runs first: this one after the flags, so that the user is known when they ask who it is. The
        // other way round everybody would be a visitor, and a warning would say so.
        .layer(authentication)
        // Below the layers, so that probes touch no session.
        .route_service("/health/flags", flipswitch_axum::health(provider))
}

async fn home(session: Session, flags: Flags) -> Html<String> {
    Html(shop_common::home(user(&session), &flags))
}

async fn checkout(
    Flag(new): Flag<NewCheckout>,
    Flag(max_items): Flag<MaxItems>,
    Flag(theme): Flag<Theme>,
) -> Html<String> {
    Html(shop_common::checkout(new, max_items, &theme))
}

async fn login(mut session: Session, Form(login): Form<Login>) -> Result<Response, StatusCode> {
    let Some(user) = session.authenticate(login.clone()).await.map_err(|error| failed(&error))? else {
        return Ok((StatusCode::UNAUTHORIZED, Html(shop_common::unknown(&login.name))).into_response());
    };
    session.login(&user).await.map_err(|error| failed(&error))?;
    // The flags of this request are those of whoever it came from. The user's are the next one's, so it goes there.
    Ok(Redirect::to("/").into_response())
}

async fn logout(mut session: Session) -> Result<Redirect, StatusCode> {
    session.logout().await.map_err(|error| failed(&error))?;
    Ok(Redirect::to("/"))
}

/// The session of a request, as `axum-login` puts it into the extensions.
type Session = AuthSession<Users>;

fn user(session: &Session) -> Option<&'static User> {
    session.user.as_ref().map(|customer| customer.0)
}

fn failed(error: &axum_login::Error<Users>) -> StatusCode {
    tracing::error!(%error, "the session cannot be used");
    StatusCode::INTERNAL_SERVER_ERROR
}

/// The users as `axum-login` asks for them.
#[derive(Clone, Debug)]
struct Users;

/// A user as `axum-login` needs one.
#[derive(Clone, Debug)]
struct Customer(&'static User);

impl AuthnBackend for Users {
    type User = Customer;
    type Credentials = Login;
    type Error = Infallible;

    async fn authenticate(&self, login: Login) -> Result<Option<Customer>, Infallible> {
        Ok(User::named(&login.name).map(Customer))
    }

    async fn get_user(&self, id: &String) -> Result<Option<Customer>, Infallible> {
        Ok(User::with_id(id).map(Customer))
    }
}

impl AuthUser for Customer {
    type Id = String;

    fn id(&self) -> String {
        self.0.id.to_owned()
    }

    /// Sessions end when this changes. It is the hash of the password where there is one.
    fn session_auth_hash(&self) -> &[u8] {
        self.0.id.as_bytes()
    }
}
