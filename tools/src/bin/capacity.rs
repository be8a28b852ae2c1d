//! Measures how much load a flag service sustains: `capacity URL API_KEY [--streams 2000] [--seconds 5] [--connections 32]`.
//!
//! The program opens streams of changes, requests all flags for new contexts while the streams are open, and then sends a
//! change to all streams. The service is another process, such as `flipswitch-local --flags examples/flags.json`. This
//! program uses one thread. Both processes need an open file for each stream (`ulimit -n`).
#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "it prints what it measured, and fails by panicking"
)]

use std::{
    env,
    time::{Duration, Instant},
};

use lexopt::{Arg, ValueExt};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    task::JoinSet,
};

struct Options {
    /// Host and port.
    address: String,
    key: String,
    streams: usize,
    seconds: u64,
    connections: usize,
}

fn options() -> Result<Options, lexopt::Error> {
    let (mut texts, mut streams, mut seconds, mut connections) = (Vec::new(), 2_000, 5, 32);
    let mut arguments = lexopt::Parser::from_iter(env::args_os());
    while let Some(argument) = arguments.next()? {
        match argument {
            Arg::Long("streams") => streams = arguments.value()?.parse()?,
            Arg::Long("seconds") => seconds = arguments.value()?.parse()?,
            Arg::Long("connections") => connections = arguments.value()?.parse()?,
            Arg::Value(text) => texts.push(text.string()?),
            other => return Err(other.unexpected()),
        }
    }
    let [url, key] = texts.try_into().map_err(|_| "pass the URL of the service and an API key")?;
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_owned();
    Ok(Options { address, key, streams, seconds, connections })
}

/// Reads the head of a response, and returns the length of its body.
async fn head(reader: &mut BufReader<TcpStream>) -> usize {
    let (mut length, mut line) = (0, String::new());
    reader.read_line(&mut line).await.unwrap();
    assert!(line.contains(" 200 "), "{line}");
    loop {
        line.clear();
        reader.read_line(&mut line).await.unwrap();
        match line.trim_end().to_ascii_lowercase().split_once(": ") {
            Some(("content-length", bytes)) => length = bytes.parse().unwrap(),
            None => return length,
            _ => {}
        }
    }
}

async fn stream(options: &Options) -> BufReader<TcpStream> {
    let mut connection = TcpStream::connect(&options.address).await.expect("the service must be listening");
    let Options { address, key, .. } = options;
    let request = format!(
        "GET /api/v1/flags/events HTTP/1.1\r\nhost: {address}\r\nx-api-key: {key}\r\naccept: text/event-stream\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut reader = BufReader::with_capacity(1_024, connection);
    head(&mut reader).await;
    reader
}

/// Sends requests for new users, one after the other. Returns the number of responses until the given time.
async fn evaluate(options: &Options, connection: usize, until: Instant) -> usize {
    let stream = TcpStream::connect(&options.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream);
    let (mut responses, mut body) = (0, Vec::new());
    while Instant::now() < until {
        let context = format!(r#"{{"context":{{"plan":"premium","targetingKey":"user-{connection}-{responses}"}}}}"#);
        let request = format!(
            "POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nhost: {}\r\nx-api-key: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{context}",
            options.address,
            options.key,
            context.len(),
        );
        reader.get_mut().write_all(request.as_bytes()).await.unwrap();
        body.resize(head(&mut reader).await, 0);
        reader.read_exact(&mut body).await.unwrap();
        responses += 1;
    }
    responses
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), lexopt::Error> {
    let options: &Options = Box::leak(Box::new(options()?));
    let begun = Instant::now();
    let mut streams = Vec::new();
    for _ in 0..options.streams {
        streams.push(stream(options).await);
    }
    println!("{} streams opened in {:.2?}", streams.len(), begun.elapsed());

    let (begun, mut work) = (Instant::now(), JoinSet::new());
    let until = begun + Duration::from_secs(options.seconds);
    for connection in 0..options.connections {
        work.spawn(evaluate(options, connection, until));
    }
    let responses: usize = work.join_all().await.into_iter().sum();
    println!("{:.0} evaluations per second with open streams", responses as f64 / begun.elapsed().as_secs_f64());

    // Every stream must still be open and receive this change.
    let event = "event: flag-updated\ndata: {\"flagKey\":\"new-feature\"}\n\n";
    let mut connection = BufReader::new(TcpStream::connect(&options.address).await.unwrap());
    let request = format!(
        "POST /local/streams/inject HTTP/1.1\r\nhost: {}\r\ncontent-length: {}\r\n\r\n{event}",
        options.address,
        event.len(),
    );
    let begun = Instant::now();
    connection.get_mut().write_all(request.as_bytes()).await.unwrap();
    let mut notified = JoinSet::new();
    for mut stream in streams {
        notified.spawn(async move {
            let mut line = String::new();
            while !line.contains("new-feature") {
                line.clear();
                assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "a stream ended");
            }
            begun.elapsed()
        });
    }
    let mut times = notified.join_all().await;
    times.sort_unstable();
    if let (Some(half), Some(last)) = (times.get(times.len() / 2), times.last()) {
        println!(
            "all {} streams received a change: half of them after {half:.2?}, the last one after {last:.2?}",
            times.len()
        );
    }
    Ok(())
}
