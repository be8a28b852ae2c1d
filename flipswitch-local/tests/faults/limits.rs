//! Limits on the rate and on the concurrency of requests.

use std::time::{Duration, Instant};

use flipswitch_local::{Endpoint, Fault};
use serde_json::json;

use crate::support::{BULK, HOUR, SINGLE, Socket, assert_responds, evaluate, header, service, until_applied};

#[tokio::test]
async fn requests_beyond_the_rate_are_rejected() {
    const PER_SECOND: usize = 5;
    let (service, faults) = service().await;
    let fault = Fault::on(Endpoint::Bulk).rate_limit(PER_SECOND).header("retry-after", "2").body("slow down");
    let id = faults.add(fault).unwrap();
    let began = Instant::now();
    let (mut answered, mut rejected) = (0, 0);
    // Until the limit has applied, and requests have succeeded again after it.
    while answered <= PER_SECOND {
        match evaluate(&service, "", json!({})).await {
            (200, ..) => answered += 1,
            (429, head, body) => {
                assert_eq!((header(&head, "retry-after"), body.as_str()), (Some("2"), "slow down"));
                rejected += 1;
            }
            (_, head, _) => panic!("{head}"),
        }
        let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
        assert!(answered <= PER_SECOND * seconds, "{answered} in {seconds} seconds");
        assert_responds(&service, SINGLE).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(faults.applied(id), rejected, "the requests that were rejected");
    faults.clear();

    faults.add(Fault::on(Endpoint::Bulk).rate_limit(1)).unwrap();
    let (mut status, mut head) = (200, String::new());
    while status == 200 {
        (status, head, _) = evaluate(&service, "", json!({})).await;
    }
    assert_eq!((status, header(&head, "retry-after"), header(&head, "content-length")), (429, None, Some("0")));
}

#[tokio::test]
async fn a_rate_limit_counts_its_contexts_only() {
    let (service, faults) = service().await;
    let id = faults.add(Fault::on(Endpoint::Bulk).rate_limit(1).for_targeting_key("busy")).unwrap();
    while faults.applied(id) == 0 {
        assert_eq!(evaluate(&service, "", json!({"targetingKey": "other"})).await.0, 200);
        evaluate(&service, "", json!({"targetingKey": "busy"})).await;
    }
}

#[tokio::test]
async fn requests_wait_for_their_turn() {
    let delay = Duration::from_millis(30);
    let (service, faults) = service().await;
    for (limit, turns) in [(1, 6), (2, 3)] {
        let id = faults.add(Fault::on(Endpoint::Bulk).delay(delay).concurrency(limit)).unwrap();
        let began = Instant::now();
        let mut sockets = Vec::new();
        for _ in 0..6 {
            sockets.push(Socket::request(&service, BULK).await);
        }
        for socket in &mut sockets {
            assert!(socket.head().await.starts_with("http/1.1 200"));
        }
        assert!(began.elapsed() >= delay * turns, "{limit} at a time: {:?}", began.elapsed());
        assert_eq!(faults.applied(id), 6);
        faults.remove(id);
    }
}

#[tokio::test]
async fn requests_that_wait_are_answered_when_the_fault_is_removed() {
    let (service, faults) = service().await;
    let id = faults.add(Fault::on(Endpoint::Bulk).delay(HOUR).concurrency(1)).unwrap();
    let mut sockets = [Socket::request(&service, BULK).await, Socket::request(&service, BULK).await];
    until_applied(&faults, id, 2).await;
    assert_responds(&service, SINGLE).await;
    sockets.iter().for_each(Socket::assert_quiet);
    faults.clear();
    for socket in &mut sockets {
        assert!(socket.head().await.starts_with("http/1.1 200"));
    }
}
