//! Sanitises text from outside, for logs and errors.

/// Maximum length of the text that is kept, in bytes.
const MAX_BYTES: usize = 256;

/// Removes control characters, and truncates the text to 256 bytes.
pub(crate) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len().min(MAX_BYTES));
    for character in text.chars().filter(|character| !character.is_control()) {
        if clean.len() + character.len_utf8() > MAX_BYTES {
            clean.push('…');
            break;
        }
        clean.push(character);
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_removed_and_long_text_is_truncated() {
        assert_eq!(printable("a\u{1b}[31mb\nc"), "a[31mbc");
        let long = printable(&"ä".repeat(1_000));
        assert_eq!(long.chars().count(), 129);
        assert!(long.ends_with('…'));
    }
}
