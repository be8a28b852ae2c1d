//! The effects of faults on open and new streams.

use std::time::{Duration, Instant};

use flipswitch_local::{Endpoint, Fault, LocalServer};
use serde_json::json;

use crate::support::{
    BULK, EVENT_STREAM, End, HOUR, STREAM, Socket, assert_responds, eventually, in_time, service,
    service_with_event_streams, until_applied,
};

#[tokio::test]
async fn open_streams_end_after_the_events_sent_before() {
    let (service, faults) = service().await;
    for (name, end) in [("finish", None), ("drop", Some(End::Closed)), ("reset", Some(End::Reset))] {
        let mut streams = [Socket::open_stream(&service).await, Socket::open_stream(&service).await];
        service.set_flag("a", name);
        let ended = match name {
            "finish" => faults.finish_streams(),
            "drop" => faults.drop_streams(),
            _ => faults.reset_streams(),
        };
        assert_eq!(ended, 2, "{name}");
        for stream in &mut streams {
            stream.until("id: ").await;
        }
        for mut stream in streams {
            match end {
                // The body ends, and the connection stays usable.
                None => {
                    stream.until("0\r\n\r\n").await;
                    stream.send(BULK, "any", "").await;
                    stream.until("HTTP/1.1 200").await;
                }
                Some(end) => {
                    let (rest, ended) = stream.end().await;
                    assert!(!rest.ends_with(b"\r\n0\r\n\r\n"), "in the middle of the response");
                    assert_eq!(ended, end);
                }
            }
        }
        eventually(|| service.streams() == 0).await;
    }
    // Later streams are not affected.
    let mut stream = Socket::open_stream(&service).await;
    service.set_flag("a", 1);
    stream.until("flag-updated").await;
}

#[tokio::test]
async fn a_stream_that_is_not_read_is_reset_as_well() {
    let (service, faults) = service().await;
    let stream = Socket::open_stream(&service).await;
    // More than the buffers of a socket hold.
    assert_eq!(faults.inject(vec![b'x'; 64 << 20]), 1);
    assert_eq!(faults.reset_streams(), 1);
    eventually(|| service.streams() == 0).await;
    drop(stream);
}

#[tokio::test]
async fn bytes_are_injected_unchanged() {
    let (service, faults) = service().await;
    assert_eq!(faults.inject("no stream"), 0);
    let mut streams = [Socket::open_stream(&service).await, Socket::open_stream(&service).await];
    assert_eq!(faults.inject(b"data: {\nevent:\r\r".to_vec()), 2);
    service.set_flag("a", 1);
    for stream in &mut streams {
        stream.until("data: {\nevent:\r\r").await;
        stream.until("event: flag-updated").await;
    }
}

#[tokio::test]
async fn half_open_applies_to_open_and_new_streams() {
    let (service, faults) = service().await;
    let mut open = [Socket::open_stream(&service).await, Socket::open_stream(&service).await];
    let id = faults.add(Fault::on(Endpoint::Stream).half_open().times(3)).unwrap();
    assert_eq!(faults.applied(id), 2);
    let mut later = Socket::request(&service, STREAM).await;
    later.head().await;
    assert_eq!(faults.applied(id), 3);
    let mut spared = Socket::open_stream(&service).await;
    assert_eq!(service.streams(), 4);
    // Several times, since the streams are served concurrently.
    for value in 0..5 {
        service.set_flag("a", value);
        spared.until("flag-updated").await;
    }
    for stream in &mut open {
        stream.assert_quiet();
    }
    later.assert_quiet();

    let [leaves, stays] = open;
    drop(leaves);
    eventually(|| service.streams() == 3).await;
    faults.clear();
    for stream in [stays, later] {
        assert_eq!(stream.end().await, (vec![], End::Closed));
    }
    service.set_flag("a", "spared");
    spared.until("flag-updated").await;
}

#[tokio::test]
async fn half_open_streams_can_be_dropped() {
    let (service, faults) = service().await;
    let stream = Socket::open_stream(&service).await;
    faults.add(Fault::on(Endpoint::Stream).half_open()).unwrap();
    eventually(|| {
        faults.reset_streams();
        service.streams() == 0
    })
    .await;
    assert_eq!(stream.end().await, (vec![], End::Reset));
    assert_eq!(faults.reset_streams(), 0);
}

#[tokio::test]
async fn streams_are_cut_off_within_an_event() {
    let (service, faults) = service().await;
    let mut open = Socket::open_stream(&service).await;
    let mut spared = Socket::open_stream(&service).await;
    let id = faults.add(Fault::on(Endpoint::Stream).half_open().after_bytes(20).times(1)).unwrap();
    service.set_flag("a", 1);
    spared.until("flag-updated").await;
    assert_eq!(open.until("event: flag-updated\n").await.lines().last(), Some("event: flag-updated"));
    assert_eq!(open.until("\r\n").await, "\r\n", "the end of a chunk");
    open.assert_quiet();
    // A stream is released before its cut is due.
    let mut waiting = Socket::open_stream(&service).await;
    let far = faults.add(Fault::on(Endpoint::Stream).half_open().after_bytes(500)).unwrap();
    // One of the three had been cut off.
    assert_eq!((faults.applied(id), faults.applied(far)), (1, 2));
    faults.clear();
    open.end().await;
    faults.inject([b'\n'; 600]);
    service.set_flag("a", 2);
    waiting.until("flag-updated").await;

    let on = Fault::on(Endpoint::Stream);
    for (fault, expected) in [(on.close(), End::Closed), (on.reset(), End::Reset)] {
        let id = faults.add(fault.after_bytes(10)).unwrap();
        let mut stream = Socket::open_stream(&service).await;
        service.set_flag("a", 3);
        stream.until("event: fla").await;
        assert_eq!(stream.end().await, (b"\r\n".to_vec(), expected));
        faults.remove(id);
    }
    service.set_flag("a", 4);
    waiting.until("flag-updated").await;
}

#[tokio::test]
async fn a_half_open_stream_without_events_is_closed_with_its_fault() {
    let (service, faults) = service().await;
    let stream = Socket::open_stream(&service).await;
    faults.add(Fault::on(Endpoint::Stream).half_open()).unwrap();
    faults.clear();
    assert_eq!(stream.end().await, (vec![], End::Closed));
}

#[tokio::test]
async fn a_stream_that_ends_before_its_cut_is_cut_off_at_its_end() {
    let (service, faults) = service().await;
    faults.add(Fault::on(Endpoint::Stream).reset().after_bytes(1 << 20)).unwrap();
    let stream = Socket::open_stream(&service).await;
    assert_eq!(faults.finish_streams(), 1);
    assert_eq!(stream.end().await, (vec![], End::Reset));
}

#[tokio::test]
async fn each_stream_ends_after_a_time_until_the_fault_is_removed() {
    let time = Duration::from_millis(30);
    let on = Fault::on(Endpoint::Stream);
    let cases = [
        (on.finish().after_time(time), None),
        (on.close().after_time(time), Some(End::Closed)),
        (on.reset().after_time(time), Some(End::Reset)),
    ];
    for (fault, end) in cases {
        // No heartbeat wakes the streams.
        let service = LocalServer::builder().heartbeat(HOUR).start().await.unwrap();
        let faults = service.faults();
        let mut stream = Socket::open_stream(&service).await;
        let added = Instant::now();
        let id = faults.add(fault).unwrap();
        assert_eq!(faults.applied(id), 1, "to the open stream");
        for round in 0..3 {
            match end {
                None => {
                    stream.until("0\r\n\r\n").await;
                    stream.send(BULK, "any", "").await;
                    stream.until("HTTP/1.1 200").await;
                }
                Some(end) => {
                    let (received, ended) = stream.end().await;
                    assert!(!received.ends_with(b"0\r\n\r\n"), "in the middle of the response");
                    assert_eq!(ended, end);
                }
            }
            assert!(added.elapsed() >= time * (round + 1));
            stream = Socket::request(&service, STREAM).await;
            until_applied(&faults, id, u64::from(round) + 2).await;
        }
        faults.remove(id);
        // This stream may have ended before the fault was removed. Later ones stay open.
        let mut stays = Socket::open_stream(&service).await;
        eventually(|| service.streams() >= 1).await;
        service.set_flag("a", 1);
        stays.until("flag-updated").await;
    }
}

#[tokio::test]
async fn a_stream_outlives_a_schedule_that_is_removed_or_far_away() {
    let (service, faults) = service().await;
    let mut stream = Socket::open_stream(&service).await;
    let on = Fault::on(Endpoint::Stream);
    let far = faults.add(on.reset().after_time(Duration::MAX)).unwrap();
    let never = faults.add(on.close().after_time(Duration::from_millis(20))).unwrap();
    assert_eq!((faults.applied(far), faults.applied(never)), (1, 1));
    faults.remove(never);
    let added = Instant::now();
    let mut value = 0;
    while added.elapsed() < Duration::from_millis(60) {
        value += 1;
        service.set_flag("a", value);
        stream.until("flag-updated").await;
    }
    // A stream whose end is scheduled also ends with the server.
    faults.add(on.finish().after_time(HOUR)).unwrap();
    in_time(service.shutdown()).await;
    stream.until("0\r\n\r\n").await;
}

#[tokio::test]
async fn a_limited_number_of_streams_ends_in_order_and_at_once() {
    let (service, faults) = service().await;
    faults.add(Fault::on(Endpoint::Stream).finish().times(2)).unwrap();
    for _ in 0..2 {
        Socket::open_stream(&service).await.until("0\r\n\r\n").await;
    }
    let mut stream = Socket::open_stream(&service).await;
    service.set_flag("a", 1);
    stream.until("flag-updated").await;
}

#[tokio::test]
async fn events_trickle() {
    let (service, faults) = service().await;
    let id = faults.add(Fault::on(Endpoint::Stream).trickle(5, HOUR)).unwrap();
    let mut stream = Socket::open_stream(&service).await;
    until_applied(&faults, id, 1).await;
    service.set_flag("a", 1);
    assert_eq!(stream.bytes(10).await, "5\r\nevent\r\n");
    assert_responds(&service, BULK).await;
    stream.assert_quiet();
    assert_eq!(faults.drop_streams(), 1);
    assert_eq!(stream.end().await, (vec![], End::Closed), "pauses do not delay the end");
}

#[tokio::test]
async fn heartbeats_stop_while_the_fault_applies() {
    let service = LocalServer::builder().heartbeat(Duration::from_millis(5)).start().await.unwrap();
    let faults = service.faults();
    let mut stream = Socket::open_stream(&service).await;
    stream.until("heartbeat").await;
    let id = faults.add(Fault::on(Endpoint::Stream).no_heartbeats()).unwrap();
    faults.inject(": here\n\n");
    stream.until(": here\n\n").await;
    eventually(|| faults.applied(id) >= 3).await;
    service.send_event("there", json!({}));
    let between = stream.until("event: there").await;
    assert!(!between.contains("heartbeat"), "{between}");
    faults.remove(id);
    stream.until("heartbeat").await;

    let three = faults.add(Fault::on(Endpoint::All).no_heartbeats().times(3)).unwrap();
    until_applied(&faults, three, 3).await;
    stream.until("heartbeat").await;

    // No heartbeat is due on this server.
    let (service, faults) = self::service().await;
    let id = faults.add(Fault::on(Endpoint::All).no_heartbeats()).unwrap();
    assert_responds(&service, BULK).await;
    assert_eq!(faults.applied(id), 0, "the fault does not apply to requests");
}

#[tokio::test]
async fn faults_on_streams_apply_to_event_streams() {
    let (service, faults) = service_with_event_streams().await;
    let stream = Fault::on(Endpoint::Stream);

    faults.add(stream.status(204).times(1)).unwrap();
    let mut socket = Socket::request(&service, EVENT_STREAM).await;
    assert!(socket.head().await.starts_with("http/1.1 204"));

    let ends = [(stream.close().times(1), End::Closed), (stream.reset().times(1), End::Reset)];
    for (fault, expected) in ends {
        faults.add(fault).unwrap();
        let (bytes, end) = Socket::request(&service, EVENT_STREAM).await.end().await;
        assert_eq!((bytes.len(), end), (0, expected));
    }

    // Streams that are already open.
    let open = async || {
        let mut stream = Socket::request(&service, EVENT_STREAM).await;
        stream.head().await;
        assert!(stream.chunk().await.contains("refetchEvaluation"));
        stream
    };
    let mut finished = open().await;
    faults.add(stream.finish().times(1)).unwrap();
    finished.until("0\r\n\r\n").await;

    let ends = [(stream.close(), End::Closed), (stream.reset(), End::Reset)];
    for (fault, expected) in ends {
        let socket = open().await;
        faults.add(fault.after_time(Duration::ZERO).times(1)).unwrap();
        assert_eq!(socket.end().await.1, expected);
    }
    let dropped = open().await;
    eventually(|| service.streams() == 1).await;
    assert_eq!(faults.drop_streams(), 1);
    assert_eq!(dropped.end().await.1, End::Closed);

    let (silent, mut unharmed) = (open().await, open().await);
    faults.add(stream.half_open().times(1)).unwrap();
    service.set_flag("a", 2);
    assert!(unharmed.chunk().await.contains("refetchEvaluation"));
    silent.assert_quiet();
    faults.clear();
    assert_eq!(silent.end().await.1, End::Closed);
}

#[tokio::test]
async fn without_replay_nothing_is_sent_on_opening() {
    let (service, faults) = service_with_event_streams().await;
    let fault = faults.add(Fault::on(Endpoint::Stream).no_replay().times(1)).unwrap();
    let mut stream = Socket::request(&service, EVENT_STREAM).await;
    stream.head().await;
    assert_eq!(faults.applied(fault), 1);
    service.send_event("config-updated", json!({}));
    let first = stream.until("\n\n").await;
    stream.until("\r\n").await;
    service.send_event("config-updated", json!({}));
    let second = stream.until("\n\n").await;
    let id = |event: &str| -> i64 { event.split("id: ").nth(1).unwrap().lines().next().unwrap().parse().unwrap() };
    assert!(id(&second) > id(&first), "{first} {second}");

    // The next stream begins with the id of the last change.
    let mut stream = Socket::request(&service, EVENT_STREAM).await;
    assert_eq!(id(&stream.until("\n\n").await), id(&second), "as often as `times`");
}

#[tokio::test]
async fn events_can_be_split_in_two() {
    let (service, faults) = service_with_event_streams().await;
    let fault = faults.add(Fault::on(Endpoint::Stream).split_events()).unwrap();
    for path in [EVENT_STREAM, STREAM] {
        let mut stream = Socket::request(&service, path).await;
        stream.head().await;
        if path == EVENT_STREAM {
            let replayed = stream.chunk().await + &stream.chunk().await;
            assert!(replayed.ends_with("\n\n"), "{replayed:?}");
        }
        let began = Instant::now();
        service.send_event("config-updated", json!({}));
        let (first, second) = (stream.chunk().await, stream.chunk().await);
        assert!(began.elapsed() >= Duration::from_millis(50), "clients have time to read the first piece");
        assert!(first.len().abs_diff(second.len()) <= 1, "{first:?} {second:?}");
        let event = first + &second;
        let expected = if path == STREAM { "event: config-updated\ndata: " } else { "id: " };
        assert!(event.starts_with(expected) && event.ends_with("\n\n"), "{event:?}");
    }
    assert_eq!(faults.applied(fault), 2);
    faults.clear();
    let mut stream = Socket::open_stream(&service).await;
    service.send_event("any", json!({}));
    let event = stream.chunk().await;
    assert!(event.starts_with("event: any\n") && event.ends_with("\n\n"), "in one piece: {event:?}");
}
