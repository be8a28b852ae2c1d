//! For any request, a browser gets the public flags of its own session, or an error.

use std::time::{Duration, Instant};

use flipswitch::{
    FlipswitchProvider,
    serde_json::{self, Value, json},
};
use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use reqwest::Method;

use crate::support::{
    BULK, PATIENCE,
    apps::{Framework, Setup, browsers::Browsers, service},
    evaluations, in_time,
    page::send,
};

const API_KEY: &str = "the-key-of-this-application-0f9a2c";

/// The number of requests in the test.
const REQUESTS: usize = 10_000;

#[derive(Clone, Debug)]
struct Request {
    session: usize,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

fn scalar() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,80}".prop_map(Value::from),
        Just(json!("alice")),
        Just(json!("bob")),
        Just(json!({"nested": [1, "alice"]})),
    ]
}

fn body() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        Just("targetingKey".to_owned()),
        Just("locale".to_owned()),
        Just("origin".to_owned()),
        Just("plan".to_owned()),
        "\\PC{0,10}",
    ];
    let context = prop::collection::hash_map(name, scalar(), 0..5);
    prop_oneof![
        8 => context.prop_map(|context| json!({"context": context}).to_string()),
        1 => scalar().prop_map(|context| json!({"context": context}).to_string()),
        1 => "\\PC{0,40}",
        1 => Just(String::new()),
    ]
}

fn request() -> impl Strategy<Value = Request> {
    let path = prop_oneof![
        8 => Just(BULK.to_owned()),
        2 => prop::sample::select(vec!["whoami", "theme", "origin", "staff", "plain", "beta", "unknown", "%ff", "..%2F"])
            .prop_map(|key| format!("{BULK}/{key}")),
        1 => Just("/flipswitch.js".to_owned()),
    ];
    let query = prop_oneof![
        3 => Just(String::new()),
        2 => any::<i64>().prop_map(|time| format!("?flagConfigLastModified={time}")),
        1 => Just("?flagConfigLastModified=9999-01-01T00%3A00%3A00Z".to_owned()),
        1 => "[a-z0-9=&%]{0,20}".prop_map(|text| format!("?{}", text.replace('%', "%25"))),
        1 => Just("?user=alice&targetingKey=alice&flipswitch=off".to_owned()),
    ];
    let name = prop::sample::select(vec![
        "if-none-match",
        "origin",
        "host",
        "x-forwarded-user",
        "x-api-key",
        "authorization",
        "x-flipswitch-sdk",
        "flipswitch-user",
        "last-event-id",
        "content-type",
        "sec-fetch-site",
        "x-forwarded-for",
        "accept",
        "targeting-key",
    ]);
    let value = prop_oneof![
        Just("alice".to_owned()),
        Just("*".to_owned()),
        "[ -~]{0,30}".prop_map(|text| text.trim().to_owned())
    ];
    let headers = prop::collection::vec((name, value), 0..4);
    let method = prop_oneof![12 => Just("POST"), 1 => Just("GET"), 1 => Just("PUT"), 1 => Just("OPTIONS")];
    (0..2_usize, method, path, query, headers, body()).prop_map(|(session, method, path, query, headers, body)| {
        Request { session, method, path: format!("/flags{path}{query}"), headers, body }
    })
}

#[tokio::test]
async fn a_browser_gets_only_public_flags_of_its_own_session_regardless_of_its_request() {
    const USERS: [&str; 2] = ["alice", "bob"];
    for framework in Framework::ALL {
        let service = service().await;
        let provider = FlipswitchProvider::builder(API_KEY)
            .base_url(service.url())
            .miss_wait(PATIENCE)
            .enable_realtime(false)
            .polling_interval(Duration::from_secs(3_600))
            .build()
            .unwrap();
        let options = Browsers { attributes: vec!["locale"], ..Browsers::default() };
        let app = framework.serve(Setup { browsers: options, ..provider.clone().into() }).await;
        let mut runner = TestRunner::new_with_rng(
            Config::default(),
            proptest::test_runner::TestRng::from_seed(proptest::test_runner::RngAlgorithm::ChaCha, &[7; 32]),
        );
        let expected = [
            json!({"whoami": "alice", "theme": "#000", "beta": true}),
            json!({"whoami": "bob", "theme": "#fff", "beta": false}),
        ];
        let began = Instant::now();
        let mut answered = [0; 2];
        for _ in 0..REQUESTS / 20 {
            // Both sessions send requests at the same time.
            let requests = (0..20).map(|_| request().new_tree(&mut runner).unwrap().current());
            let answers = requests.map(async |request| {
                let method = Method::from_bytes(request.method.as_bytes()).unwrap();
                // The session identifies the user. No other part of the request may take precedence.
                let mut headers: Vec<_> = request.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
                headers.retain(|(name, _)| *name != "host");
                headers.push(("cookie", ["user=alice", "user=bob"][request.session]));
                let answer = send(&app, method, &request.path, &headers, request.body.clone()).await;
                (request, answer)
            });
            for (request, answer) in in_time(futures_util::future::join_all(answers)).await {
                let other = USERS[1 - request.session];
                let context = format!("{framework:?}: {request:?} {answer:?}");
                assert!(!answer.text.contains(API_KEY), "the key: {context}");
                match answer.status {
                    200 if request.path.starts_with("/flags/flipswitch.js") => {}
                    200 if answer.text.starts_with(r#"{"flags""#) => {
                        answered[request.session] += 1;
                        assert_eq!(answer.values(), expected[request.session], "{context}");
                    }
                    200 => {
                        let flag = answer.json();
                        let key = flag["key"].as_str().unwrap();
                        assert_eq!(flag["value"], expected[request.session][key], "{context}");
                    }
                    204 | 304 => assert_eq!(answer.text, "", "{context}"),
                    400 | 404 | 405 => {
                        assert!(!answer.text.contains(other) || request.body.contains(other), "{context}");
                        let has_values =
                            serde_json::from_str::<Value>(&answer.text).is_ok_and(|body| body.get("value").is_some());
                        assert!(!has_values, "{context}");
                    }
                    _ => panic!("{context}"),
                }
            }
        }
        assert!(answered.iter().all(|answers| *answers > REQUESTS / 40), "{answered:?}");
        // Two users, each with 8 contexts a minute for attributes and 10 refetches a minute.
        let minutes = began.elapsed().as_secs() as usize / 60 + 1;
        let bound = 2 + 2 * minutes * (8 + 10);
        assert!(evaluations(&service) <= bound, "{framework:?}: {} of {bound}", evaluations(&service));
        let contexts = provider.stats().new_contexts;
        assert!(contexts as usize <= 1 + 2 + 2 * minutes * 8, "{framework:?}: {contexts} contexts");
        provider.shutdown().await;
    }
}
