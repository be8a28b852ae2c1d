//! The pages, as HTML.

use flipswitch::Flags;

use crate::User;

/// Returns the home page.
#[must_use]
pub fn home(user: Option<&User>, flags: &Flags) -> String {
    let (greeting, account) = match user {
        Some(user) => (format!("Good day, {}", escape(user.name)), LOG_OUT),
        None => ("Welcome, visitor".to_owned(), LOG_IN),
    };
    // Users can read all of their flags in the page. Access is decided on the server, with gates. `to_script_json` escapes
    // everything that could end the script.
    let flags = flags.to_script_json();
    page(
        "Shop",
        &format!(
            r#"<h1>{greeting}</h1>
{account}
<p id="banner"></p>
<ul>
<li><a href="/checkout">Checkout</a></li>
<li id="beta"><a href="/beta">Beta</a></li>
<li id="sale"><a href="/sale">Sale</a></li>
</ul>
<script>const flags = {flags};</script>
<script>{SCRIPT}</script>"#
        ),
    )
}

/// Returns the page for a login with an unknown name.
#[must_use]
pub fn unknown(name: &str) -> String {
    page("Log in", &format!("<h1>Unknown user “{}”</h1>\n{LOG_IN}", escape(name)))
}

/// Returns the checkout.
#[must_use]
pub fn checkout(new: bool, max_items: i64, theme: &str) -> String {
    let steps = if new { "All on one page." } else { "In three steps." };
    // The value of a flag is external input, like what a user types.
    let theme = escape(theme);
    page(
        "Checkout",
        &format!(
            r#"<h1>Checkout</h1>
<p>{steps} A cart holds {max_items} items. The theme is {theme}.</p>
<p><a href="/">Back to the shop</a></p>"#
        ),
    )
}

const LOG_IN: &str = r#"<form method="post" action="/login">
<label>Name <input name="name" placeholder="alice, bob or tester" required></label> <button>Log in</button>
</form>"#;

const LOG_OUT: &str = r#"<form method="post" action="/logout"><button>Log out</button></form>"#;

/// Has a default for each flag, because the flags may be unknown, or the flag service unavailable.
const SCRIPT: &str = "
document.documentElement.style.colorScheme = flags['theme'] ?? 'light';
document.querySelector('#banner').textContent = flags['banner'] ?? '';
document.querySelector('#beta').hidden = !(flags['beta'] ?? false);
document.querySelector('#sale').hidden = !(flags['summer-sale'] ?? false);
";

const STYLE: &str = "
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 2rem auto; padding: 0 1rem; }
";

fn page(title: &str, content: &str) -> String {
    format!(
        r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
{content}
</body>
</html>
"#
    )
}

/// Escapes a text for an element or a quoted attribute.
fn escape(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut safe, character| {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
        safe
    })
}
