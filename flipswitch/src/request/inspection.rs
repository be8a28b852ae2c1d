//! The flags that inspected requests have read, in a header of the response and on a page.

use std::fmt::{self, Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;

use crate::{
    provider::{
        flags::FlagSource,
        inspection::{Inspection, Read},
        provider::FlipswitchProvider,
    },
    request::scope::RequestScope,
};

/// Maximum length of the value of `Server-Timing`, in bytes.
const MAX_HEADER: usize = 1_024;

const STYLE: &str = "body{font:14px system-ui,sans-serif;margin:2rem;color:#222}\
                     table{border-collapse:collapse;margin:.5rem 0 1.5rem}\
                     td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}code{overflow-wrap:anywhere}\
                     .override{background:#fff3c4}";

/// Returns the value of the header `Server-Timing` for the flags that a request has read so far. Browser developer tools show it.
pub(super) fn server_timing(inspection: &Inspection) -> Option<String> {
    let mut header = String::new();
    for read in inspection.reads() {
        let value = read.value.as_deref().unwrap_or("no value");
        let age = read.age.map(|age| format!(", {age} s old")).unwrap_or_default();
        let text = format!("{}={value} ({}{age})", read.key, source(read.source));
        let metric = format!("{}flag;desc=\"{}\"", if header.is_empty() { "" } else { ", " }, quoted(&text));
        if header.len() + metric.len() > MAX_HEADER {
            break;
        }
        header.push_str(&metric);
    }
    (!header.is_empty()).then_some(header)
}

/// Escapes text for a quoted string of a header (RFC 9110, section 5.6.4). Characters other than visible ASCII become `?`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => quoted.push('?'),
        }
    }
    quoted
}

fn source(source: FlagSource) -> &'static str {
    match source {
        FlagSource::Service => "service",
        FlagSource::Stale => "stale",
        FlagSource::Override => "override",
        FlagSource::File => "file",
        FlagSource::Bootstrap => "bootstrap",
        FlagSource::Default => "default",
    }
}

/// The page of the latest inspected requests, for an integration with a web framework.
#[derive(Clone)]
pub struct InspectionPage {
    html: String,
}

impl fmt::Debug for InspectionPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InspectionPage").finish_non_exhaustive()
    }
}

impl InspectionPage {
    /// Creates the page for a request that is itself inspected. Returns `None` for any other request, which must receive a 404.
    #[must_use]
    pub fn new(scope: Option<&RequestScope>, provider: &FlipswitchProvider) -> Option<Self> {
        scope?.of(provider)?.inspection()?;
        Some(Self { html: html(provider) })
    }

    /// Returns the page.
    #[must_use]
    pub fn html(&self) -> &str {
        &self.html
    }

    /// Returns the headers of the response, with names in lower case.
    #[must_use]
    pub fn headers(&self) -> [(&'static str, String); 6] {
        let hash = BASE64_STANDARD.encode(Sha256::digest(STYLE));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        [
            ("content-type", "text/html; charset=utf-8".to_owned()),
            ("content-security-policy", policy),
            ("cache-control", "no-store".to_owned()),
            ("referrer-policy", "no-referrer".to_owned()),
            ("x-content-type-options", "nosniff".to_owned()),
            ("cross-origin-resource-policy", "same-origin".to_owned()),
        ]
    }
}

fn html(provider: &FlipswitchProvider) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Flag reads</title><style>{STYLE}</style>\
         </head><body><h1>Flag reads{}</h1><p>The latest inspected requests of this instance that have read flags, newest \
         first.</p>",
        provider.name().map(|name| format!(": {}", escaped(name))).unwrap_or_default()
    );
    for inspection in provider.inspections().latest() {
        let at = inspection.at.replace_nanosecond(0).unwrap_or(inspection.at).format(&Rfc3339).unwrap_or_default();
        let key = if inspection.has_targeting_key { "a targeting key" } else { "no targeting key" };
        let attributes: Vec<_> = inspection.attributes.iter().map(|name| escaped(name)).collect();
        let attributes = if attributes.is_empty() { "none".to_owned() } else { attributes.join(", ") };
        // Cannot fail: it is a string.
        let _ = write!(
            page,
            "<h2><code>{}</code></h2><p>{at}, with {key}; attributes: {attributes}</p><table><tr><th>flag<th>value<th>variant\
             <th>reason<th>source<th>age<th>default<th>reads</tr>",
            escaped(&inspection.path)
        );
        for read in inspection.reads() {
            row(&mut page, &read);
        }
        page.push_str("</table>");
    }
    page.push_str("</body></html>");
    page
}

fn row(page: &mut String, read: &Read) {
    let class = if read.source == FlagSource::Override { " class=\"override\"" } else { "" };
    let age = read.age.map(|age| format!("{age} s")).unwrap_or_default();
    let text = |text: &Option<String>| text.as_deref().map(escaped).unwrap_or_default();
    let _ = write!(
        page,
        "<tr{class}><td><code>{}</code><td><code>{}</code><td>{}<td>{}<td>{}<td>{age}<td><code>{}</code><td>{}</tr>",
        escaped(&read.key),
        text(&read.value),
        text(&read.variant),
        text(&read.reason),
        source(read.source),
        text(&read.default),
        read.count
    );
}

/// Escapes text for HTML, inside elements and quoted attributes.
fn escaped(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut escaped, character| {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_for_headers_and_pages() {
        assert_eq!(quoted("a\"b\\c\r\nd é\u{7f}"), "a\\\"b\\\\c??d ??");
        assert_eq!(escaped("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
    }
}
