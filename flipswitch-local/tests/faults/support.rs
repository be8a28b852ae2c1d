//! A client that sees every byte, and other helpers.

use std::{
    io::{self, ErrorKind},
    time::Duration,
};

use flipswitch_local::{FaultId, Faults, LocalServer};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const BULK: &str = "/ofrep/v1/evaluate/flags";
pub(crate) const SINGLE: &str = "/ofrep/v1/evaluate/flags/a";
pub(crate) const STREAM: &str = "/api/v1/flags/events";
pub(crate) const EVENT_STREAM: &str = "/ofrep/v1/sse/flags";

/// Longer than any test takes.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum End {
    Closed,
    Reset,
}

/// A connection, and the bytes received from it that the test has not read yet.
pub(crate) struct Socket {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Socket {
    pub(crate) async fn open(service: &LocalServer) -> Self {
        let stream = TcpStream::connect(service.url().trim_start_matches("http://")).await.unwrap();
        Self { stream, received: Vec::new() }
    }

    /// Opens a connection and sends a request over it.
    pub(crate) async fn request(service: &LocalServer, path: &str) -> Self {
        let mut socket = Self::open(service).await;
        socket.send(path, &service.api_key(), "").await;
        socket
    }

    /// Opens a stream, and waits until it is open.
    pub(crate) async fn open_stream(service: &LocalServer) -> Self {
        let mut socket = Self::request(service, STREAM).await;
        socket.head().await;
        socket
    }

    pub(crate) async fn send(&mut self, path: &str, key: &str, headers: &str) {
        let is_stream = path == STREAM || path == EVENT_STREAM;
        let (method, body) = if is_stream { ("GET", "") } else { ("POST", r#"{"context":{}}"#) };
        self.send_body(method, path, key, headers, body).await;
    }

    async fn send_body(&mut self, method: &str, path: &str, key: &str, headers: &str, body: &str) {
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: local\r\nx-api-key: {key}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        );
        // Fails if the connection has already ended. Tests check what is received.
        self.stream.write_all(request.as_bytes()).await.ok();
    }

    /// Sends bytes. Fails the test if nothing acknowledges them.
    pub(crate) async fn send_bytes(&mut self, bytes: &[u8]) {
        in_time(self.stream.write_all(bytes)).await.unwrap();
    }

    /// Reads up to and including this text.
    pub(crate) async fn until(&mut self, mark: &str) -> String {
        loop {
            if let Some(at) = self.received.windows(mark.len()).position(|window| window == mark.as_bytes()) {
                let bytes: Vec<u8> = self.received.drain(..at + mark.len()).collect();
                return String::from_utf8(bytes).unwrap();
            }
            let read = in_time(self.stream.read_buf(&mut self.received)).await.unwrap();
            assert_ne!(read, 0, "the connection ended before {mark:?}: {:?}", String::from_utf8_lossy(&self.received));
        }
    }

    /// Reads a head, in lower case.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await.to_lowercase()
    }

    /// Reads this many bytes.
    pub(crate) async fn bytes(&mut self, count: usize) -> String {
        while self.received.len() < count {
            assert_ne!(in_time(self.stream.read_buf(&mut self.received)).await.unwrap(), 0, "the connection ended");
        }
        String::from_utf8(self.received.drain(..count).collect()).unwrap()
    }

    /// Reads the body, whose length is in the head.
    pub(crate) async fn body(&mut self, head: &str) -> String {
        self.bytes(length(head)).await
    }

    /// Reads the next chunk of a body. The server writes each chunk by itself.
    pub(crate) async fn chunk(&mut self) -> String {
        let size = self.until("\r\n").await;
        let chunk = self.bytes(usize::from_str_radix(size.trim(), 16).unwrap()).await;
        assert_eq!(self.bytes(2).await, "\r\n");
        chunk
    }

    /// Reads to the end of the connection.
    pub(crate) async fn end(mut self) -> (Vec<u8>, End) {
        loop {
            match in_time(self.stream.read_buf(&mut self.received)).await {
                Ok(0) => return (self.received, End::Closed),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (self.received, End::Reset),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Fails the test if there are bytes, or if the connection has ended.
    pub(crate) fn assert_quiet(&self) {
        assert_eq!(String::from_utf8_lossy(&self.received), "");
        let mut byte = [0];
        let outcome = self.stream.try_read(&mut byte);
        assert_eq!(outcome.map_err(|error: io::Error| error.kind()), Err(ErrorKind::WouldBlock));
    }
}

/// Returns the length of a body from its head.
pub(crate) fn length(head: &str) -> usize {
    head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap()
}

/// Starts a server with a flag `a`.
pub(crate) async fn service() -> (LocalServer, Faults) {
    let service = LocalServer::start(json!({"a": "some text that gives the response a length"})).await.unwrap();
    let faults = service.faults();
    (service, faults)
}

/// Starts a server with a flag `a` and OFREP event streams.
pub(crate) async fn service_with_event_streams() -> (LocalServer, Faults) {
    let service = LocalServer::builder().flags(json!({"a": 1})).event_streams(true).start().await.unwrap();
    let faults = service.faults();
    (service, faults)
}

/// Fails the test unless a request on a new connection gets a whole response. Returns its body.
pub(crate) async fn assert_responds(service: &LocalServer, path: &str) -> String {
    let mut socket = Socket::request(service, path).await;
    let head = socket.head().await;
    assert!(head.starts_with("http/1.1 200"), "{head}");
    if path == STREAM { String::new() } else { socket.body(&head).await }
}

/// Evaluates all flags for a context, on a new connection. Returns the status, the head and the body.
pub(crate) async fn evaluate(service: &LocalServer, headers: &str, context: Value) -> (u16, String, String) {
    let mut socket = Socket::open(service).await;
    let body = json!({ "context": context }).to_string();
    socket.send_body("POST", BULK, &service.api_key(), headers, &body).await;
    let head = socket.head().await;
    let body = if head.contains("content-length") { socket.body(&head).await } else { String::new() };
    (head[9..12].parse().unwrap(), head, body)
}

/// Returns the value of a header in a head.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

/// Fails the test if a future takes too long.
pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.unwrap()
}

/// Waits until a fault has been applied this many times.
pub(crate) async fn until_applied(faults: &Faults, id: FaultId, times: u64) {
    eventually(|| faults.applied(id) == times).await;
}

/// Waits until a condition holds.
pub(crate) async fn eventually(mut reached: impl FnMut() -> bool) {
    in_time(async {
        while !reached() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}
