//! The table of what is checked.

use super::report::Level::{self, Must, Should};

/// A row of the table.
pub(crate) struct Rule {
    pub(crate) check: Check,
    pub(crate) name: &'static str,
    pub(crate) level: Level,
    pub(crate) source: &'static str,
    pub(crate) demand: &'static str,
}

/// Declares an enum of the checks, and the table with a row for each.
macro_rules! table {
    ($($check:ident: $name:literal, $level:ident, $source:literal, $demand:literal;)*) => {
        /// How a row is checked.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Check { $($check),* }

        /// All rows, in the order of the report.
        pub(crate) const TABLE: &[Rule] = &[
            $(Rule { check: Check::$check, name: $name, level: $level, source: $source, demand: $demand }),*
        ];
    };
}

table! {
    BulkAnswer: "bulk-answer", Must, "OFREP openapi",
        "all flags are answered with 200 and a JSON object with the array `flags`";
    BulkContentType: "bulk-content-type", Must, "OFREP openapi",
        "the content type of all flags is application/json, with or without parameters";
    BulkItems: "bulk-items", Must, "OFREP openapi, ADR-0006",
        "each flag has a key, and a value, an errorCode, or a reason for having no value";
    Reasons: "reasons", Should, "OFREP openapi",
        "each flag that has a value has a reason";
    Attributes: "attributes", Must, "OFREP openapi",
        "attributes of every JSON type beside targetingKey are accepted";
    NoTargetingKey: "no-targeting-key", Must, "OFREP openapi",
        "a context without targetingKey is evaluated, or rejected with 400 and an errorCode";
    UnknownFields: "unknown-fields", Should, "OFREP openapi",
        "unknown fields of a request are ignored";
    RequestCharset: "request-charset", Must, "RFC 9110 section 8.3",
        "the content type of a request may have a charset, as web clients send it";
    NoContext: "no-context", Must, "OFREP openapi",
        "a request without a context is evaluated, or rejected with 400 and an errorCode";
    EmptyBody: "empty-body", Must, "OFREP openapi",
        "an empty request is evaluated, or rejected with 400 and an errorCode";
    NotJson: "not-json", Must, "OFREP openapi",
        "a request that is no JSON is rejected with 400 and an errorCode";
    ContextNoObject: "context-no-object", Must, "OFREP openapi",
        "a context that is no object is rejected with 400 and an errorCode";
    LargeContext: "large-context", Must, "RFC 9110 section 15.5.14",
        "a context of 60 KiB is evaluated, or rejected with 413";
    SingleAnswer: "single-answer", Must, "OFREP openapi",
        "one flag is answered with 200, its key, and a value or a reason for having none";
    SingleAgrees: "single-agrees", Must, "OFREP openapi",
        "one flag is evaluated as it is among all flags";
    UnknownFlag: "unknown-flag", Must, "OFREP openapi",
        "an unknown flag is answered with 404 and the errorCode FLAG_NOT_FOUND";
    UnknownFlagKey: "unknown-flag-key", Must, "OFREP openapi",
        "the answer about an unknown flag has its key";
    EncodedKey: "encoded-key", Must, "RFC 3986 section 2.3",
        "a key is the same with its characters percent-encoded";
    EncodedCharacters: "encoded-characters", Should, "RFC 3986 section 2.1",
        "a percent-encoded key may have spaces, question marks, percent signs and letters beyond ASCII";
    EncodedSlash: "encoded-slash", Should, "RFC 3986 section 2.2",
        "a percent-encoded key may have slashes";
    ErrorBodies: "error-bodies", Must, "OFREP openapi",
        "the bodies of errors 400 and 404 have the content type application/json";
    OtherMethods: "other-methods", Should, "RFC 9110 section 15.5.6",
        "GET and PUT for all flags are answered with 405";
    Allow: "allow", Should, "RFC 9110 section 15.5.6",
        "405 names the methods that are allowed";
    Credentials: "credentials", Should, "OFREP openapi",
        "requests without the credentials are answered with 401 or 403";
    CredentialsBody: "credentials-body", Should, "OFREP openapi",
        "401 and 403 have a JSON body, or none";

    Tag: "tag", Should, "OFREP openapi",
        "all flags are answered with an ETag";
    TagSyntax: "tag-syntax", Must, "RFC 9110 section 8.8.3",
        "the ETag is quoted";
    TagStable: "tag-stable", Must, "RFC 9110 section 8.8.3",
        "equal requests with equal answers have equal tags";
    NotModified: "not-modified", Must, "OFREP openapi",
        "If-None-Match with the tag is answered with 304";
    NotModifiedBody: "not-modified-body", Must, "RFC 9110 section 15.4.5",
        "304 has no body";
    NotModifiedTag: "not-modified-tag", Must, "RFC 9110 section 15.4.5",
        "304 has the same tag";
    OtherTag: "other-tag", Must, "RFC 9110 section 13.1.2",
        "If-None-Match with another tag is answered with 200";
    TagDiffers: "tag-differs", Must, "RFC 9110 section 8.8.3",
        "different answers have different tags";
    TagOfOtherContext: "tag-of-other-context", Must, "OFREP openapi",
        "the tag of another context's different answer is not answered with 304";
    TagList: "tag-list", Should, "RFC 9110 section 13.1.2",
        "If-None-Match may be a list";
    TagWeak: "tag-weak", Should, "RFC 9110 section 13.1.2",
        "If-None-Match compares weakly: proxies weaken tags";
    TagAny: "tag-any", Should, "RFC 9110 section 13.1.2",
        "If-None-Match may be *";
    TagUnquoted: "tag-unquoted", Should, "practice of clients",
        "If-None-Match may lack the quotes";
    TagSuffix: "tag-suffix", Should, "practice of proxies",
        "If-None-Match may have the suffix -gzip, which proxies add that compress";

    Streams: "streams", Must, "ADR-0008",
        "each of eventStreams has a type, and with the type sse exactly one of url and endpoint, which are valid";
    StreamsInactivity: "streams-inactivity", Must, "ADR-0008",
        "inactivityDelaySec is an integer of at least 1";
    StreamsSingle: "streams-single", Must, "ADR-0008",
        "the answer about one flag has no eventStreams";
    StreamOpens: "stream-opens", Must, "ADR-0008, HTML section 9.2",
        "a stream opens as browsers open it, without credentials: with 200 and the content type text/event-stream";
    StreamUncompressed: "stream-uncompressed", Should, "practice of proxies",
        "streams are not compressed: compression holds small events back";
    StreamSpeaks: "stream-speaks", Should, "HTML section 9.2.7",
        "a stream sends an event or a comment from time to time";
    StreamSyntax: "stream-syntax", Must, "HTML section 9.2.5",
        "streams are UTF-8, of fields and comments";
    StreamLf: "stream-lf", Should, "practice of clients",
        "lines of streams end with LF: some clients do not understand CR";
    StreamEvents: "stream-events", Must, "ADR-0008",
        "events are of the type message, and their data is a JSON object with a type";
    StreamIds: "stream-ids", Should, "ADR-0008",
        "events have an id";
    StreamRefetch: "stream-refetch", Should, "practice of clients",
        "a stream that opens sends refetchEvaluation, for clients that do not ask again by themselves";
    FlagConfigEtag: "flag-config-etag", Should, "ADR-0008 guideline 9",
        "a flagConfigEtag that differs is answered with 200, also if If-None-Match has the tag";
    FlagConfigLastModified: "flag-config-last-modified", Must, "ADR-0008 guideline 2",
        "flagConfigLastModified is accepted as Unix seconds and as a date of ISO 8601";
}
