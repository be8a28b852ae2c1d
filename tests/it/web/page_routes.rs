//! The routes for browsers, with the requests of browsers and other clients.

use std::time::Duration;

use flipswitch::{
    SignedOverrides,
    integration::Anonymous,
    serde_json::{Value, json},
};
use flipswitch_local::{Endpoint, Fault};
use reqwest::Method;

use crate::support::{
    self, BULK, Log,
    apps::{Framework, Setup, browsers::Browsers, provider, service},
    evaluations,
    events::connected,
    eventually, in_time,
    page::{EVENTS, Stream, ask, data, field, send},
};

#[tokio::test]
async fn flags_are_those_of_the_requests_user_regardless_of_the_body() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let log = Log::of_this_thread();
        let app = framework.serve(provider.clone()).await;
        for (user, theme, beta) in [("alice", "#000", true), ("bob", "#fff", false)] {
            let expected = json!({"whoami": user, "theme": theme, "beta": beta});
            for body in ["", "{}", r#"{"context":{"targetingKey":"alice","origin":"x"}}"#, r#"{"context":{}}"#] {
                for path in ["/flags", "/deep/flags", "/compressed/flags"] {
                    let headers = [("x-user", user)];
                    let answer = send(&app, Method::POST, &format!("{path}{BULK}"), &headers, body).await;
                    assert_eq!(
                        (answer.status, answer.values()),
                        (200, expected.clone()),
                        "{framework:?} {path} {body}"
                    );
                    let url = format!("{path}{EVENTS}?user={}", answer.header("flipswitch-user"));
                    let streams = json!([{"type": "sse", "url": url, "inactivityDelaySec": 30}]);
                    assert_eq!(answer.json()["eventStreams"], streams, "{framework:?}");
                    assert_eq!(answer.header("cache-control"), "private, no-store");
                    assert_eq!(answer.header("vary").to_ascii_lowercase(), "cookie", "{framework:?} {path}");
                    assert_eq!(answer.header("x-content-type-options"), "nosniff");
                    assert_eq!(answer.header("content-type"), "application/json");
                    assert!(!answer.text.contains(&service.api_key()), "{}", answer.text);
                    assert!(!answer.text.contains("metadata"), "{}", answer.text);
                }
            }
        }
        assert_eq!(evaluations(&service), 2, "{framework:?}: one for each user");
        let warnings = log.lines().into_iter().filter(|line| line.contains("sent a targeting key")).count();
        if matches!(framework, Framework::Axum) {
            assert_eq!(warnings, 1, "{:?}", log.lines());
        }
        provider.shutdown().await;
    }
}

#[tokio::test]
async fn a_single_flag_is_returned_only_if_it_is_public() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(provider(&service)).await;
        let flag = async |key: &str| {
            let answer = send(&app, Method::POST, &format!("/flags{BULK}/{key}"), &[("x-user", "alice")], "{}").await;
            (answer.status, answer.json())
        };
        let whoami = json!({"key": "whoami", "value": "alice", "reason": "TARGETING_MATCH", "variant": "alice"});
        assert_eq!(flag("whoami").await, (200, whoami), "{framework:?}");
        for key in ["origin", "unknown", "staff", "a%2Fb", "%ff"] {
            let (status, body) = flag(key).await;
            assert_eq!((status, &body["errorCode"]), (404, &json!("FLAG_NOT_FOUND")), "{framework:?} {key}: {body}");
        }
        let [hidden, unknown] = [flag("origin").await.1, flag("unknown").await.1];
        assert_eq!(hidden["errorDetails"], unknown["errorDetails"], "the responses must not differ");

        let all = Setup { browsers: Browsers { public: None, ..Browsers::default() }, ..provider(&service).into() };
        let app = framework.serve(all).await;
        let values = ask(&app, "alice", &[]).await.values();
        assert_eq!((&values["origin"], &values["staff"]), (&json!("user"), &json!(false)), "{framework:?}");
    }
}

#[tokio::test]
async fn a_tag_belongs_to_a_user_and_their_values() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(connected(&service).await).await;
        let first = ask(&app, "alice", &[]).await;
        let tag = first.header("etag").to_owned();
        assert!(tag.len() > 20 && tag.starts_with('"'), "{tag}");
        for held in [tag.clone(), format!("W/{tag}"), format!("\"x\", {}-gzip\"", &tag[..tag.len() - 1])] {
            let again = ask(&app, "alice", &[("if-none-match", &held)]).await;
            assert_eq!((again.status, again.text.as_str()), (304, ""), "{framework:?} {held}");
            assert_eq!((again.header("etag"), again.header("cache-control")), (&*tag, "private, no-store"));
        }
        // Two users have equal flags, but bob never gets a 304 for a response that alice has stored.
        let others =
            [ask(&app, "carol", &[("if-none-match", &tag)]).await, ask(&app, "", &[("if-none-match", &tag)]).await];
        assert!(
            others.iter().all(|other| other.status == 200 && other.header("etag") != tag),
            "{framework:?}: {others:?}"
        );
        service.set_flag("theme", "#123");
        eventually(async || {
            let changed = ask(&app, "alice", &[("if-none-match", &tag)]).await;
            changed.status == 200 && changed.values()["theme"] == "#123"
        })
        .await;
        // A response contains no information about a flag that is not public.
        let before = ask(&app, "alice", &[]).await;
        service.set_flag("plain", "changed");
        eventually(async || {
            let all = in_time(app.send("/flag", &[("x-user", b"alice")])).await;
            all.status() == 200 && service.requests().len() > 4
        })
        .await;
        assert_eq!(ask(&app, "alice", &[("if-none-match", before.header("etag"))]).await.status, 304, "{framework:?}");
    }
}

#[tokio::test]
async fn two_processes_have_the_same_tag() {
    let service = service().await;
    let provider = || support::builder(&service).secret("a secret of all instances").build().unwrap();
    let [one, other] = [Framework::Axum.serve(provider()).await, Framework::Actix.serve(provider()).await];
    let [one, other] = [ask(&one, "alice", &[]).await, ask(&other, "alice", &[]).await];
    assert_eq!(one.header("etag"), other.header("etag"));
    assert_eq!(one.header("flipswitch-user"), other.header("flipswitch-user"));
    assert_eq!(one.text, other.text);
}

#[tokio::test]
async fn invalid_requests_get_errors_of_the_protocol() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(provider(&service)).await;
        let long = format!("{{\"context\":{{\"x\":\"{}\"}}}}", "x".repeat(64 << 10));
        let cases = [
            (Method::POST, BULK, "[", 400, "PARSE_ERROR"),
            (Method::POST, BULK, "7", 400, "PARSE_ERROR"),
            (Method::POST, BULK, r#"{"context":7}"#, 400, "INVALID_CONTEXT"),
            (Method::POST, BULK, long.as_str(), 413, "GENERAL"),
            (Method::GET, BULK, "", 405, "GENERAL"),
            (Method::PUT, "/ofrep/v1/evaluate/flags/whoami", "{}", 405, "GENERAL"),
            (Method::POST, EVENTS, "", 405, "GENERAL"),
            (Method::DELETE, "/flipswitch.js", "", 405, "GENERAL"),
        ];
        for (method, path, body, status, code) in cases {
            let answer = send(&app, method.clone(), &format!("/flags{path}"), &[], body.to_owned()).await;
            assert_eq!(
                (answer.status, &answer.json()["errorCode"]),
                (status, &json!(code)),
                "{framework:?} {method} {path}"
            );
            assert_eq!(answer.header("allow").is_empty(), status != 405, "{framework:?} {method} {path}");
        }
        for path in ["/flags/", "/flags/ofrep/v1/evaluate", "/flags/ofrep/v1/configuration"] {
            assert_eq!(send(&app, Method::GET, path, &[], "").await.status, 404, "{framework:?} {path}");
        }
        // A missing layer is a mistake in the application.
        let bare = send(&app, Method::POST, &format!("/bare/flags{BULK}"), &[], "{}").await;
        assert_eq!(bare.status, 500);
        assert!(bare.text.contains("must be inside the Flipswitch layer"), "{}", bare.text);
    }
}

#[tokio::test]
async fn errors_of_the_flag_service_are_reported_as_unavailability() {
    for framework in Framework::ALL {
        for code in [401, 403, 404, 429, 500] {
            let service = service().await;
            service.faults().add(Fault::on(Endpoint::Bulk).status(code)).unwrap();
            let app = framework.serve(provider(&service)).await;
            let answer = ask(&app, "alice", &[]).await;
            assert_eq!((answer.status, answer.header("retry-after")), (503, "5"), "{framework:?} {code}: {answer:?}");
            assert_eq!(answer.json()["errorCode"], "GENERAL");
            assert!(!answer.text.contains("key"), "{}", answer.text);
        }
        // Known flags remain available.
        let service = service().await;
        let provider = support::unattended(service.url(), Duration::from_millis(1)).build().unwrap();
        let app = framework.serve(provider).await;
        let known = ask(&app, "alice", &[]).await;
        service.shutdown().await;
        let stale = ask(&app, "alice", &[]).await;
        assert_eq!((stale.status, stale.text), (200, known.text), "{framework:?}");
    }
}

#[tokio::test]
async fn events_contain_only_that_something_may_have_changed() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(connected(&service).await).await;
        let mut stream = Stream::of(&app, "alice").await;
        let headers = stream.response.headers().clone();
        assert_eq!(headers["content-type"], "text/event-stream", "{framework:?}");
        assert_eq!(headers["cache-control"], "private, no-store, no-transform");
        assert_eq!(headers["x-accel-buffering"], "no");
        assert_eq!(headers["x-content-type-options"], "nosniff");
        // Browsers do not refetch when a stream opens, unless the server sends an event.
        let first = stream.event().await;
        assert_eq!(data(&first), json!({"type": "refetchEvaluation"}), "{framework:?}");
        let retry: u64 = field(&first, "retry").parse().unwrap();
        assert!((1_000..4_000).contains(&retry));
        // The flags are final, so the event is not repeated.
        assert_eq!(ask(&app, "alice", &[]).await.status, 200);
        service.set_flag("plain", "of another one");
        let event = stream.event().await;
        let sent = data(&event);
        assert_eq!(sent.as_object().unwrap().len(), 2, "{framework:?}: {event}");
        assert_eq!(sent["type"], "refetchEvaluation");
        assert!(sent["lastModified"].as_str().unwrap().ends_with('Z'), "{event}");
        assert!(!event.contains("plain") && !event.contains('\r'));
    }
}

#[tokio::test]
async fn a_change_reaches_a_browser_over_its_stream() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(connected(&service).await).await;
        let mut stream = Stream::of(&app, "alice").await;
        stream.event().await;
        let tag = ask(&app, "alice", &[]).await.header("etag").to_owned();
        for theme in ["#111", "#222", "#333"] {
            service.set_flag("theme", theme);
            stream.event().await;
            let answer = ask(&app, "alice", &[("if-none-match", &tag)]).await;
            assert_eq!((answer.status, &answer.values()["theme"]), (200, &json!(theme)), "{framework:?}: at once");
        }
    }
}

#[tokio::test]
async fn flipswitchs_web_provider_has_a_separate_stream() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(connected(&service).await).await;
        let own = [("x-flipswitch-sdk", "javascript/1.0.0"), ("x-api-key", "browser")];
        let answer = ask(&app, "alice", &own).await;
        assert_eq!((answer.status, answer.json().get("eventStreams")), (200, None), "{framework:?}");
        let headers = [&own[..], &[("x-user", "alice"), ("accept", "text/event-stream")]].concat();
        let mut stream = Stream::open(&app, "/flags/api/v1/flags/events", &headers).await;
        // The parser of this provider needs each event in one read, and these lines.
        let first = stream.response.chunk().await.unwrap().unwrap();
        let lines: Vec<_> = str::from_utf8(&first).unwrap().split('\n').collect();
        assert_eq!((lines[0], lines.len()), ("event: config-updated", 4), "{framework:?}: {lines:?}");
        service.set_flag("plain", "of another one");
        let event = in_time(stream.response.chunk()).await.unwrap().unwrap();
        let event = str::from_utf8(&event).unwrap();
        assert!(
            event.starts_with("event: config-updated\ndata: {\"timestamp\":\"") && event.ends_with("\"}\n\n"),
            "{event}"
        );
        assert_eq!(
            data(event).as_object().unwrap().len(),
            1,
            "the event must contain neither a flag nor a reason: {event}"
        );
    }
}

#[tokio::test]
async fn streams_are_limited_and_never_hang() {
    for framework in Framework::ALL {
        let service = service().await;
        let limits = Browsers { max_streams: 4, max_streams_per_context: 2, ..Browsers::default() };
        let app = framework.serve(Setup { browsers: limits, ..provider(&service).into() }).await;
        let has_streams = async |user: &str| ask(&app, user, &[]).await.json().get("eventStreams").is_some();
        let alice = [Stream::of(&app, "alice").await, Stream::of(&app, "alice").await];
        let refused = send(&app, Method::GET, &format!("/flags{EVENTS}"), &[("x-user", "alice")], "").await;
        assert_eq!((refused.status, refused.header("cache-control")), (204, "no-store"), "{framework:?}");
        assert!(!has_streams("alice").await && has_streams("bob").await && has_streams("guest").await, "{framework:?}");
        let guests = [Stream::of(&app, "guest").await, Stream::of(&app, "member").await];
        assert!(!has_streams("guest").await && !has_streams("bob").await, "{framework:?}: half, and all of them");
        drop(guests);
        eventually(async || has_streams("bob").await && has_streams("guest").await).await;
        assert!(!has_streams("alice").await, "{framework:?}");
        drop(alice);
        eventually(async || has_streams("alice").await).await;

        let off = Setup { browsers: Browsers { streams: false, ..Browsers::default() }, ..provider(&service).into() };
        let app = framework.serve(off).await;
        assert_eq!(ask(&app, "alice", &[]).await.json().get("eventStreams"), None);
        assert_eq!(send(&app, Method::GET, &format!("/flags{EVENTS}"), &[], "").await.status, 204, "{framework:?}");
        let script = send(&app, Method::GET, "/flags/flipswitch.js", &[], "").await.text;
        assert!(script.contains("const inactivity = null;"));
    }
}

#[tokio::test]
async fn a_compressed_stream_is_not_delayed() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(connected(&service).await).await;
        let gzip = [("accept-encoding", "gzip"), ("x-user", "alice")];
        // The layer compresses responses that are large enough.
        let script = send(&app, Method::GET, "/compressed/flags/flipswitch.js", &gzip, "").await;
        // A client that decompresses hides the encoding.
        assert!(script.header("vary").contains("accept-encoding"), "{framework:?}: {script:?}");
        let mut stream = Stream::open(&app, &format!("/compressed/flags{EVENTS}"), &gzip).await;
        assert_eq!(data(&stream.event().await)["type"], "refetchEvaluation", "{framework:?}");
        service.set_flag("theme", "#111");
        assert_eq!(data(&stream.event().await)["type"], "refetchEvaluation", "{framework:?}");
    }
}

#[tokio::test]
async fn other_origins_are_refused_unless_they_are_allowed() {
    const ORIGIN: &str = "https://www.shop.example";
    for framework in Framework::ALL {
        let service = service().await;
        let closed = framework.serve(provider(&service)).await;
        let options = Browsers { origin: Some(ORIGIN), ..Browsers::default() };
        let open = framework.serve(Setup { browsers: options, ..provider(&service).into() }).await;
        let preflight = [("origin", ORIGIN), ("access-control-request-method", "POST")];
        let evil = [("origin", "https://evil.example"), ("access-control-request-method", "POST")];
        let path = format!("/flags{BULK}");
        for (app, headers, is_allowed) in [(&open, preflight, true), (&open, evil, false), (&closed, preflight, false)]
        {
            for answer in
                [send(app, Method::OPTIONS, &path, &headers, "").await, ask(app, "alice", &headers[..1]).await]
            {
                let allowed = if is_allowed { ORIGIN } else { "" };
                assert_eq!(answer.header("access-control-allow-origin"), allowed, "{framework:?}: {answer:?}");
                let credentials = answer.header("access-control-allow-credentials");
                assert_eq!(credentials, if is_allowed { "true" } else { "" }, "{framework:?}");
            }
        }
        let answer = send(&open, Method::OPTIONS, &path, &preflight, "").await;
        assert_eq!((answer.status, answer.header("access-control-max-age")), (204, "600"));
        assert!(answer.header("access-control-allow-headers").contains("if-none-match"));
        let answer = ask(&open, "alice", &preflight[..1]).await;
        assert_eq!(answer.header("access-control-expose-headers"), "ETag, Retry-After, flipswitch-user");
        let vary: Vec<_> = answer.headers.get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(vary.join(",").replace(' ', ""), "Cookie,Origin", "{framework:?}");
        // A page of another site can neither open streams for its visitors nor use up limits.
        let events = format!("/flags{EVENTS}");
        for headers in
            [[("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")], [evil[0], ("x-user", "alice")]]
        {
            assert_eq!(send(&open, Method::GET, &events, &headers, "").await.status, 204, "{framework:?}: {headers:?}");
        }
        // An event source sends no cookies to another origin.
        assert_eq!(answer.json().get("eventStreams"), None, "{framework:?}");
        let same = ask(&open, "alice", &[("origin", ORIGIN), ("sec-fetch-site", "same-origin")]).await;
        assert!(same.json().get("eventStreams").is_some(), "{framework:?}");
    }
}

#[tokio::test]
async fn public_path_sets_the_path_of_the_stream() {
    for framework in Framework::ALL {
        let service = service().await;
        for (path, expected) in [
            ("/app/flags/", "/app/flags/ofrep/v1/events"),
            ("https://www.shop.example/flags", "https://www.shop.example/flags/ofrep/v1/events"),
            ("", "/ofrep/v1/events"),
            // These paths are rejected, so the path of the request is used.
            ("//evil.example", "/flags/ofrep/v1/events"),
            ("flags", "/flags/ofrep/v1/events"),
        ] {
            let options = Browsers { public_path: Some(path), ..Browsers::default() };
            let app = framework.serve(Setup { browsers: options, ..provider(&service).into() }).await;
            let answer = ask(&app, "alice", &[]).await.json();
            let url = answer["eventStreams"][0]["url"].as_str().unwrap();
            assert_eq!(url.split_once('?').unwrap().0, expected, "{framework:?} {path}");
        }
    }
}

#[tokio::test]
async fn a_browser_can_send_allowed_attributes_up_to_a_limit() {
    let flag = json!({
        "state": "ENABLED", "variants": {"de": "Hallo", "en": "Hello"}, "defaultVariant": "en",
        "targeting": {"if": [{"==": [{"var": "locale"}, "de"]}, "de"]},
    });
    for framework in Framework::ALL {
        let service = service().await;
        service.set_definition("theme", flag.clone()).unwrap();
        let options = Browsers { attributes: vec!["locale", "origin", "targetingKey"], ..Browsers::default() };
        let setup = Setup { browsers: options, ..provider(&service).into() };
        let app = framework.serve(setup).await;
        let values = async |user: &str, context: Value| {
            let body = json!({"context": context}).to_string();
            let answer = send(&app, Method::POST, &format!("/flags{BULK}"), &[("x-user", user)], body).await;
            (answer.status, answer.values())
        };
        let (_, values_of_alice) = values("alice", json!({"locale": "de", "targetingKey": "bob"})).await;
        assert_eq!(
            (&values_of_alice["theme"], &values_of_alice["whoami"]),
            (&json!("Hallo"), &json!("alice")),
            "{framework:?}"
        );
        // Attributes of the application take precedence: `origin` is "user" for all of its users.
        values("alice", json!({"origin": "mallory"})).await;
        let last = service.requests().pop().unwrap();
        assert!(!String::from_utf8_lossy(&last.body).contains("mallory"), "{framework:?}");
        let before = evaluations(&service);
        for number in 0..100 {
            let (status, values) = values("alice", json!({"locale": format!("x{number}")})).await;
            assert_eq!((status, &values["whoami"]), (200, &json!("alice")), "{framework:?}");
        }
        // One of the 8 contexts was used above, and there is one more context without an attribute.
        let new = evaluations(&service) - before;
        assert!(new <= 8, "{framework:?}: {new} contexts");
        assert_eq!(
            values("alice", json!({"locale": "de"})).await.1["theme"],
            "Hallo",
            "{framework:?}: a known one is free"
        );
        let before = evaluations(&service);
        for number in 0..200 {
            values("", json!({"locale": format!("x{number}")})).await;
        }
        let new = evaluations(&service) - before;
        assert!(new <= 65, "{framework:?}: {new} contexts");
    }
}

#[tokio::test]
async fn overrides_agree_with_the_page_and_cost_nothing() {
    for framework in Framework::ALL {
        let service = service().await;
        let overrides = SignedOverrides::new("the key of overrides in these tests").allow(["whoami", "origin"]);
        let link = overrides.mint(json!({"whoami": "overridden", "origin": "overridden"})).link().unwrap();
        let app = framework.serve(Setup { overrides: Some(overrides), ..provider(&service).into() }).await;
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        let set = in_time(client.get(format!("{}/flag?{link}", app.url)).send()).await.unwrap();
        let cookie = set.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap().to_owned();
        let plain = ask(&app, "alice", &[]).await;
        let before = service.requests().len();
        let headers = [("cookie", cookie.as_str()), ("if-none-match", plain.header("etag"))];
        let answer = ask(&app, "alice", &headers).await;
        assert_eq!((answer.status, &answer.values()["whoami"]), (200, &json!("overridden")), "{framework:?}");
        assert_eq!(answer.values().get("origin"), None, "{framework:?}: it is not public");
        let page = in_time(app.send("/flag", &[("x-user", b"alice"), ("cookie", cookie.as_bytes())])).await;
        assert_eq!(in_time(page.text()).await.unwrap(), "overridden overridden");
        assert_eq!(ask(&app, "alice", &[("if-none-match", plain.header("etag"))]).await.status, 304, "{framework:?}");
        assert_eq!(service.requests().len(), before, "{framework:?}");
    }
}

#[tokio::test]
async fn a_new_visitor_gets_the_cookie_with_the_flags() {
    for framework in Framework::ALL {
        let service = service().await;
        let anonymous = Anonymous::cookie().secure(false).build().unwrap();
        let app = framework.serve(Setup { anonymous, ..provider(&service).into() }).await;
        let first = send(&app, Method::POST, &format!("/flags{BULK}"), &[], "{}").await;
        let cookie = first.header("set-cookie").split(';').next().unwrap().to_owned();
        assert!(cookie.contains('='), "{framework:?}: {first:?}");
        let again = send(&app, Method::POST, &format!("/flags{BULK}"), &[("cookie", &cookie)], "{}").await;
        assert_eq!((again.status, again.header("set-cookie")), (200, ""), "{framework:?}");
        assert_ne!(first.header("flipswitch-user"), again.header("flipswitch-user"), "{framework:?}");
    }
}

#[tokio::test]
async fn a_page_with_the_values_of_a_user_is_kept_out_of_shared_caches() {
    for framework in Framework::ALL {
        let service = service().await;
        let app = framework.serve(provider(&service)).await;
        for (path, control) in [("/page", "private"), ("/page?bare", "")] {
            let page = send(&app, Method::GET, path, &[("x-user", "alice")], "").await;
            assert_eq!((page.status, page.header("cache-control")), (200, control), "{framework:?} {path}");
            assert_eq!(page.header("vary").eq_ignore_ascii_case("cookie"), !control.is_empty(), "{framework:?} {path}");
        }
    }
}

#[tokio::test]
async fn streams_end_when_the_provider_shuts_down() {
    for framework in Framework::ALL {
        let service = service().await;
        let provider = provider(&service);
        let app = framework.serve(provider.clone()).await;
        let streams = [Stream::of(&app, "alice").await, Stream::of(&app, "bob").await];
        in_time(provider.shutdown()).await;
        for stream in streams {
            stream.end().await;
        }
        assert_eq!(send(&app, Method::GET, &format!("/flags{EVENTS}"), &[], "").await.status, 204, "{framework:?}");
        assert_eq!(ask(&app, "alice", &[]).await.status, 503, "{framework:?}");
    }
}

#[tokio::test]
async fn routes_serve_values_in_memory_and_their_changes() {
    for framework in Framework::ALL {
        let flags = flipswitch::testing::TestFlags::new(json!({"whoami": "one", "secret": 1}));
        let app = framework.serve(flags.provider().clone()).await;
        let mut stream = Stream::of(&app, "alice").await;
        stream.event().await;
        assert_eq!(ask(&app, "alice", &[]).await.values(), json!({"whoami": "one"}), "{framework:?}");
        flags.set("whoami", "two");
        stream.event().await;
        assert_eq!(ask(&app, "alice", &[]).await.values(), json!({"whoami": "two"}), "{framework:?}");
    }
}
