//! How the compiler was called, told to what it compiles.

use std::env;

use proc_macro::TokenStream;

/// Becomes a slice of strings: the compiler's path, and each of its arguments.
///
/// Tests call the compiler once more with it, with the very libraries that they themselves were built with. Only cargo
/// knows which of the files in its folders those are; another cargo would build them anew wherever it was asked for other
/// packages, features or settings than the first one. A macro runs within the compiler, and can look.
#[proc_macro]
#[expect(clippy::expect_used, clippy::missing_panics_doc, reason = "strings in quotes are Rust")]
pub fn invocation(_: TokenStream) -> TokenStream {
    let compiler = env::current_exe().unwrap_or_else(|_| "rustc".into()).into_os_string();
    let words: Vec<_> =
        [compiler].into_iter().chain(env::args_os().skip(1)).map(|word| word.to_string_lossy().into_owned()).collect();
    format!("&{words:?}").parse().expect("a slice of strings")
}
