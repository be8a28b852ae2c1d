//! The scenarios, which pass in both applications.

use flipswitch::{Context, serde_json::json};
use futures_util::future::join_all;
use quickstart_common::testing::eventually;

use crate::{
    application::Application,
    browser::{SESSION, VISITOR},
};

const BETA: &str = "You are among the first to see this.\n";

/// The first page that reads a flag sets the visitor cookie, and no later page does.
pub async fn a_visitor_gets_a_cookie_once_a_flag_was_read(application: Application) {
    let mut browser = application.browser();
    browser.log_out().await;
    browser.get("/nowhere").await;
    assert_eq!(browser.visitor(), None);
    assert_eq!(browser.get("/beta").await.new_cookies, [VISITOR]);
    let visitor = browser.visitor();
    assert!(browser.get("/").await.new_cookies.is_empty());
    assert_eq!(browser.visitor(), visitor);
    // Users have none.
    assert_eq!(application.browser_of("alice").await.get("/").await.new_cookies, [""; 0]);
}

/// A rule for one visitor applies to all pages of that visitor, and to no other visitor.
pub async fn a_visitor_keeps_its_identity(application: Application) {
    let (mut one, mut other) = (application.browser(), application.browser());
    one.get("/").await;
    other.get("/").await;
    open_beta_for(&application, &one.visitor().unwrap());
    eventually(async || one.get("/beta").await.status == 200).await;
    for _ in 0..10 {
        assert_eq!((one.get("/beta").await.status, other.get("/beta").await.status), (200, 404));
    }
}

/// A percentage rule gives a visitor the same value on all pages.
pub async fn a_visitor_keeps_its_side_of_a_percentage_rule(application: Application) {
    let halves = json!({
        "state": "ENABLED", "variants": {"few": 5, "many": 20}, "defaultVariant": "few",
        "targeting": {"fractional": [["few", 50], ["many", 50]]},
    });
    application.service.set_definition("max-items", halves).unwrap();
    let pages = join_all((0..40).map(async |_| {
        let mut browser = application.browser();
        // The first page has the shared context, and sets the cookie.
        browser.get("/").await;
        let page = browser.get("/").await.body;
        for _ in 0..5 {
            assert_eq!(browser.get("/").await.body, page);
        }
        page
    }))
    .await;
    for items in [5, 20] {
        let page = format!("Hello, visitor. A cart holds {items} items.\n");
        assert!(pages.contains(&page), "{pages:?}");
    }
}

/// A user who logs in is greeted by name, and has the flags that the service evaluates for that user.
pub async fn a_user_gets_the_flags_of_that_user(application: Application) {
    for (name, plan) in [("alice", "premium"), ("bob", "free")] {
        let mut browser = application.browser_of(name).await;
        assert_eq!(browser.get("/").await.body, page_of(name));
        let flags = application.provider.flags(Context::user(name).with("plan", plan)).await;
        assert_eq!(browser.get("/beta").await.status, if flags.bool("beta", false) { 200 } else { 404 });
        assert_eq!(browser.visitor(), None);
    }
}

/// Each page is for the user who is logged in, and after the logout for the same visitor as before.
pub async fn pages_follow_the_user_of_the_session(application: Application) {
    let mut browser = application.browser();
    browser.get("/").await;
    let visitor = browser.visitor().unwrap();
    open_beta_for(&application, &visitor);
    eventually(async || browser.get("/beta").await.status == 200).await;

    for name in ["alice", "bob", "alice"] {
        browser.log_in(name).await;
        assert_eq!(browser.get("/").await.body, page_of(name));
        assert_eq!(browser.get("/beta").await.status, 404);
    }
    browser.log_out().await;
    assert_eq!(browser.get("/").await.body, page_of("visitor"));
    assert_eq!((browser.get("/beta").await.status, browser.visitor()), (200, Some(visitor)));
}

/// Concurrent users never get the name or the flags of another user, even while flags change.
pub async fn concurrent_users_get_their_own_flags(application: Application) {
    let visits = join_all((0..8).map(async |number| {
        let name = ["alice", "bob"][number % 2];
        let mut browser = application.browser_of(name).await;
        for round in 0..25 {
            assert_eq!(browser.get("/").await.body, page_of(name));
            assert_eq!(browser.get("/beta").await.status, if name == "alice" { 200 } else { 404 });
            // Makes all cached flags stale.
            application.service.set_flag("unused", round % 2 == 0);
        }
    }));
    visits.await;
}

/// Flags follow changes, and the default is used for a value of a different type.
pub async fn flags_follow_changes_and_keep_their_types(application: Application) {
    let mut bob = application.browser_of("bob").await;
    application.service.set_flag("max-items", 7);
    eventually(async || bob.get("/").await.body == "Hello, bob. A cart holds 7 items.\n").await;
    application.service.set_flag("max-items", "seven");
    eventually(async || bob.get("/").await.body == "Hello, bob. A cart holds 10 items.\n").await;
}

/// Without the flag service, all pages work, with the defaults.
pub async fn flags_have_their_defaults_in_an_outage(application: Application) {
    application.disconnect_service();
    let mut alice = application.browser_of("alice").await;
    assert_eq!(alice.get("/").await.body, "Hello, alice. A cart holds 10 items.\n");
    assert_eq!(alice.get("/beta").await.status, 404);
}

/// A closed gate responds like an unknown path, for all methods. A login opens it.
pub async fn a_closed_gate_responds_like_an_unknown_path(application: Application) {
    let mut browser = application.browser();
    for name in [None, Some("bob")] {
        if let Some(name) = name {
            browser.log_in(name).await;
        }
        for path in ["/nowhere", "/beta", "/beta/nowhere"] {
            let (page, sent) = (browser.get(path).await, browser.post(path).await);
            assert_eq!((page.status, page.body.as_str()), (404, ""), "{path}");
            assert_eq!((sent.status, sent.body.as_str()), (404, ""), "{path}");
        }
    }
    browser.log_in("alice").await;
    let page = browser.get("/beta").await;
    assert_eq!((page.status, page.body.as_str()), (200, BETA));
    assert_eq!(browser.post("/beta").await.status, 405);
    assert_eq!(browser.get("/beta/nowhere").await.status, 404);
    browser.log_out().await;
    assert_eq!(browser.get("/beta").await.status, 404);
}

/// Flipping a flag at the service opens and closes a gate of the running application.
pub async fn a_gate_opens_when_its_flag_is_flipped(application: Application) {
    let mut bob = application.browser_of("bob").await;
    assert_eq!(bob.get("/beta").await.status, 404);
    application.service.set_flag("beta", true);
    eventually(async || bob.get("/beta").await.body == BETA).await;
    application.service.set_flag("beta", false);
    eventually(async || bob.get("/beta").await.status == 404).await;
}

/// An unknown name logs no user in or out.
pub async fn an_unknown_user_is_not_logged_in(application: Application) {
    let mut browser = application.browser();
    assert_eq!(browser.post("/login/mallory").await.status, 401);
    assert_eq!(browser.get("/").await.body, page_of("visitor"));
    browser.log_in("alice").await;
    assert_eq!(browser.post("/login/mallory").await.status, 401);
    assert_eq!(browser.get("/").await.body, page_of("alice"));
}

/// An invalid or modified session cookie has no effect.
pub async fn a_forged_session_is_ignored(application: Application) {
    let mut alice = application.browser_of("alice").await;
    let session = alice.cookies[SESSION].clone();
    let last = if session.ends_with('A') { "Q" } else { "A" };
    let changed = format!("{}{last}", &session[..session.len() - 1]);
    for forged in [changed.as_str(), &session[1..], "", "alice", "%7B%22user_id%22%3A%22alice%22%7D"] {
        let mut browser = application.browser();
        browser.cookies.insert(SESSION.to_owned(), forged.to_owned());
        assert_eq!(browser.get("/").await.body, page_of("visitor"), "{forged}");
        assert_eq!(browser.get("/beta").await.status, 404, "{forged}");
    }
    assert_eq!(alice.get("/").await.body, page_of("alice"));
    // A visitor's cookie cannot contain the id of a user.
    let mut browser = application.browser();
    browser.cookies.insert(VISITOR.to_owned(), "alice".to_owned());
    assert_eq!(browser.get("/beta").await.new_cookies, [VISITOR]);
}

/// Turns the beta on for one visitor.
fn open_beta_for(application: &Application, visitor: &str) {
    let definition = json!({
        "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, visitor]}, "on", "off"]},
    });
    application.service.set_definition("beta", definition).unwrap();
}

/// Returns the home page of a user, with the flags of the user's plan.
fn page_of(name: &str) -> String {
    let items = if name == "alice" { 20 } else { 5 };
    format!("Hello, {name}. A cart holds {items} items.\n")
}
