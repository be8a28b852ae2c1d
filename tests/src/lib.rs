//! Compiles the examples of the project's README and of the pages in `docs`. The tests across the crates are in `it/`.

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

/// The page about getting started.
#[doc = include_str!("../../docs/getting-started.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct GettingStarted;

/// The page about OpenFeature.
#[doc = include_str!("../../docs/openfeature.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct OpenFeature;

/// The page about outages, changes and options.
#[doc = include_str!("../../docs/outages.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Outages;

/// The page about other OFREP services.
#[doc = include_str!("../../docs/ofrep.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct OtherServices;

/// The page about testing.
#[doc = include_str!("../../docs/testing.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Testing;

/// The page about troubleshooting.
#[doc = include_str!("../../docs/troubleshooting.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Troubleshooting;

/// The page about the local flag service.
#[doc = include_str!("../../docs/local.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Local;

/// The page about migrating from other SDKs.
#[doc = include_str!("../../docs/migrating.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Migrating;

/// The page about performance.
#[doc = include_str!("../../docs/performance.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Performance;
