//! Servers of other projects, and the requirements of OFREP that they do not meet.

use std::path::Path;

use flipswitch_tools::conformance::{Report, Service, check};

use crate::support::{in_time, peer::Peer, sample_flags};

/// The requirements that the HTTP layer of fast-feature does not meet. flagd's evaluator has the same HTTP layer here.
const FAILURES: [&str; 9] = [
    // The server rejects requests that it cannot parse with 422.
    "empty-body",
    "not-json",
    "context-no-object",
    // The server decodes the key before it selects the route.
    "encoded-slash",
    // The server compares the text of the header.
    "tag-list",
    "tag-weak",
    "tag-any",
    "tag-unquoted",
    "tag-suffix",
];

#[tokio::test]
async fn flagd_differs_in_these_rows() {
    let peer = Peer::flagd(&Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/flags.json"));
    let report = report(&peer).await;
    assert_eq!(report.failures(), FAILURES, "{report}");
}

#[tokio::test]
async fn fast_feature_differs_in_these_rows() {
    let peer = Peer::fast_feature();
    for (key, flag) in sample_flags()["flags"].as_object().unwrap() {
        peer.create(key, flag).await;
    }
    let report = report(&peer).await;
    assert_eq!(report.failures(), FAILURES, "{report}");
}

async fn report(peer: &Peer) -> Report {
    in_time(check(&Service::new(&peer.url).unwrap())).await.unwrap()
}
