//! Compiles the examples of the project's README. The tests across the crates are in `it/`.

/// The project's README.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Readme;

/// The page about flags in the browser.
#[doc = include_str!("../../docs/browsers.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Browsers;

/// The page about declared flags.
#[doc = include_str!("../../docs/declared-flags.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct DeclaredFlags;

/// The page about telemetry and usage.
#[doc = include_str!("../../docs/telemetry.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Telemetry;

/// The page about overrides and inspection.
#[doc = include_str!("../../docs/overrides.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Overrides;

/// The page about stores.
#[doc = include_str!("../../docs/stores.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Stores;
