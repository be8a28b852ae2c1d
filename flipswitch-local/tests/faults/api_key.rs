//! Rotation of the API key.

use std::time::{Duration, SystemTime};

use flipswitch_local::{KeyRotation, LocalServer};

use crate::support::{BULK, HOUR, Socket};

async fn status(service: &LocalServer, key: &str) -> String {
    let mut socket = Socket::open(service).await;
    socket.send(BULK, key, "").await;
    socket.head().await[9..12].to_owned()
}

#[tokio::test]
async fn a_new_key_is_announced_and_replaces_the_old_one() {
    let service = LocalServer::builder().api_key("old").start().await.unwrap();
    let mut stream = Socket::open_stream(&service).await;
    assert_eq!(service.rotate_api_key(KeyRotation::new().key("new")), "new");
    assert_eq!(service.api_key(), "new");
    stream.until("event: api-key-rotated\n").await;
    let data = stream.until("\n").await;
    assert!(data.contains(r#""validUntil":"20"#) && data.contains(r#""timestamp":"20"#), "{data}");
    assert_eq!((status(&service, "old").await.as_str(), status(&service, "new").await.as_str()), ("401", "200"));
    service.set_flag("a", 1);
    stream.until("flag-updated").await;

    let generated = service.rotate_api_key(KeyRotation::new());
    assert_eq!(service.api_key(), generated);
    assert_ne!(generated, service.rotate_api_key(KeyRotation::new()));
}

#[tokio::test]
async fn the_old_key_is_accepted_until_it_expires() {
    let service = LocalServer::builder().api_key("old").start().await.unwrap();
    let mut stream = Socket::open_stream(&service).await;
    let until = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    service.rotate_api_key(KeyRotation::new().key("new").valid_until(until));
    stream.until(r#""validUntil":"2100-01-01T00:00:00.000Z""#).await;
    assert_eq!((status(&service, "old").await.as_str(), status(&service, "new").await.as_str()), ("200", "200"));
    service.rotate_api_key(KeyRotation::new().key("newest").valid_until(SystemTime::now() - HOUR));
    assert_eq!((status(&service, "new").await.as_str(), status(&service, "old").await.as_str()), ("401", "200"));
}

#[tokio::test]
async fn after_a_rotation_only_the_new_key_is_accepted() {
    let service = LocalServer::builder().start().await.unwrap();
    assert_eq!((service.api_key(), status(&service, "any").await), ("local".to_owned(), "200".to_owned()));
    let key = service.rotate_api_key(KeyRotation::new());
    assert_eq!((status(&service, "any").await.as_str(), status(&service, &key).await.as_str()), ("401", "200"));
}
