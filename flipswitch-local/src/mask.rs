//! The parts of API keys and long strings that listings show.

/// Paths, contexts and client names are listed up to this many characters.
const MAX_CHARS: usize = 240;

/// Masks an API key. The last four characters of a long key remain, to distinguish keys.
pub(crate) fn mask_key(key: &[u8]) -> String {
    const SHOWN: usize = 4;
    match str::from_utf8(key) {
        Ok(text) if text.is_ascii() && text.len() >= 4 * SHOWN => format!("••••{}", &text[text.len() - SHOWN..]),
        _ => "••••".to_owned(),
    }
}

/// Truncates a string to the part that listings show.
pub(crate) fn truncate(text: &str) -> String {
    match text.char_indices().nth(MAX_CHARS) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_long_key_is_shown() {
        let cases = [("", "••••"), ("local", "••••"), ("fifteen letters", "••••"), ("0123456789abcdef", "••••cdef")];
        for (key, shown) in cases {
            assert_eq!(mask_key(key.as_bytes()), shown);
        }
        assert_eq!(mask_key(&[0xff; 20]), "••••");
    }

    #[test]
    fn long_texts_are_truncated_at_a_character() {
        assert_eq!(truncate("short"), "short");
        assert_eq!(truncate(&"é".repeat(MAX_CHARS)), "é".repeat(MAX_CHARS));
        assert_eq!(truncate(&"é".repeat(MAX_CHARS + 1)), format!("{}…", "é".repeat(MAX_CHARS)));
    }
}
