//! The shop on axum: sessions with `tower-sessions`, logins with `axum-login`, and flags for users and visitors. The users and
//! the HTML are in `shop-common`.

use std::convert::Infallible;

use axum::{
    Form, Router,
    http::StatusCode,
    response::{Html, IntoResponse, Redirect, Response},
    routing::{get, post},
};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use flipswitch_axum::{Anonymous, Context, Flag, FlagGate, Flags, FlipswitchLayer, FlipswitchProvider};
use shop_common::{Login, User};
use tower_sessions::{MemoryStore, SessionManagerLayer, cookie::SameSite};

flipswitch_axum::flags! {
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

/// Creates the application.
pub fn app(provider: FlipswitchProvider) -> Router {
    // Only for plain HTTP on a local machine, where browsers may reject `Secure` cookies. With HTTPS, keep the defaults:
    // `Anonymous::cookie()`, and no `with_secure`.
    let visitors = Anonymous::cookie().secure(false);
    let sessions = SessionManagerLayer::new(MemoryStore::default())
        .with_secure(false)
        // With the default, `Strict`, browsers do not send the cookie when a user follows a link from another site, and the
        // first page would have the flags of a visitor.
        .with_same_site(SameSite::Lax);

    let flags = FlipswitchLayer::new(provider.clone())
        // `axum-login` adds a session to every request. If it has no user, the request is a visitor's.
        .with_user(|session: &Session| user(session).map(context))
        .with_anonymous(visitors);
    let authentication = AuthManagerLayerBuilder::new(Users, sessions).build();

    let beta = Router::new()
        .route("/beta", get(shop_common::BETA))
        .route("/beta/wishlist", get(shop_common::WISHLIST))
        // Not `layer`, which would also apply to the fallback: after `merge`, every unknown path would read the flag.
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
        // The layer that is added last runs first, so the authentication is added after the flags. In the opposite order all
        // users would be visitors, and a warning would be logged.
        .layer(authentication)
        // After the layers, so that probes have no session.
        .route_service("/health/flags", flipswitch_axum::health(provider))
}

/// Builds the context of a user. It has the attributes that rules use, and no others: every distinct context is evaluated
/// separately.
fn context(user: &User) -> Context {
    Context::user(user.id).with("plan", user.plan)
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
    // This request still has the flags of the visitor. The next one has those of the user.
    Ok(Redirect::to("/").into_response())
}

async fn logout(mut session: Session) -> Result<Redirect, StatusCode> {
    session.logout().await.map_err(|error| failed(&error))?;
    Ok(Redirect::to("/"))
}

/// The session of a request, which `axum-login` puts into the extensions.
type Session = AuthSession<Users>;

fn user(session: &Session) -> Option<&'static User> {
    session.user.as_ref().map(|customer| customer.0)
}

fn failed(error: &axum_login::Error<Users>) -> StatusCode {
    tracing::error!(%error, "session failed");
    StatusCode::INTERNAL_SERVER_ERROR
}

/// Looks up users for `axum-login`.
#[derive(Clone, Debug)]
struct Users;

/// A user, for `axum-login`.
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

    /// Returns a value whose change ends the sessions of the user, usually the hash of the password.
    fn session_auth_hash(&self) -> &[u8] {
        self.0.id.as_bytes()
    }
}
