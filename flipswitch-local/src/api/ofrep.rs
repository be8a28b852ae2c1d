//! Evaluation of all flags, and of one flag, over OFREP.

use std::sync::Arc;

use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};

use axum::{
    Extension, Json,
    body::Bytes,
    extract::{Path, Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    api::etag,
    broadcast::Version,
    faults::{
        effect::FlagError,
        fault::{EVENT_STREAM_PATH, Endpoint},
    },
    flags::evaluate,
    state::AppState,
};

/// The version of the flags that an event stream has announced to a client.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AnnouncedVersion {
    flag_config_etag: Option<String>,
    flag_config_last_modified: Option<String>,
}

impl AnnouncedVersion {
    /// Returns whether the client knows of a different version, in which case its flags may be outdated regardless of their tag.
    fn differs_from(&self, version: Version) -> bool {
        let is_other = |tag: &String| etag::opaque(tag.as_bytes()) != version.id().as_bytes();
        let is_newer = |time: &String| parse_time(time).is_some_and(|time| time > version.last_modified());
        self.flag_config_etag.as_ref().is_some_and(is_other)
            || self.flag_config_last_modified.as_ref().is_some_and(is_newer)
    }
}

/// Parses a time in seconds since the epoch or in RFC 3339.
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    match text.parse() {
        Ok(seconds) => OffsetDateTime::from_unix_timestamp(seconds).ok(),
        Err(_) => OffsetDateTime::parse(text, &Rfc3339).ok(),
    }
}

/// Evaluates all flags.
pub(crate) async fn bulk(
    State(state): State<Arc<AppState>>,
    announced: Result<Query<AnnouncedVersion>, QueryRejection>,
    simulated: Option<Extension<FlagError>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let context = match evaluate::context_of_body(&body) {
        Ok(context) => context,
        Err(error) => return bad_request(&json!({"errorCode": error.code, "errorDetails": error.details})),
    };
    let mut items = state.flags.evaluate_all(&context);
    if let Some(Extension(FlagError { key, code, details })) = simulated {
        items.retain(|item| item["key"] != key);
        items.push(json!({"key": key, "errorCode": code, "errorDetails": details}));
    }
    let mut body = json!({"flags": items, "metadata": {}});
    if state.event_streams {
        // The URL has no origin, so clients use the origin of their base URL.
        body["eventStreams"] = json!([{"type": "sse", "endpoint": {"requestUri": EVENT_STREAM_PATH}}]);
    }
    let body = body.to_string();
    let tag = etag::of_body(&body);
    // Parameters that cannot be read are ignored.
    let announced = announced.map(|Query(announced)| announced).unwrap_or_default();
    if etag::is_held(&headers, &tag) && !announced.differs_from(state.broadcaster.version()) {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let content_type = HeaderValue::from_static(Endpoint::Bulk.content_type());
    ([(header::CONTENT_TYPE, content_type), (header::ETAG, tag)], body).into_response()
}

/// Evaluates one flag.
pub(crate) async fn single(State(state): State<Arc<AppState>>, Path(key): Path<String>, body: Bytes) -> Response {
    let context = match evaluate::context_of_body(&body) {
        Ok(context) => context,
        Err(error) => {
            return bad_request(&json!({"key": key, "errorCode": error.code, "errorDetails": error.details}));
        }
    };
    match state.flags.evaluate(&key, &context) {
        Some(item) if item.get("errorCode").is_some() => bad_request(&item),
        Some(item) => Json(item).into_response(),
        None => {
            let details = format!("there is no flag {key:?}");
            let body = json!({"key": key, "errorCode": "FLAG_NOT_FOUND", "errorDetails": details});
            (StatusCode::NOT_FOUND, Json(body)).into_response()
        }
    }
}

fn bad_request(body: &Value) -> Response {
    (StatusCode::BAD_REQUEST, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::Broadcaster;

    #[test]
    fn times_are_in_seconds_or_rfc_3339() {
        let time = |seconds| Some(OffsetDateTime::from_unix_timestamp(seconds).unwrap());
        let cases = [
            ("1700000000", time(1_700_000_000)),
            ("-1", time(-1)),
            ("2023-11-14T22:13:20Z", time(1_700_000_000)),
            ("2023-11-14T23:13:20.000+01:00", time(1_700_000_000)),
            ("1700000000000000", None),
            ("1e9", None),
            ("2023-11-14", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_time(text), expected, "{text}");
        }
    }

    #[test]
    fn a_version_differs_if_its_tag_is_another_or_its_time_is_later() {
        let version = Broadcaster::default().version();
        let seconds = version.last_modified().unix_timestamp();
        let differs = |etag: Option<String>, last_modified: Option<String>| {
            let (flag_config_etag, flag_config_last_modified) = (etag, last_modified);
            AnnouncedVersion { flag_config_etag, flag_config_last_modified }.differs_from(version)
        };
        let id = version.id();
        let cases = [
            (None, None, false),
            (Some(format!("\"{id}\"")), None, false),
            (Some(format!("W/\"{id}\"")), Some(seconds.to_string()), false),
            (Some("\"1\"".to_owned()), None, true),
            (Some(String::new()), None, true),
            (None, Some((seconds - 1).to_string()), false),
            (None, Some((seconds + 1).to_string()), true),
            (None, Some("9999-12-31T23:59:59Z".to_owned()), true),
            (None, Some("tomorrow".to_owned()), false),
            (Some(format!("\"{id}\"")), Some((seconds + 1).to_string()), true),
        ];
        for (etag, last_modified, expected) in cases {
            assert_eq!(differs(etag.clone(), last_modified.clone()), expected, "{etag:?} {last_modified:?}");
        }
    }
}
