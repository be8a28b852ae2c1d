//! Flags for users with a session, and for visitors with a cookie (actix-web, with actix-session and actix-identity).
//!
//! ```text
//! $ cargo run -p examples --bin sessions-actix
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

use std::error::Error;

use actix_identity::{Identity, IdentityExt, IdentityMiddleware};
use actix_session::{SessionMiddleware, storage::CookieSessionStore};
use actix_web::{
    App, HttpMessage, HttpRequest, HttpServer, Responder,
    cookie::Key,
    dev::ServiceRequest,
    error::{ErrorInternalServerError, ErrorUnauthorized},
    web::{self, Path, Redirect, ServiceConfig},
};
use flipswitch_actix::{
    Anonymous, Context, FlagGate, Flags, FlipswitchMiddleware, FlipswitchProvider, Lifespan,
    flipswitch::serde_json::{Value, json},
};
use flipswitch_local::LocalServer;

pub fn app(provider: FlipswitchProvider, key: Key) -> impl FnOnce(&mut ServiceConfig) {
    // `secure(false)` and `cookie_secure(false)` are for plain HTTP on this machine. Leave both out with HTTPS.
    let flags = FlipswitchMiddleware::new(provider)
        // The context has the attributes that rules use. A session without a user belongs to a visitor.
        .with_context(|request: &ServiceRequest| {
            let user = user(&request.get_identity().ok()?)?;
            Some(Context::user(user.name).with("plan", user.plan))
        })
        .with_anonymous(Anonymous::cookie().secure(false));
    let sessions = SessionMiddleware::builder(CookieSessionStore::default(), key).cookie_secure(false).build();
    let beta = web::resource("/beta").get(async || "You are among the first to see this.\n");
    let routes = web::scope("")
        .route("/", web::get().to(home))
        .route("/login/{name}", web::post().to(login))
        .route("/logout", web::post().to(logout))
        .service(beta.wrap(FlagGate::enabled("beta")))
        .wrap(flags)
        // The middleware that is added last runs first: the flags need the identity, which is stored in the session.
        .wrap(IdentityMiddleware::default())
        .wrap(sessions);
    |config| {
        config.service(routes);
    }
}

async fn home(identity: Option<Identity>, flags: Flags) -> String {
    let name = identity.and_then(|identity| user(&identity)).map_or("visitor", |user| user.name);
    format!("Hello, {name}. A cart holds {} items.\n", flags.int("max-items", 10))
}

/// Logs a user in. This request still has the flags for the visitor, and the next one has the flags for the user.
async fn login(request: HttpRequest, name: Path<String>) -> actix_web::Result<impl Responder> {
    let user = find(&name).ok_or_else(|| ErrorUnauthorized("unknown user"))?;
    Identity::login(&request.extensions(), user.name.to_owned()).map_err(ErrorInternalServerError)?;
    Ok(Redirect::to("/").see_other())
}

async fn logout(identity: Option<Identity>) -> impl Responder {
    if let Some(identity) = identity {
        identity.logout();
    }
    Redirect::to("/").see_other()
}

struct User {
    name: &'static str,
    plan: &'static str,
}

fn user(identity: &Identity) -> Option<User> {
    find(&identity.id().ok()?)
}

/// Stands in for a table of users. A real application takes names and passwords from a form.
fn find(name: &str) -> Option<User> {
    match name {
        "alice" => Some(User { name: "alice", plan: "premium" }),
        "bob" => Some(User { name: "bob", plan: "free" }),
        _ => None,
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

#[actix_web::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    // Starts a flag service for this example. In production, `FlipswitchProvider::from_env()?` replaces these two lines.
    let service = LocalServer::start(flags()).await?;
    let provider = FlipswitchProvider::builder(service.api_key()).base_url(service.url()).build()?;

    let lifespan = Lifespan::builder(provider.clone()).start().await?;
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:3000".to_owned());
    // The closure runs once per worker: all workers share the provider and the key. In production, the key is stored, so that
    // sessions remain valid after a restart.
    let key = Key::generate();
    let server = HttpServer::new(move || App::new().configure(app(provider.clone(), key.clone())))
        // Replaces actix's own handling of signals, which does not let requests finish on SIGINT.
        .shutdown_signal(lifespan.signal())
        .bind(address)?;
    println!("Application  http://{}/", server.addrs()[0]);
    println!("Dashboard    {}", service.dashboard_url());
    Ok(lifespan.run(server.run()).await?)
}
