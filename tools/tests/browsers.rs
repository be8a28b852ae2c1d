//! The applications of the program `browsers` shut down while browsers have open streams.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use flipswitch_local::LocalServer;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
};

const STREAMS: usize = 1_000;

/// The time limit of a shutdown: much more than it takes, even on a busy machine, and much less than the time that servers
/// would wait for streams.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_graceful_shutdown_does_not_wait_for_the_streams_of_browsers() {
    let service = LocalServer::builder().flags(json!({"f": true})).api_key("key").start().await.unwrap();
    for framework in ["axum", "actix"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_browsers"));
        command.args([framework, &service.url()]).stdout(Stdio::piped()).kill_on_drop(true);
        let mut application = command.spawn().unwrap();
        let mut output = BufReader::new(application.stdout.take().unwrap()).lines();
        let address = output.next_line().await.unwrap().unwrap();
        let mut streams = Vec::new();
        for number in 0..STREAMS {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            let request =
                format!("GET /flags/ofrep/v1/events HTTP/1.1\r\nhost: {address}\r\nx-user: user-{number}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            streams.push(stream);
        }
        for stream in &mut streams {
            let mut head = [0; 15];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK", "{framework}");
        }
        let began = Instant::now();
        let id = application.id().unwrap().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().await.unwrap().success());
        let status = tokio::time::timeout(SOON, application.wait()).await;
        assert!(status.is_ok_and(|status| status.unwrap().success()), "{framework}: {:?}", began.elapsed());
        for mut stream in streams {
            // The stream ended properly, with the last chunk.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.ends_with(b"\r\n0\r\n\r\n"), "{framework}: {}", String::from_utf8_lossy(&rest));
        }
    }
    service.shutdown().await;
}
