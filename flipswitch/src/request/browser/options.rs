/// The options of the routes for browsers, for the type of a web crate that holds a `BrowserService`. They are the same in
/// all web crates.
#[doc(hidden)]
#[macro_export]
macro_rules! __browser_options {
    () => {
        /// Sets which flags browsers may read: keys, or flags declared with `flags!`. Adds to those set before. Defaults to none.
        ///
        /// Other flags are missing for browsers, as if the service did not have them. Users can read everything that a page
        /// receives. For several declared flags, pass their keys: `[NewCheckout::KEY, Theme::KEY]`.
        #[must_use]
        pub fn public<K: $crate::integration::FlagKey>(self, flags: impl IntoIterator<Item = K>) -> Self {
            Self(self.0.public(flags))
        }

        /// Lets browsers read all flags, also those that are created later.
        #[must_use]
        pub fn public_all(self) -> Self {
            Self(self.0.public_all())
        }

        /// Sets the names of attributes that browsers may add to the context, for rules that use what only the page knows, such
        /// as `locale`. Defaults to none.
        ///
        /// Values are strings of at most 64 bytes, numbers and booleans; attributes that the application sets take precedence.
        /// Never use such attributes in rules that protect something: users can send any value. `targetingKey` is logged as an
        /// error and ignored.
        ///
        /// Each combination is a context of its own. A user may cause 8 new ones a minute, and 32 requests for those that are out
        /// of date; all requests without a targeting key together 64, and 512 each. Beyond that, the attributes are ignored.
        #[must_use]
        pub fn attributes<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
            Self(self.0.attributes(names))
        }

        /// Sets the path of the mount as browsers see it, or its URL, where a proxy changes paths. Defaults to the path of each
        /// request.
        ///
        /// Anything else is logged as an error and ignored.
        #[must_use]
        pub fn public_path(self, path: impl Into<String>) -> Self {
            Self(self.0.public_path(path))
        }

        /// Sets how many event streams browsers may have open at this process. Requests without a targeting key, and visitors who
        /// are known by a cookie or header only, have half of them. Defaults to 10 000.
        ///
        /// Above the limit, browsers ask again when their tab becomes visible.
        #[must_use]
        pub fn max_streams(self, streams: usize) -> Self {
            Self(self.0.max_streams(streams))
        }

        /// Sets how many event streams may be open at this process for one targeting key. Defaults to 16.
        #[must_use]
        pub fn max_streams_per_context(self, streams: usize) -> Self {
            Self(self.0.max_streams_per_context(streams))
        }

        /// Sets whether browsers follow changes over an event stream. Defaults to `true`. Without it, they ask again when their
        /// tab becomes visible.
        ///
        /// With HTTP/1.1, browsers open at most six connections to a host, for all tabs together, and each visible tab has a
        /// stream, which counts. Serve browsers over HTTP/2, which proxies such as nginx do, or turn streams off.
        #[must_use]
        pub fn streams(self, has_streams: bool) -> Self {
            Self(self.0.streams(has_streams))
        }

        /// Sets after how long a tab that is hidden closes its stream, at least one second. Defaults to 30 seconds.
        #[must_use]
        pub fn inactivity(self, inactivity: ::std::time::Duration) -> Self {
            Self(self.0.inactivity(inactivity))
        }

        /// Sets over how long browsers are notified of a change, each at a random time of its own, so that they do not all ask
        /// at once. Defaults to 2 seconds, and is at most an hour. Use zero for a small site.
        #[must_use]
        pub fn spread(self, spread: ::std::time::Duration) -> Self {
            Self(self.0.spread(spread))
        }

        /// Lets pages of another origin ask with credentials (CORS), such as `https://www.example.com`. May be called for each
        /// origin. Defaults to none. Anything but an exact origin is logged as an error and ignored.
        ///
        /// These pages get no event stream, because browsers send it no cookies. They ask again when their tab becomes visible.
        #[must_use]
        pub fn allow_origin(self, origin: impl Into<String>) -> Self {
            Self(self.0.allow_origin(origin))
        }
    };
}
