//! Compiles the examples of the project's README and of the pages in `docs`. The tests across the crates are in `it/`.

/// Compiles the examples of Markdown files, each as the documentation of a type of the given name.
macro_rules! compile_pages {
    ($($name:ident: $path:literal,)*) => {
        $(
            #[doc = include_str!($path)]
            #[cfg(doctest)]
            #[derive(Debug)]
            pub struct $name;
        )*
    };
}

compile_pages! {
    Readme: "../../README.md",
    ActixWeb: "../../docs/actix-web.md",
    Axum: "../../docs/axum.md",
    Browsers: "../../docs/browsers.md",
    DeclaredFlags: "../../docs/declared-flags.md",
    Environments: "../../docs/environments.md",
    GettingStarted: "../../docs/getting-started.md",
    Local: "../../docs/local.md",
    Migrating: "../../docs/migrating.md",
    OpenFeature: "../../docs/openfeature.md",
    Operations: "../../docs/operations.md",
    OtherServices: "../../docs/ofrep.md",
    Outages: "../../docs/outages.md",
    Overrides: "../../docs/overrides.md",
    Performance: "../../docs/performance.md",
    Security: "../../docs/security.md",
    Stores: "../../docs/stores.md",
    Telemetry: "../../docs/telemetry.md",
    Testing: "../../docs/testing.md",
    Troubleshooting: "../../docs/troubleshooting.md",
}
