//! The subcommand `override`: mints flag overrides for a browser.

use std::{
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime},
};

use lexopt::{
    Arg::{Long, Value as Positional},
    ValueExt,
};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::overrides::{COOKIE, Key, LINK_LIFETIME, Overrides, PARAMETER, Purpose};

const HELP: &str = "\
Mint flag overrides for one browser, to test an application. A browser that opens the printed link reads these
values instead of the values from the service. The application must accept overrides (`with_overrides` of its layer or
middleware), with the same key and for these flags.

Usage: flipswitch-local override [OPTIONS] FLAG=VALUE...

  FLAG=VALUE       Flag and its value: JSON, or text if it is not JSON. In a shell, write version='\"1.10\"' for a
                   string that looks like a number

  --key-file FILE  File with the key of the application's overrides [default: the environment variable
                   FLIPSWITCH_OVERRIDES_KEY]
  --name NAME      Name of the provider in the application [default: a provider without a name]
  --for KEY        Targeting key of the only user that may use the overrides [default: every user of the browser]
  --hours N        Number of hours that the overrides last, from 1 to 168 [default: 8]
  --url URL        Page to open: prints the whole link [default: prints the query flipswitch=..]
  --cookie         Print the cookie instead of a link, for tests
  --help           Print this help

A link can be opened for 15 minutes. ?flipswitch=off on any page of the application ends the overrides. Anyone who has a
link or a cookie can use it, so send it only to testers.

Example:
  flipswitch-local override --key-file overrides.key --url https://shop.example/checkout new-checkout=true theme=dark
";

/// Environment variable with the key.
const KEY_VARIABLE: &str = "FLIPSWITCH_OVERRIDES_KEY";

struct Options {
    key_file: Option<PathBuf>,
    overrides: Overrides,
    output: Output,
}

enum Output {
    /// The query of a link.
    Query,
    /// The link of a page.
    Link(String),
    Cookie,
}

/// Runs the subcommand with the arguments after its name.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match parse(lexopt::Parser::from_args(arguments)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{}", HELP.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(error) => return usage(&error.to_string()),
    };
    let (source, key) = match (&options.key_file, std::env::var_os(KEY_VARIABLE)) {
        (Some(file), _) => {
            (format!("--key-file {}", file.display()), std::fs::read(file).map_err(|error| error.to_string()))
        }
        (None, Some(key)) => (KEY_VARIABLE.to_owned(), Ok(key.into_encoded_bytes())),
        (None, None) => return usage(&format!("no key: pass --key-file FILE, or set {KEY_VARIABLE}")),
    };
    let key = match key.and_then(|key| Key::new(&key)) {
        Ok(key) => key,
        Err(problem) => {
            eprintln!("flipswitch-local override: {source}: {problem}");
            return ExitCode::FAILURE;
        }
    };
    let now = SystemTime::now();
    let purpose = if matches!(options.output, Output::Cookie) { Purpose::Cookie } else { Purpose::Link };
    let token = match options.overrides.token(&key, purpose, now) {
        Ok(token) => token,
        Err(problem) => return usage(&problem),
    };
    eprint!("{}", description(&options, purpose, now));
    match options.output {
        Output::Query => println!("{PARAMETER}={token}"),
        Output::Link(page) => println!("{}", link(&page, &token)),
        Output::Cookie => println!("{COOKIE}={token}"),
    }
    ExitCode::SUCCESS
}

fn usage(problem: &str) -> ExitCode {
    eprintln!("flipswitch-local override: {problem}\nTry flipswitch-local override --help.");
    ExitCode::from(2)
}

/// Returns the options, or `None` if the help is requested.
fn parse(mut arguments: lexopt::Parser) -> Result<Option<Options>, lexopt::Error> {
    let (mut key_file, mut page, mut cookie) = (None, None, false);
    let mut overrides = Overrides {
        flags: Map::new(),
        provider_name: String::new(),
        targeting_key: None,
        lifetime: Duration::from_secs(8 * 3600),
    };
    while let Some(argument) = arguments.next()? {
        match argument {
            Long("key-file") => key_file = Some(arguments.value()?.into()),
            Long("name") => overrides.provider_name = checked("--name", &arguments.value()?, provider_name)?,
            Long("for") => overrides.targeting_key = Some(checked("--for", &arguments.value()?, targeting_key)?),
            Long("hours") => overrides.lifetime = checked("--hours", &arguments.value()?, hours)?,
            Long("url") => page = Some(checked("--url", &arguments.value()?, page_url)?),
            Long("cookie") => cookie = true,
            Long("help") => return Ok(None),
            Positional(argument) => {
                let argument = argument.string()?;
                let (flag, value) = argument
                    .split_once('=')
                    .filter(|(flag, _)| !flag.is_empty())
                    .ok_or_else(|| format!("{argument}: must be FLAG=VALUE, such as new-checkout=true"))?;
                if overrides.flags.insert(flag.to_owned(), value_of(value)).is_some() {
                    return Err(format!("{argument}: {flag} already has a value").into());
                }
            }
            other => return Err(other.unexpected()),
        }
    }
    if overrides.flags.is_empty() {
        return Err("no flags: pass FLAG=VALUE, such as new-checkout=true".into());
    }
    let output = match (page, cookie) {
        (Some(_), true) => return Err("--url and --cookie cannot be used together".into()),
        (Some(page), false) => Output::Link(page),
        (None, true) => Output::Cookie,
        (None, false) => Output::Query,
    };
    Ok(Some(Options { key_file, overrides, output }))
}

/// Checks the value of an option. An error names both.
fn checked<T>(
    option: &str,
    value: &OsStr,
    check: impl FnOnce(&str) -> Result<T, &'static str>,
) -> Result<T, lexopt::Error> {
    let Some(text) = value.to_str() else {
        return Err(format!("{option} {}: must be UTF-8", value.display()).into());
    };
    check(text).map_err(|problem| format!("{option} {text}: {problem}").into())
}

fn provider_name(text: &str) -> Result<String, &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let is_name = (1..=32).contains(&text.len()) && text.bytes().all(is_allowed);
    is_name.then(|| text.to_owned()).ok_or("must be the name of a provider: 1 to 32 letters, digits, - and _")
}

fn targeting_key(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("must not be empty") } else { Ok(text.to_owned()) }
}

fn hours(text: &str) -> Result<Duration, &'static str> {
    let hours = text.parse().ok().filter(|hours| (1..=168).contains(hours));
    hours.map(|hours: u64| Duration::from_secs(hours * 3600)).ok_or("must be a whole number from 1 to 168")
}

fn page_url(text: &str) -> Result<String, &'static str> {
    let is_clean = !text.contains(|letter: char| letter.is_whitespace() || letter.is_control());
    let is_page = is_clean && host(text).is_some_and(|(_, host)| !host.is_empty());
    is_page.then(|| text.to_owned()).ok_or("must be the URL of a page, such as https://shop.example/checkout")
}

/// Returns whether a URL uses https, and its host. Returns `None` if it uses neither http nor https.
fn host(url: &str) -> Option<(bool, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    let is_https = scheme.eq_ignore_ascii_case("https");
    if !is_https && !scheme.eq_ignore_ascii_case("http") {
        return None;
    }
    let authority = rest.split(['/', '\\', '?', '#']).next()?;
    let (_, address) = authority.rsplit_once('@').unwrap_or(("", authority));
    let host = match address.find(']') {
        Some(end) => &address[..=end],
        None => address.split(':').next()?,
    };
    Some((is_https, host))
}

/// Returns whether browsers may keep the cookie for a page: whether its URL uses https, or the page is on the same machine.
fn keeps_cookies(page: &str) -> bool {
    host(page).is_some_and(|(is_https, host)| {
        let host = host.to_ascii_lowercase();
        is_https
            || host == "localhost"
            || host.ends_with(".localhost")
            || host == "[::1]"
            || host.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
    })
}

fn value_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// Adds the token to the query of a page, and replaces an existing token.
fn link(page: &str, token: &str) -> String {
    let (page, fragment) = page.split_at(page.find('#').unwrap_or(page.len()));
    let (path, query) = page.split_once('?').unwrap_or((page, ""));
    let is_other = |pair: &&str| !pair.is_empty() && pair.split('=').next() != Some(PARAMETER);
    let token = format!("{PARAMETER}={token}");
    let pairs: Vec<_> = query.split('&').filter(is_other).chain([token.as_str()]).collect();
    format!("{path}?{}{fragment}", pairs.join("&"))
}

/// Describes what is minted, and the time until which it can be used.
fn description(options: &Options, purpose: Purpose, now: SystemTime) -> String {
    let Options { overrides, output, .. } = options;
    let user = match &overrides.targeting_key {
        Some(key) => format!("targeting key {key:?} only"),
        None => "every user of the browser".to_owned(),
    };
    let provider = match overrides.provider_name.as_str() {
        "" => "without a name",
        name => name,
    };
    let until = utc(overrides.expiry(purpose, now));
    let lifetime = match overrides.lifetime.as_secs() / 3600 {
        1 => "1 hour".to_owned(),
        hours => format!("{hours} hours"),
    };
    let validity = match purpose {
        Purpose::Link => {
            let minutes = LINK_LIFETIME.as_secs() / 60;
            format!(
                "Open the link within {minutes} minutes, until {until}. The overrides then last for {lifetime} in that \
                 browser, or until it opens a page with ?{PARAMETER}=off."
            )
        }
        Purpose::Cookie => format!("The cookie is valid for {lifetime}, until {until}."),
    };
    let warning = match output {
        Output::Link(page) if !keeps_cookies(page) => {
            "Warning: this page does not use https, so browsers will not keep the overrides cookie.\n"
        }
        _ => "",
    };
    let flags = Value::from(overrides.flags.clone());
    format!("Overrides {flags}\n  for: {user}\n  provider: {provider}\n{validity}\n{warning}")
}

/// Formats a time, in seconds since the Unix epoch.
fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| format!("second {seconds}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_link_keeps_query_and_fragment_of_the_page() {
        for (page, expected) in [
            ("https://a.example", "https://a.example?flipswitch=T"),
            ("https://a.example/b?", "https://a.example/b?flipswitch=T"),
            ("https://a.example/b?c=1&d=%20?e", "https://a.example/b?c=1&d=%20?e&flipswitch=T"),
            ("https://a.example/#/b?c", "https://a.example/?flipswitch=T#/b?c"),
            ("https://a.example/b?c=1#d", "https://a.example/b?c=1&flipswitch=T#d"),
            (
                "https://a.example/?flipswitch=S&flipswitches=1&flipswitch",
                "https://a.example/?flipswitches=1&flipswitch=T",
            ),
        ] {
            assert_eq!(link(page, "T"), expected, "{page}");
        }
    }

    #[test]
    fn values_are_json_or_text() {
        for (text, expected) in [
            ("true", json!(true)),
            ("10", json!(10)),
            ("0.1", json!(0.1)),
            ("dark", json!("dark")),
            ("", json!("")),
            ("\"1.10\"", json!("1.10")),
            ("{\"max\": 1}", json!({"max": 1})),
            ("a=b", json!("a=b")),
            ("True", json!("True")),
        ] {
            assert_eq!(value_of(text), expected, "{text}");
        }
    }

    #[test]
    fn pages_have_a_host_and_keep_the_cookie_over_https_or_on_this_machine() {
        for kept in [
            "https://a.example/b",
            "HTTPS://u:p@a.example:8443",
            "http://localhost:3000/",
            "http://shop.LOCALHOST",
            "http://127.0.0.2:80?b",
            "http://[::1]:3000/",
        ] {
            assert!(page_url(kept).is_ok() && keeps_cookies(kept), "{kept}");
        }
        for lost in ["http://a.example", "http://localhost@a.example/", "http://a.example#localhost", "http://[::2]/"] {
            assert!(page_url(lost).is_ok() && !keeps_cookies(lost), "{lost}");
        }
        for none in
            ["", "/checkout", "a.example/b", "ftp://a.example", "https:///b", "https://a.example/b c", "https://:80"]
        {
            assert!(page_url(none).is_err(), "{none}");
        }
    }
}
