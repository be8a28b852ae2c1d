//! Entity tags of bulk responses.

use std::hash::{DefaultHasher, Hash, Hasher};

use http::{HeaderMap, HeaderValue, header};

/// Returns a tag that depends only on the body.
pub(crate) fn of_body(body: &str) -> HeaderValue {
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    HeaderValue::from_str(&format!("\"{:016x}\"", hasher.finish())).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Returns whether one of the tags in `If-None-Match` is this one.
///
/// The comparison accepts tags that proxies have changed: weakened, without quotes, or with the suffix `-gzip` of compressed
/// responses.
pub(crate) fn is_held(headers: &HeaderMap, tag: &HeaderValue) -> bool {
    let tag = opaque(tag.as_bytes());
    let mut held = headers.get_all(header::IF_NONE_MATCH).iter().flat_map(|value| value.as_bytes().split(is_comma));
    held.any(|held| held.trim_ascii() == b"*" || opaque(held) == tag)
}

/// Returns a tag without the parts that proxies change.
pub(crate) fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
    let tag = tag.strip_prefix(b"\"").unwrap_or(tag);
    let tag = tag.strip_suffix(b"\"").unwrap_or(tag);
    tag.strip_suffix(b"-gzip").unwrap_or(tag)
}

/// The server's tags contain no commas.
fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_as_proxies_change_them() {
        let cases: [(&[&str], bool); 20] = [
            (&[], false),
            (&[""], false),
            (&["\"\""], false),
            (&["\"a1\""], true),
            (&["a1"], true),
            (&["W/\"a1\""], true),
            (&["W/a1"], true),
            (&["\"a1-gzip\""], true),
            (&["W/\"a1-gzip\""], true),
            (&["*"], true),
            (&["\"*\""], false),
            (&["\"a2\""], false),
            (&["\"a1-br\""], false),
            (&["\"a\""], false),
            (&["\"a2\", \"a1\""], true),
            (&["\"a2\",W/\"a1\",\"a3\""], true),
            (&["\"a2\", \"a3\""], false),
            (&["\"a2\"", "\"a1\""], true),
            (&["\"a2\"", "\"a3\", *"], true),
            (&["\"a2\"", "\"a3\""], false),
        ];
        for (lines, expected) in cases {
            let line = |line: &&str| (header::IF_NONE_MATCH, HeaderValue::from_str(line).unwrap());
            let headers: HeaderMap = lines.iter().map(line).collect();
            assert_eq!(is_held(&headers, &HeaderValue::from_static("\"a1\"")), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_tag_depends_on_the_body_only() {
        assert_eq!(of_body("a"), of_body("a"));
        assert_ne!(of_body("a"), of_body("b"));
        assert!(of_body("a").as_bytes().starts_with(b"\""));
    }
}
