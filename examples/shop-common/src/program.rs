//! What the programs print when they start.
#![expect(clippy::print_stdout, reason = "the programs print to the terminal")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use quickstart_common::FlagSource;

/// Returns the path of the file that defines the flags of the shops.
#[must_use]
pub fn flags_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("flags.json")
}

/// Prints the URLs of the application and of the flag service, the users, and how to flip a flag.
pub fn announce(source: &FlagSource, app: SocketAddr) {
    println!("Application    http://{app}/");
    println!(
        "  log in       as alice (plan premium, and in the beta), bob (plan free) or tester (free, and in the beta)"
    );
    source.announce_service("examples/shop-common/flags.json", "summer-sale");
}
