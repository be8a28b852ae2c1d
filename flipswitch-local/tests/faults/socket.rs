//! A client that sees every byte.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use flipswitch_local::{FaultId, Faults, LocalServer};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const BULK: &str = "/ofrep/v1/evaluate/flags";
pub(crate) const SINGLE: &str = "/ofrep/v1/evaluate/flags/a";
pub(crate) const STREAM: &str = "/api/v1/flags/events";

/// No test waits so long.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Closed,
    Reset,
}

/// A connection, and what came over it and was not looked at yet.
pub(crate) struct Socket {
    stream: TcpStream,
    got: Vec<u8>,
}

impl Socket {
    pub(crate) async fn open(service: &LocalServer) -> Self {
        let stream = TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap();
        Self { stream, got: Vec::new() }
    }

    /// Opens a connection and sends a request over it.
    pub(crate) async fn ask(service: &LocalServer, path: &str) -> Self {
        let mut socket = Self::open(service).await;
        socket.send(path, &service.api_key(), "").await;
        socket
    }

    /// Opens a stream, and waits until it is open.
    pub(crate) async fn listen(service: &LocalServer) -> Self {
        let mut socket = Self::ask(service, STREAM).await;
        socket.head().await;
        socket
    }

    pub(crate) async fn send(&mut self, path: &str, key: &str, headers: &str) {
        let (method, body) = if path == STREAM { ("GET", "") } else { ("POST", r#"{"context":{}}"#) };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: local\r\nx-api-key: {key}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        // A connection that ends at once may not take it; what it gives is what counts.
        self.stream.write_all(request.as_bytes()).await.ok();
    }

    /// Reads up to here and returns that much.
    pub(crate) async fn until(&mut self, mark: &str) -> String {
        loop {
            if let Some(at) = self.got.windows(mark.len()).position(|window| window == mark.as_bytes()) {
                let bytes: Vec<u8> = self.got.drain(..at + mark.len()).collect();
                return String::from_utf8(bytes).unwrap();
            }
            let read = in_time(self.stream.read_buf(&mut self.got)).await.unwrap();
            assert_ne!(read, 0, "the connection ended before {mark:?}: {:?}", String::from_utf8_lossy(&self.got));
        }
    }

    /// Reads a head, in small letters.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await.to_lowercase()
    }

    /// Reads exactly so many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> String {
        while self.got.len() < count {
            assert_ne!(in_time(self.stream.read_buf(&mut self.got)).await.unwrap(), 0, "the connection ended");
        }
        String::from_utf8(self.got.drain(..count).collect()).unwrap()
    }

    /// Reads a body of which the head has told the length.
    pub(crate) async fn body(&mut self, head: &str) -> String {
        self.bytes(length(head)).await
    }

    /// Reads to the end; returns what came, and how it ended.
    pub(crate) async fn end(mut self) -> (Vec<u8>, End) {
        loop {
            match in_time(self.stream.read_buf(&mut self.got)).await {
                Ok(0) => return (self.got, End::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (self.got, End::Reset),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Fails the test if there are bytes or an end.
    pub(crate) fn is_quiet(&self) {
        assert_eq!(String::from_utf8_lossy(&self.got), "");
        let mut byte = [0];
        let outcome = self.stream.try_read(&mut byte);
        assert_eq!(outcome.map_err(|error: io::Error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

/// The length of a body as its head tells it.
pub(crate) fn length(head: &str) -> usize {
    head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap()
}

/// A service with a flag `a`.
pub(crate) async fn service() -> (LocalServer, Faults) {
    let service = LocalServer::start(json!({"a": "some text that gives the answer a length"})).await.unwrap();
    let faults = service.faults();
    (service, faults)
}

/// Fails the test unless a request over a new connection is answered in full.
pub(crate) async fn is_well(service: &LocalServer, path: &str) -> String {
    let mut socket = Socket::ask(service, path).await;
    let head = socket.head().await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    if path == STREAM { String::new() } else { socket.body(&head).await }
}

/// Fails the test if something takes longer than anything should.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap()
}

/// Waits until a fault has struck so often.
pub(crate) async fn applied(faults: &Faults, id: FaultId, times: u64) {
    eventually(|| faults.applied(id) == times).await;
}

/// Waits until a state is reached.
pub(crate) async fn eventually(mut reached: impl FnMut() -> bool) {
    in_time(async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
