//! The compiler's command line, for tests that call the compiler.

use std::env;

use proc_macro::TokenStream;

/// Expands to a slice of strings: the path of the running compiler, then its arguments.
///
/// A test needs them to compile a file with the libraries that the test itself was built with. Only cargo knows which files in
/// its target folder these are, and a second call to cargo would rebuild them whenever it selects different packages or features.
/// A macro runs inside the compiler and can read the arguments.
#[proc_macro]
#[expect(clippy::expect_used, clippy::missing_panics_doc, reason = "quoted strings are valid Rust")]
pub fn rustc_args(_: TokenStream) -> TokenStream {
    let compiler = env::current_exe().unwrap_or_else(|_| "rustc".into()).into_os_string();
    let words = [compiler].into_iter().chain(env::args_os().skip(1));
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    format!("&{words:?}").parse().expect("a slice of strings")
}
