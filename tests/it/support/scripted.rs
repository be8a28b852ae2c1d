//! A service whose responses a test defines, byte for byte.
#![expect(clippy::needless_pass_by_value, reason = "replies are written on the spot")]

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::body::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, broadcast},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::BULK;

/// A response. The connection is closed after it.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    /// A status, headers and a body.
    Http(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// No bytes. The connection stays open.
    Silence,
    /// Arbitrary bytes.
    Raw(Vec<u8>),
    /// An endless body in chunks.
    Endless,
    /// Another reply, which is sent once it is released.
    Held(Arc<Semaphore>, Box<Reply>),
    /// A stream of the events that this channel receives after the stream was opened.
    Events(broadcast::Sender<&'static str>),
    /// A stream with these additional headers, of the bytes that this channel receives after it was opened. Empty bytes end it.
    Bytes(&'static str, broadcast::Sender<Bytes>),
    /// A stream behind a load balancer. It begins with a heartbeat, followed by the bytes that this channel receives.
    Limited(broadcast::Sender<Bytes>, TimeLimit),
    /// A stream of one endless line.
    EndlessLine,
}

/// The time limit of a load balancer for streams, and whether it cuts them or ends them properly.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TimeLimit {
    pub(crate) after: Duration,
    pub(crate) cuts: bool,
}

impl Reply {
    /// A JSON body with status 200.
    pub(crate) fn json(body: impl ToString) -> Self {
        Self::Http(200, vec![("content-type", "application/json".to_owned())], body.to_string().into_bytes())
    }

    /// A status with a body.
    pub(crate) fn status(status: u16, body: impl ToString) -> Self {
        Self::Http(status, Vec::new(), body.to_string().into_bytes())
    }

    pub(crate) fn with(self, name: &'static str, value: impl ToString) -> Self {
        match self {
            Self::Http(status, mut headers, body) => {
                headers.push((name, value.to_string()));
                Self::Http(status, headers, body)
            }
            other => other,
        }
    }
}

/// A received request.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    /// The head of the request in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
    pub(crate) at: Instant,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }

    pub(crate) fn is_bulk(&self) -> bool {
        self.path.split('?').next() == Some(BULK)
    }

    /// Returns the query of the URL, unchanged.
    pub(crate) fn query(&self) -> Option<&str> {
        self.path.split_once('?').map(|(_, query)| query)
    }
}

/// The service. Dropping it stops the service.
pub(crate) struct Scripted {
    address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    _stop: DropGuard,
}

impl Scripted {
    /// Starts a service. The script gets each request and the number of earlier requests.
    pub(crate) async fn start(script: impl Fn(&Received, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let stop = CancellationToken::new();
        let (script, requests, stopped) = (Arc::new(script), Arc::clone(&received), stop.clone());
        tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                let (script, requests) = (Arc::clone(&script), Arc::clone(&requests));
                tokio::spawn(stopped.clone().run_until_cancelled_owned(async move {
                    // A client may disconnect at any time.
                    let _ = serve(connection, &*script, &requests).await;
                }));
            }
        }));
        Self { address, received, _stop: stop.drop_guard() }
    }

    /// Starts a service with the same response to every request.
    pub(crate) async fn answering(reply: Reply) -> Self {
        Self::start(move |_, _| reply.clone()).await
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }
}

async fn serve(
    mut connection: TcpStream,
    script: &(impl Fn(&Received, usize) -> Reply + ?Sized),
    requests: &Mutex<Vec<Received>>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if connection.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words = head.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut request =
        Received { method, path, head: head.to_ascii_lowercase(), body: String::new(), at: Instant::now() };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while bytes.len() < end + length {
        if connection.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
    request.body = String::from_utf8_lossy(&bytes[end..end + length]).into_owned();
    let mut reply = {
        let mut requests = requests.lock().unwrap();
        let before = requests.len();
        requests.push(request.clone());
        script(&request, before)
    };
    while let Reply::Held(released, then) = reply {
        released.acquire().await.unwrap().forget();
        reply = *then;
    }
    match reply {
        Reply::Http(status, headers, body) => {
            let mut head = format!("HTTP/1.1 {status} Scripted\r\nconnection: close\r\n");
            for (name, value) in headers {
                head += &format!("{name}: {value}\r\n");
            }
            if status != 304 {
                head += &format!("content-length: {}\r\n", body.len());
            }
            connection.write_all(head.as_bytes()).await?;
            connection.write_all(b"\r\n").await?;
            connection.write_all(&body).await?;
        }
        Reply::Raw(bytes) => connection.write_all(&bytes).await?,
        Reply::Silence => std::future::pending().await,
        Reply::Held(..) => unreachable!("released above"),
        Reply::Events(events) => {
            let mut events = events.subscribe();
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n").await?;
            while let Ok(event) = events.recv().await {
                connection.write_all(event.as_bytes()).await?;
            }
        }
        Reply::Bytes(head, pieces) => {
            let mut pieces = pieces.subscribe();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{head}\r\n");
            connection.write_all(head.as_bytes()).await?;
            while let Ok(bytes) = pieces.recv().await
                && !bytes.is_empty()
            {
                connection.write_all(&bytes).await?;
            }
        }
        Reply::Limited(pieces, limit) => {
            let until = tokio::time::Instant::from_std(request.at) + limit.after;
            let mut pieces = pieces.subscribe();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            connection.write_all(head.as_bytes()).await?;
            let mut piece = Ok(Bytes::from_static(b"event: heartbeat\ndata: {}\n\n"));
            while let Ok(bytes) = piece {
                let chunk = [format!("{:x}\r\n", bytes.len()).as_bytes(), &bytes, b"\r\n"].concat();
                connection.write_all(&chunk).await?;
                piece = tokio::select! {
                    piece = pieces.recv() => piece,
                    () = tokio::time::sleep_until(until) => break,
                };
            }
            if !limit.cuts {
                connection.write_all(b"0\r\n\r\n").await?;
            }
        }
        Reply::EndlessLine => {
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ").await?;
            loop {
                connection.write_all(&[b' '; 0x10000]).await?;
            }
        }
        Reply::Endless => {
            connection.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
            let chunk = [b"10000\r\n".as_slice(), &[b' '; 0x10000], b"\r\n"].concat();
            loop {
                connection.write_all(&chunk).await?;
            }
        }
    }
    connection.shutdown().await
}
