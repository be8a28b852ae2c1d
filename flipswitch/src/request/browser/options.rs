/// The options of the routes for browsers, for the type in a web crate that contains a `BrowserService`. They are the same in all
/// web crates.
#[doc(hidden)]
#[macro_export]
macro_rules! __browser_options {
    () => {
        /// Adds flags that browsers may read: keys, or flags declared with `flags!`. Defaults to none.
        ///
        /// For browsers, all other flags are missing, as if the service did not have them. Users can read everything that a page
        /// receives. For several declared flags, pass their keys: `[NewCheckout::KEY, Theme::KEY]`.
        #[must_use]
        pub fn public<K: $crate::integration::FlagKey>(self, flags: impl IntoIterator<Item = K>) -> Self {
            Self(self.0.public(flags))
        }

        /// Lets browsers read all flags, including those that are created later.
        #[must_use]
        pub fn public_all(self) -> Self {
            Self(self.0.public_all())
        }

        /// Adds names of attributes that browsers may add to the context, for rules that use data that only the page knows, such
        /// as `locale`. Defaults to none.
        ///
        /// Values are strings of at most 64 bytes, numbers and booleans; attributes that the application sets take precedence.
        /// Never use such attributes in rules that protect something, because users can send any value. The name `targetingKey`
        /// is logged as an error and ignored.
        ///
        /// Each combination of values is a separate context. Per minute, a user may cause 8 new contexts, and 32 requests for
        /// contexts that are out of date. All requests without a targeting key together may cause 64 new contexts and 512 such
        /// requests. Beyond these limits, the attributes are ignored.
        #[must_use]
        pub fn attributes<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
            Self(self.0.attributes(names))
        }

        /// Sets the path, or the URL, at which browsers reach the routes if a proxy changes paths. Defaults to the path of each
        /// request.
        ///
        /// A value that is neither a path nor a URL is logged as an error and ignored.
        #[must_use]
        pub fn public_path(self, path: impl Into<String>) -> Self {
            Self(self.0.public_path(path))
        }

        /// Sets how many event streams browsers may have open to this process. Requests without a targeting key, and visitors who
        /// are known only by a cookie or header, can use at most half of them. Defaults to 10 000.
        ///
        /// Above the limit, browsers request flags again when their tab becomes visible.
        #[must_use]
        pub fn max_streams(self, streams: usize) -> Self {
            Self(self.0.max_streams(streams))
        }

        /// Sets how many event streams may be open to this process for one targeting key. Defaults to 16.
        #[must_use]
        pub fn max_streams_per_context(self, streams: usize) -> Self {
            Self(self.0.max_streams_per_context(streams))
        }

        /// Sets whether browsers follow changes over an event stream. Defaults to `true`. With `false`, they request flags again
        /// when their tab becomes visible.
        ///
        /// With HTTP/1.1, browsers open at most six connections to a host for all tabs together, and the stream of each visible
        /// tab uses one of them. Serve browsers over HTTP/2, for example with a proxy such as nginx, or turn streams off.
        #[must_use]
        pub fn streams(self, has_streams: bool) -> Self {
            Self(self.0.streams(has_streams))
        }

        /// Sets how long a tab may be hidden before it closes its stream. Defaults to 30 seconds; the minimum is 1 second.
        #[must_use]
        pub fn inactivity(self, inactivity: ::std::time::Duration) -> Self {
            Self(self.0.inactivity(inactivity))
        }

        /// Sets the time over which browsers are notified of a change. Browsers are notified at random moments within this time,
        /// so that they do not all request flags at the same time. Defaults to 2 seconds; the maximum is 1 hour. Use zero for a
        /// small site.
        #[must_use]
        pub fn spread(self, spread: ::std::time::Duration) -> Self {
            Self(self.0.spread(spread))
        }

        /// Lets pages from another origin, such as `https://www.example.com`, request flags with credentials (CORS). Call it once
        /// for each origin. Defaults to none. A value that is not an exact origin is logged as an error and ignored.
        ///
        /// Such a page gets no event stream, because browsers would send no cookies with the request for it. The page requests
        /// flags again when its tab becomes visible.
        #[must_use]
        pub fn allow_origin(self, origin: impl Into<String>) -> Self {
            Self(self.0.allow_origin(origin))
        }
    };
}
