//! A TCP relay in front of a service, whose connections can die without being closed.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{self, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(crate) struct Relay {
    address: SocketAddr,
    /// Connections up to this number discard all bytes.
    dead: Arc<watch::Sender<usize>>,
    accepted: Arc<AtomicUsize>,
}

impl Relay {
    pub(crate) async fn start(service: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (dead, accepted) = (Arc::new(watch::Sender::new(0)), Arc::new(AtomicUsize::new(0)));
        let (state, count) = (Arc::clone(&dead), Arc::clone(&accepted));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::AcqRel) + 1;
                tokio::spawn(relay(client, service, number, state.subscribe()));
            }
        });
        Self { address, dead, accepted }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the number of connections that were opened so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Acquire)
    }

    /// Makes all current connections discard bytes, in both directions. The system still acknowledges the bytes.
    pub(crate) fn kill_connections(&self) {
        self.dead.send_replace(self.accepted.load(Ordering::Acquire));
    }
}

async fn relay(client: TcpStream, service: SocketAddr, number: usize, mut dead: watch::Receiver<usize>) {
    let Ok(service) = TcpStream::connect(service).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_service, mut to_service) = service.into_split();
    let forward = async {
        tokio::select! {
            _ = io::copy(&mut from_client, &mut to_service) => {}
            _ = io::copy(&mut from_service, &mut to_client) => {}
            _ = dead.wait_for(|dead| number <= *dead) => return true,
        }
        false
    };
    if forward.await {
        // Reads and discards bytes until the client gives up.
        let mut swallowed = Vec::new();
        while from_client.read_buf(&mut swallowed).await.is_ok_and(|read| read > 0) {
            swallowed.clear();
        }
        to_client.shutdown().await.ok();
    }
}
