//! The scenarios, which pass in both shops.

use flipswitch::{
    Context,
    serde_json::{Value, json},
};
use futures_util::future::join_all;

use super::{
    browser::{SESSION, VISITOR},
    shop::{Serve, Shop, eventually},
};
use crate::{BETA, SALE, SALE_IS_OVER, User, WISHLIST};

/// The first page that reads a flag sets the cookie of a visitor, and no later one does.
pub fn a_visitor_gets_a_cookie_once_a_flag_was_read(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        browser.log_out().await;
        browser.get("/nowhere").await;
        browser.get("/health/flags").await;
        assert_eq!(browser.visitor(), None);
        assert_eq!(browser.get("/checkout").await.new_cookies, [VISITOR]);
        let visitor = browser.visitor();
        assert!(browser.get("/").await.new_cookies.is_empty());
        assert_eq!(browser.visitor(), visitor);
        // Users have none.
        assert_eq!(shop.browser_of("alice").await.get("/").await.new_cookies, [""; 0]);
    });
}

/// A rule for one visitor applies to all pages of that visitor, and to no other visitor.
pub fn a_visitor_keeps_its_identity(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let (mut one, mut other) = (shop.browser(), shop.browser());
        one.get("/").await;
        other.get("/").await;
        open_beta_for(&shop, &one.visitor().unwrap());
        eventually(async || one.get("/beta").await.status == 200).await;
        for _ in 0..10 {
            assert_eq!((one.get("/beta").await.status, other.get("/beta").await.status), (200, 404));
        }
    });
}

/// A percentage rule gives a visitor the same value on all pages.
pub fn a_visitor_keeps_its_side_of_a_percentage_rule(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let themes = join_all((0..40).map(async |_| {
            let mut browser = shop.browser();
            // The first page has the shared context, and sets the cookie.
            browser.get("/").await;
            let theme = browser.get("/").await.flags()["theme"].clone();
            for _ in 0..5 {
                assert_eq!(browser.get("/").await.flags()["theme"], theme);
            }
            theme
        }))
        .await;
        assert!(themes.contains(&json!("light")) && themes.contains(&json!("dark")), "{themes:?}");
    });
}

/// A user who logs in is greeted by name, and has the flags that the service evaluates for that user.
pub fn a_user_gets_the_flags_of_that_user(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        for name in ["alice", "bob"] {
            let mut browser = shop.browser_of(name).await;
            let page = browser.get("/").await;
            assert!(is_for(&page.body, name), "{page:?}");
            assert_eq!(page.flags(), flags_of(&shop, name).await);
            assert_eq!(browser.visitor(), None);
        }
    });
}

/// Each page is for the user who is logged in, and after the logout for the same visitor as before.
pub fn pages_follow_the_user_of_the_session(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        browser.get("/").await;
        let visitor = browser.visitor().unwrap();
        open_beta_for(&shop, &visitor);
        eventually(async || browser.get("/beta").await.status == 200).await;

        for name in ["alice", "bob", "alice"] {
            browser.log_in(name).await;
            let page = browser.get("/").await;
            assert!(is_for(&page.body, name), "{page:?}");
            assert_eq!(browser.get("/beta").await.status, 404);
        }
        browser.log_out().await;
        let page = browser.get("/").await;
        assert!(page.has("Welcome, visitor") && page.flags()["max-items"] == 5, "{page:?}");
        assert_eq!((browser.get("/beta").await.status, browser.visitor()), (200, Some(visitor)));
    });
}

/// Concurrent users never get the name or the flags of another user, also while flags change.
pub fn concurrent_users_get_their_own_flags(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let visits = join_all((0..8).map(async |number| {
            let name = ["alice", "bob"][number % 2];
            let mut browser = shop.browser_of(name).await;
            for round in 0..25 {
                let page = browser.get("/").await;
                assert!(is_for(&page.body, name), "{page:?}");
                let checkout = browser.get("/checkout").await;
                assert_eq!(checkout.has("All on one page."), name == "alice", "{checkout:?}");
                // Makes all cached flags stale.
                shop.service.set_flag("summer-sale", round % 2 == 0);
            }
        }));
        visits.await;
    });
}

/// Declared flags have their types, and follow changes.
pub fn declared_flags_have_their_types_and_values(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        shop.service.set_flag("theme", "dark");
        for (name, steps, items) in [("alice", "All on one page.", 20), ("bob", "In three steps.", 5)] {
            let page = shop.browser_of(name).await.get("/checkout").await;
            let text = format!("{steps} A cart holds {items} items. The theme is dark.");
            assert!(page.status == 200 && page.has(&text), "{page:?}");
        }
        let mut bob = shop.browser_of("bob").await;
        shop.service.set_flag("max-items", 7);
        eventually(async || bob.get("/checkout").await.has("A cart holds 7 items.")).await;
        // Not the declared type.
        shop.service.set_flag("max-items", "seven");
        eventually(async || bob.get("/checkout").await.has("A cart holds 10 items.")).await;
    });
}

/// Without the flag service, all pages work, with the declared defaults.
pub fn declared_flags_have_their_defaults_in_an_outage(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        shop.disconnect_service();
        let mut alice = shop.browser_of("alice").await;
        let page = alice.get("/checkout").await;
        assert!(page.has("In three steps. A cart holds 10 items. The theme is light."), "{page:?}");
        let page = alice.get("/").await;
        assert!(page.has("Good day, alice") && page.flags() == json!({}), "{page:?}");
        assert_eq!((alice.get("/beta").await.status, alice.get("/sale").await.status), (404, 410));
        assert_eq!(alice.get("/health/flags").await.status, 200);
    });
}

/// A closed gate responds like an unknown path, for all methods. A login opens it.
pub fn a_closed_gate_responds_like_an_unknown_path(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        for name in [None, Some("bob")] {
            if let Some(name) = name {
                browser.log_in(name).await;
            }
            for path in ["/nowhere", "/beta", "/beta/wishlist", "/beta/nowhere"] {
                let (page, sent) = (browser.get(path).await, browser.post(path, "").await);
                assert_eq!((page.status, page.body.as_str()), (404, ""), "{path}");
                assert_eq!((sent.status, sent.body.as_str()), (404, ""), "{path}");
            }
        }
        browser.log_in("alice").await;
        let page = browser.get("/beta").await;
        assert_eq!((page.status, page.body.as_str()), (200, BETA));
        assert_eq!(browser.get("/beta/wishlist").await.body, WISHLIST);
        assert_eq!(browser.post("/beta", "").await.status, 405);
        assert_eq!(browser.get("/beta/nowhere").await.status, 404);
        browser.log_out().await;
        assert_eq!(browser.get("/beta").await.status, 404);
    });
}

/// Flipping a flag at the service opens and closes a gate of the running shop.
pub fn a_gate_opens_when_its_flag_is_flipped(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut bob = shop.browser_of("bob").await;
        assert_eq!(bob.get("/beta").await.status, 404);
        shop.service.set_flag("beta", true);
        eventually(async || bob.get("/beta").await.body == BETA).await;
        shop.service.set_flag("beta", false);
        eventually(async || bob.get("/beta").await.status == 404).await;
    });
}

/// A closed gate responds with its fallback.
pub fn a_closed_gate_responds_with_its_fallback(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        let page = browser.get("/sale").await;
        assert_eq!((page.status, page.body.as_str()), (410, SALE_IS_OVER));
        shop.service.set_flag("summer-sale", true);
        eventually(async || browser.get("/sale").await.body == SALE).await;
    });
}

/// The script has all flags of the user, and no value can end the script or add HTML to a page.
pub fn the_script_of_the_page_has_all_flags_escaped(serve: impl Serve) {
    const HOSTILE: &str = "</script><script>alert('flag')</script><!-- & \u{2028}";
    Shop::run(serve, async |shop| {
        let mut alice = shop.browser_of("alice").await;
        shop.service.set_flag("theme", HOSTILE);
        shop.service.set_flag("banner", json!({"<": [HOSTILE, null, 1.5]}));
        eventually(async || alice.get("/").await.flags()["banner"]["<"][0] == HOSTILE).await;
        let page = alice.get("/").await;
        assert_eq!(page.flags(), flags_of(&shop, "alice").await);
        assert_eq!(page.flags()["theme"], HOSTILE);
        assert_eq!(page.body.matches("<script>").count(), 2, "{page:?}");
        let checkout = alice.get("/checkout").await;
        assert!(checkout.has("&lt;/script&gt;&lt;script&gt;alert(&#39;flag&#39;)"), "{checkout:?}");
        assert!(!checkout.has("<script>"), "{checkout:?}");
    });
}

/// An unknown name is shown escaped, and logs no user in or out.
pub fn user_input_is_escaped(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        let page = browser.post("/login", "name=%3Cscript%3E%26%22bob%22").await;
        assert_eq!(page.status, 401);
        assert!(page.has("Unknown user “&lt;script&gt;&amp;&quot;bob&quot;”"), "{page:?}");
        assert!(browser.get("/").await.has("Welcome, visitor"));
        browser.log_in("alice").await;
        assert_eq!(browser.post("/login", "name=mallory").await.status, 401);
        assert!(browser.get("/").await.has("Good day, alice"));
    });
}

/// An invalid or modified session cookie has no effect.
pub fn a_forged_session_is_ignored(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut alice = shop.browser_of("alice").await;
        let session = alice.cookies[SESSION].clone();
        let last = if session.ends_with('A') { "Q" } else { "A" };
        let changed = format!("{}{last}", &session[..session.len() - 1]);
        for forged in [changed.as_str(), &session[1..], "", "user-1", "%7B%22user_id%22%3A%22user-1%22%7D"] {
            let mut browser = shop.browser();
            browser.cookies.insert(SESSION.to_owned(), forged.to_owned());
            let page = browser.get("/").await;
            assert!(page.status == 200 && page.has("Welcome, visitor"), "{forged}: {page:?}");
            assert_eq!((page.flags()["max-items"].as_i64(), browser.get("/beta").await.status), (Some(5), 404));
        }
        let page = alice.get("/").await;
        assert!(is_for(&page.body, "alice"), "{page:?}");
        // A visitor's cookie cannot contain the id of a user.
        let mut browser = shop.browser();
        browser.cookies.insert(VISITOR.to_owned(), "user-1".to_owned());
        assert_eq!(browser.get("/beta").await.new_cookies, [VISITOR]);
    });
}

/// The health endpoint reports the state of the provider, and sets no cookie.
pub fn the_health_endpoint_reports_the_provider(serve: impl Serve) {
    Shop::run(serve, async |shop| {
        let mut browser = shop.browser();
        browser.get("/").await;
        let page = browser.get("/health/flags?ready").await;
        assert_eq!(page.status, 200);
        assert!(page.body.parse::<Value>().unwrap().is_object(), "{page:?}");
        shop.provider.shutdown().await;
        assert_eq!(browser.get("/health/flags").await.status, 503);
        assert_eq!(browser.get("/").await.status, 200);
    });
}

/// Turns the beta on for one visitor.
fn open_beta_for(shop: &Shop, visitor: &str) {
    let definition = json!({
        "state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
        "targeting": {"if": [{"==": [{"var": "targetingKey"}, visitor]}, "on", "off"]},
    });
    shop.service.set_definition("beta", definition).unwrap();
}

/// Returns whether the page greets this user, and has the flags of the user's plan.
fn is_for(page: &str, name: &str) -> bool {
    let items = if name == "alice" { 20 } else { 5 };
    page.contains(&format!("Good day, {name}<")) && page.contains(&format!(r#""max-items":{items},"#))
}

/// Returns the flags of a user from the provider.
async fn flags_of(shop: &Shop, name: &str) -> Value {
    let user = User::named(name).unwrap();
    shop.provider.flags(Context::user(user.id).with("plan", user.plan)).await.to_json()
}
