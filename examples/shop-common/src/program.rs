//! How the programs present themselves.
#![expect(clippy::print_stdout, reason = "a program speaks to its user")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use quickstart_common::FlagSource;

/// Returns the file with the flags of the shops.
#[must_use]
pub fn flags_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("flags.json")
}

/// Tells the user where everything is; `app` is where the application listens.
pub fn announce(source: &FlagSource, app: SocketAddr) {
    println!("Application    http://{app}/");
    println!(
        "  log in       as alice (plan premium, and in the beta), bob (plan free) or tester (free, and in the beta)"
    );
    source.announce_service("examples/shop-common/flags.json", "summer-sale");
}
