//! Flags for users with a session, and for visitors with a cookie (axum, with axum-login and tower-sessions).
//!
//! ```text
//! $ cargo run -p examples --bin sessions-axum
//! $ curl -b cookies -c cookies http://127.0.0.1:3000/
//! Hello, visitor. A cart holds 5 items.
//! $ curl -b cookies -c cookies -w '%{http_code}\n' http://127.0.0.1:3000/beta
//! 404
//! $ curl -b cookies -c cookies --location -d '' http://127.0.0.1:3000/login/alice
//! Hello, alice. A cart holds 20 items.
//! $ curl -b cookies -c cookies http://127.0.0.1:3000/beta
//! You are among the first to see this.
//! $ curl -b cookies -c cookies --location -d '' http://127.0.0.1:3000/logout
//! Hello, visitor. A cart holds 5 items.
//! ```
//!
//! The file `cookies` contains the session cookie and the visitor cookie. A rule that splits visitors by percentage therefore
//! gives a visitor the same value at each request after the first, even after a login and a logout.

use std::{convert::Infallible, error::Error};

use axum::{
    Router,
    extract::Path,
    http::StatusCode,
    response::Redirect,
    routing::{get, post},
};
use axum_login::{AuthManagerLayerBuilder, AuthSession, AuthUser, AuthnBackend};
use flipswitch_axum::{
    Anonymous, Context, FlagGate, Flags, FlipswitchLayer, FlipswitchProvider, Lifespan,
    flipswitch::serde_json::{Value, json},
};
use flipswitch_local::LocalServer;
use tokio::net::TcpListener;
use tower_sessions::{MemoryStore, SessionManagerLayer, cookie::SameSite};

type Session = AuthSession<Users>;

pub fn app(provider: FlipswitchProvider) -> Router {
    // `secure(false)` and `with_secure(false)` are for plain HTTP on this machine. Leave both out with HTTPS.
    let flags = FlipswitchLayer::new(provider)
        // The context has the attributes that rules use. A session without a user belongs to a visitor.
        .with_user(|session: &Session| {
            let user = session.user.as_ref()?;
            Some(Context::user(&user.name).with("plan", user.plan))
        })
        .with_anonymous(Anonymous::cookie().secure(false));
    // With the default, `Strict`, a user who follows a link from another site would get the flags for a visitor.
    let sessions = SessionManagerLayer::new(MemoryStore::default()).with_secure(false).with_same_site(SameSite::Lax);
    Router::new()
        .route("/", get(home))
        .route("/beta", get(async || "You are among the first to see this.\n").layer(FlagGate::enabled("beta")))
        .route("/login/{name}", post(login))
        .route("/logout", post(logout))
        .layer(flags)
        // The layer that is added last runs first: the flags need the session.
        .layer(AuthManagerLayerBuilder::new(Users, sessions).build())
}

async fn home(session: Session, flags: Flags) -> String {
    let name = session.user.map_or("visitor".to_owned(), |user| user.name);
    format!("Hello, {name}. A cart holds {} items.\n", flags.int("max-items", 10))
}

/// Logs a user in. This request still has the flags for the visitor, and the next one has the flags for the user.
async fn login(mut session: Session, Path(name): Path<String>) -> Result<Redirect, StatusCode> {
    let user = session.authenticate(name).await.map_err(failed)?.ok_or(StatusCode::UNAUTHORIZED)?;
    session.login(&user).await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

async fn logout(mut session: Session) -> Result<Redirect, StatusCode> {
    session.logout().await.map_err(failed)?;
    Ok(Redirect::to("/"))
}

fn failed(_: axum_login::Error<Users>) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

#[derive(Clone, Debug)]
struct User {
    name: String,
    plan: &'static str,
}

impl AuthUser for User {
    type Id = String;

    fn id(&self) -> String {
        self.name.clone()
    }

    /// Usually the hash of the password: a new password ends all sessions of the user.
    fn session_auth_hash(&self) -> &[u8] {
        self.name.as_bytes()
    }
}

/// Stands in for a table of users. A real application takes names and passwords from a form.
#[derive(Clone, Debug)]
struct Users;

impl AuthnBackend for Users {
    type User = User;
    type Credentials = String;
    type Error = Infallible;

    async fn authenticate(&self, name: String) -> Result<Option<User>, Infallible> {
        self.get_user(&name).await
    }

    async fn get_user(&self, name: &String) -> Result<Option<User>, Infallible> {
        let plans = [("alice", "premium"), ("bob", "free")];
        Ok(plans.iter().find(|(user, _)| user == name).map(|(name, plan)| User { name: (*name).to_owned(), plan }))
    }
}

/// The flags of the service: the beta and large carts are for one plan.
pub fn flags() -> Value {
    let premium = json!({"==": [{"var": "plan"}, "premium"]});
    json!({"flags": {
        "beta": {
            "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
            "targeting": {"if": [premium, "on"]},
        },
        "max-items": {
            "state": "ENABLED", "variants": {"few": 5, "many": 20}, "defaultVariant": "few",
            "targeting": {"if": [premium, "many"]},
        },
    }})
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines.
    let service = LocalServer::start(flags()).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    let listener = TcpListener::bind(address).await?;
    println!("Application  http://{}/", listener.local_addr()?);
    println!("Dashboard    {}", service.dashboard_url());
    let server = axum::serve(listener, app(provider)).with_graceful_shutdown(lifespan.signal());
    Ok(lifespan.run(server).await?)
}
