//! The routes for browsers of both applications, and a page that uses them.

use std::{path::Path, time::Duration};

use flipswitch::{Flags, integration::FlagKey};

/// The set-up of the routes for browsers.
#[derive(Clone)]
pub(crate) struct Browsers {
    /// The flags that browsers may read. `None` means all flags.
    pub(crate) public: Option<Vec<&'static str>>,
    pub(crate) attributes: Vec<&'static str>,
    pub(crate) public_path: Option<&'static str>,
    pub(crate) max_streams: usize,
    pub(crate) max_streams_per_context: usize,
    pub(crate) streams: bool,
    pub(crate) inactivity: Duration,
    pub(crate) spread: Duration,
    pub(crate) origin: Option<&'static str>,
}

/// The flags that browsers may read in most tests. The others are `origin`, `staff` and `plain`.
pub(crate) const PUBLIC: [&str; 3] = ["whoami", "theme", "beta"];

impl Default for Browsers {
    fn default() -> Self {
        Self {
            public: Some(PUBLIC.to_vec()),
            attributes: Vec::new(),
            public_path: None,
            max_streams: 10_000,
            max_streams_per_context: 16,
            streams: true,
            inactivity: Duration::from_secs(30),
            spread: Duration::ZERO,
            origin: None,
        }
    }
}

/// Sets the options of routes. The types of both web crates have the same methods.
macro_rules! set_up {
    ($routes:expr, $options:expr) => {{
        let options: &$crate::support::apps::browsers::Browsers = $options;
        let mut routes = $routes
            .attributes(options.attributes.clone())
            .max_streams(options.max_streams)
            .max_streams_per_context(options.max_streams_per_context)
            .streams(options.streams)
            .inactivity(options.inactivity)
            .spread(options.spread);
        routes = match &options.public {
            Some(keys) => routes.public(keys.iter().copied()),
            None => routes.public_all(),
        };
        if let Some(path) = options.public_path {
            routes = routes.public_path(path);
        }
        if let Some(origin) = options.origin {
            routes = routes.allow_origin(origin);
        }
        routes
    }};
}
pub(crate) use set_up;

/// Returns a page that shows two flags with the SDK, and records the values that it has shown and the requests that it has sent.
pub(crate) fn page(flags: &Flags, has_start_values: bool) -> String {
    let start = if has_start_values { flags.to_ofrep_json(PUBLIC.map(|key| key.key())) } else { String::new() };
    let start = match start.as_str() {
        "" => start,
        json => format!(r#"<script type="application/json" id="flipswitch">{json}</script>"#),
    };
    include_str!("page.html").replace("START", &start).replace("SERVER", flags.string("whoami", "default"))
}

/// Returns a file of the packages that `tests/peers/setup` has installed.
pub(crate) fn package_file(path: &str) -> Option<Vec<u8>> {
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/npm/node_modules");
    std::fs::read(packages.join(path)).ok()
}
