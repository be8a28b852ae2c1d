//! The table of requirements.

use std::fmt;

use futures_util::future::BoxFuture;

use self::Level::{Must, Should};
use super::{
    client::{Finding, fails},
    conformance::Run,
};

/// The level of a requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A requirement of a specification.
    Must,
    /// A recommendation, or the practice of clients and proxies.
    Should,
}

/// A requirement.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rule {
    /// The name of the row, which stays the same between versions.
    pub name: &'static str,
    /// The level of the requirement.
    pub level: Level,
    /// The source of the requirement.
    pub source: &'static str,
    /// The text of the requirement.
    pub demand: &'static str,
    pub(crate) check: fn(&Run) -> BoxFuture<'_, Finding>,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
        })
    }
}

/// Declares the rows. Each row has a name, a level, a source, a text, and an expression that checks the requirement.
macro_rules! table {
    ($run:ident: $($name:literal, $level:ident, $source:literal, $demand:literal => $check:expr;)*) => {
        /// All rows, in the order of the report.
        pub(crate) static TABLE: &[Rule] = &[$(Rule {
            name: $name,
            level: $level,
            source: $source,
            demand: $demand,
            check: |$run| Box::pin(async move { $check }),
        }),*];
    };
}

table! { run:
    "bulk-response", Must, "OFREP openapi",
        "the response with all flags has status 200 and a JSON object with the array `flags`"
        => run.bulk_response();
    "bulk-content-type", Must, "OFREP openapi",
        "the response with all flags has the content type application/json, with or without parameters"
        => run.bulk_content_type();
    "bulk-items", Must, "OFREP openapi, ADR-0006",
        "each flag has a key, and either a value, an errorCode, or a reason for having no value"
        => run.bulk_items();
    "reasons", Should, "OFREP openapi",
        "each flag that has a value has a reason"
        => run.reasons();
    "attributes", Must, "OFREP openapi",
        "a context may have attributes of every JSON type in addition to targetingKey"
        => run.attributes().await;
    "no-targeting-key", Must, "OFREP openapi",
        "a context without targetingKey is evaluated, or rejected with 400 and an errorCode"
        => run.is_evaluated_or_rejected(br#"{"context":{"plan":"free"}}"#).await;
    "unknown-fields", Should, "OFREP openapi",
        "unknown fields of a request are ignored"
        => run.unknown_fields().await;
    "request-charset", Must, "RFC 9110 section 8.3",
        "the content type of a request may have a charset, which web clients send"
        => run.request_charset().await;
    "no-context", Must, "OFREP openapi",
        "a request without a context is evaluated, or rejected with 400 and an errorCode"
        => run.is_evaluated_or_rejected(b"{}").await;
    "empty-body", Must, "OFREP openapi",
        "an empty request is evaluated, or rejected with 400 and an errorCode"
        => run.is_evaluated_or_rejected(b"").await;
    "not-json", Must, "OFREP openapi",
        "a request that is not JSON is rejected with 400 and an errorCode"
        => run.is_rejected(b"{\"context\":").await;
    "context-no-object", Must, "OFREP openapi",
        "a context that is not an object is rejected with 400 and an errorCode"
        => run.is_rejected(br#"{"context":["conformance"]}"#).await;
    "large-context", Must, "RFC 9110 section 15.5.14",
        "a context of 60 KiB is evaluated, or rejected with 413"
        => run.large_context().await;
    "single-response", Must, "OFREP openapi",
        "the response for one flag has status 200, its key, and a value or a reason for having none"
        => run.single_response().await;
    "single-agrees", Must, "OFREP openapi",
        "a flag has the same result individually as in the response with all flags"
        => run.single_agrees().await;
    "unknown-flag", Must, "OFREP openapi",
        "the response for an unknown flag has status 404 and the errorCode FLAG_NOT_FOUND"
        => run.unknown_flag().await;
    "unknown-flag-key", Must, "OFREP openapi",
        "the response for an unknown flag has its key"
        => run.unknown_flag_key().await;
    "encoded-key", Must, "RFC 3986 section 2.3",
        "a key with all characters percent-encoded is the same key"
        => run.encoded_key().await;
    "encoded-characters", Should, "RFC 3986 section 2.1",
        "a percent-encoded key may contain spaces, question marks, percent signs and non-ASCII letters"
        => run.is_unknown("conformance no such?flag %é").await;
    "encoded-slash", Should, "RFC 3986 section 2.2",
        "a percent-encoded key may contain slashes"
        => run.is_unknown("conformance/no-such-flag").await;
    "error-bodies", Must, "OFREP openapi",
        "responses with 400 and 404 have the content type application/json"
        => run.error_bodies().await;
    "other-methods", Should, "RFC 9110 section 15.5.6",
        "responses to GET and PUT for all flags have status 405"
        => run.other_methods().await;
    "allow", Should, "RFC 9110 section 15.5.6",
        "a response with 405 names the allowed methods"
        => run.allow().await;
    "credentials", Should, "OFREP openapi",
        "responses to requests without the credentials have status 401 or 403"
        => run.credentials().await;
    "credentials-body", Should, "OFREP openapi",
        "responses with 401 and 403 have a JSON body or no body"
        => run.credentials_body().await;

    "tag", Should, "OFREP openapi",
        "the response with all flags has an ETag"
        => run.tag().map(drop).or_else(|_| fails("no ETag"));
    "tag-syntax", Must, "RFC 9110 section 8.8.3",
        "the ETag is quoted"
        => run.tag_syntax();
    "tag-stable", Must, "RFC 9110 section 8.8.3",
        "equal responses to equal requests have equal tags"
        => run.tag_stable().await;
    "not-modified", Must, "OFREP openapi",
        "the response to If-None-Match with the tag has status 304"
        => run.not_modified().await.map(drop);
    "not-modified-body", Must, "RFC 9110 section 15.4.5",
        "a response with 304 has no body"
        => run.not_modified_body().await;
    "not-modified-tag", Must, "RFC 9110 section 15.4.5",
        "a response with 304 has the same tag"
        => run.not_modified_tag().await;
    "other-tag", Must, "RFC 9110 section 13.1.2",
        "the response to If-None-Match with a different tag has status 200"
        => run.other_tag().await;
    "tag-differs", Must, "RFC 9110 section 8.8.3",
        "different responses have different tags"
        => run.tag_differs().await;
    "tag-of-other-context", Must, "OFREP openapi",
        "the response to If-None-Match with the tag of another context, which has different flags, has status 200"
        => run.tag_of_other_context().await;
    "tag-list", Should, "RFC 9110 section 13.1.2",
        "If-None-Match may be a list"
        => run.tag_as(|tag| format!("\"0\", {tag}, W/\"1\"")).await;
    "tag-weak", Should, "RFC 9110 section 13.1.2",
        "If-None-Match uses the weak comparison, because proxies weaken tags"
        => run.tag_as(|tag| format!("W/{}", tag.trim_start_matches("W/"))).await;
    "tag-any", Should, "RFC 9110 section 13.1.2",
        "If-None-Match may be *"
        => run.tag_as(|_| "*".to_owned()).await;
    "tag-unquoted", Should, "practice of clients",
        "the tag in If-None-Match may lack the quotes"
        => run.tag_as(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned()).await;
    "tag-suffix", Should, "practice of proxies",
        "the tag in If-None-Match may have the suffix -gzip, which compressing proxies add"
        => run.tag_as(|tag| format!("{}-gzip\"", tag.trim_end_matches('"'))).await;

    "streams", Must, "ADR-0008",
        "each entry of eventStreams has a type; an entry of type sse has either a valid url or a valid endpoint"
        => run.streams();
    "streams-inactivity", Must, "ADR-0008",
        "inactivityDelaySec is an integer of at least 1"
        => run.streams_inactivity();
    "streams-single", Must, "ADR-0008",
        "the response for one flag has no eventStreams"
        => run.streams_single().await;
    "stream-opens", Must, "ADR-0008, HTML section 9.2",
        "a stream opens without credentials, as in browsers, with status 200 and the content type text/event-stream"
        => run.stream_opens().await;
    "stream-uncompressed", Should, "practice of proxies",
        "streams are not compressed, because compression delays small events"
        => run.stream_uncompressed().await;
    "stream-speaks", Should, "HTML section 9.2.7",
        "a stream sends an event or a comment from time to time"
        => run.stream_speaks().await;
    "stream-syntax", Must, "HTML section 9.2.5",
        "streams are UTF-8 and consist of fields and comments"
        => run.stream_syntax().await;
    "stream-lf", Should, "practice of clients",
        "lines of streams end with LF, because some clients do not support CR"
        => run.stream_lf().await;
    "stream-events", Must, "ADR-0008",
        "events have the type message, and their data is a JSON object with a type"
        => run.stream_events().await;
    "stream-ids", Should, "ADR-0008",
        "events have an id"
        => run.stream_ids().await;
    "stream-refetch", Should, "practice of clients",
        "a stream begins with refetchEvaluation, for clients that do not refetch when a stream opens"
        => run.stream_refetch().await;
    "flag-config-etag", Should, "ADR-0008 guideline 9",
        "the response to a different flagConfigEtag has status 200, even if If-None-Match has the tag"
        => run.flag_config_etag().await;
    "flag-config-last-modified", Must, "ADR-0008 guideline 2",
        "flagConfigLastModified may be Unix seconds or an ISO 8601 date"
        => run.flag_config_last_modified().await;
}
