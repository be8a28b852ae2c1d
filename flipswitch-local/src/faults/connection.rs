//! Connections that end when the server stops, regardless of their clients, and that faults can act on.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::{extract::connect_info::Connected, serve};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::faults::{
    effect::Effect,
    handle::{ConnectionAction, ConnectionHandle, ConnectionStatus},
    registry::FaultRegistry,
    response::ResponseCutter,
};

/// Accepts connections, after applying the faults on connections.
pub(crate) struct Listener {
    pub(crate) listener: TcpListener,
    pub(crate) faults: Arc<FaultRegistry>,
    /// Aborts all connections when cancelled.
    pub(crate) abort: CancellationToken,
}

impl Listener {
    /// Applies the faults to a new connection. Returns the connection unless one of them has ended it.
    async fn apply_faults(&self, mut stream: TcpStream, handle: &ConnectionHandle) -> Option<TcpStream> {
        match self.faults.apply_to_connection(&Arc::new(ResponseCutter::new(handle.clone()))) {
            Some(Effect::Reset { .. }) => reset_on_close(&stream),
            Some(Effect::Close { .. }) => {
                // Sends a FIN first: unread data from the client would make the system send a RST.
                if let Err(error) = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await {
                    tracing::debug!(target: "flipswitch_local", %error, "cannot close a connection");
                }
            }
            _ => return Some(stream),
        }
        None
    }
}

impl serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, peer) = serve::Listener::accept(&mut self.listener).await;
            let handle = ConnectionHandle::default();
            let Some(stream) = self.apply_faults(stream, &handle).await else { continue };
            // Events are small and must be sent without delay.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(target: "flipswitch_local", %error, "cannot set TCP_NODELAY");
            }
            self.faults.register_connection(handle.clone());
            let stop = Box::pin(self.faults.stop.clone().cancelled_owned());
            let abort = Box::pin(self.abort.clone().cancelled_owned());
            return (Connection { stream, handle, stop, abort }, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The peer of a connection, and the handle to the connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) handle: ConnectionHandle,
    pub(crate) address: SocketAddr,
}

impl Connected<serve::IncomingStream<'_, Listener>> for Peer {
    fn connect_info(incoming: serve::IncomingStream<'_, Listener>) -> Self {
        Self { handle: incoming.io().handle.clone(), address: *incoming.remote_addr() }
    }
}

/// A connection. axum drives it in a task that cannot be aborted, so the connection itself fails when it must end.
pub(crate) struct Connection {
    stream: TcpStream,
    handle: ConnectionHandle,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// Returns the status, or an error if the connection must end now. Wakes the task when that changes.
    fn status(&mut self, context: &mut Context<'_>) -> io::Result<ConnectionStatus> {
        if self.abort.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has been shut down"));
        }
        let stopping = self.stop.as_mut().poll(context).is_ready();
        let status = self.handle.watch(context.waker());
        match status.action {
            Some(action @ (ConnectionAction::Close | ConnectionAction::Reset)) if status.silent => {
                Err(self.end(action, context))
            }
            _ if status.silent && stopping => Err(self.end(ConnectionAction::Close, context)),
            _ => Ok(status),
        }
    }

    /// Ends the connection, and returns the error that its reads and writes fail with.
    fn end(&mut self, action: ConnectionAction, context: &mut Context<'_>) -> io::Error {
        if action == ConnectionAction::Reset {
            reset_on_close(&self.stream);
        } else {
            // Shutting down a socket never blocks, and an error means that it is already closed.
            let _ = Pin::new(&mut self.stream).poll_shutdown(context);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "a fault has ended the connection")
    }

    /// Reads and discards what the client sends, until it closes the connection.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut scratch = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
            if buffer.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes, or discards the bytes if the connection is silent.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        length: usize,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let status = self.status(context)?;
        if status.silent {
            return Poll::Ready(Ok(length));
        }
        let outcome = write(Pin::new(&mut self.stream), context);
        match status.action {
            Some(action @ (ConnectionAction::Close | ConnectionAction::Reset))
                if status.immediate && outcome.is_pending() =>
            {
                Poll::Ready(Err(self.end(action, context)))
            }
            _ => outcome,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.handle.mark_closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.status(context)?.silent {
            return self.drain(context);
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(context, bytes.len(), |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = bytes.iter().map(|slice| slice.len()).sum();
        self.write(context, length, |stream, context| stream.poll_write_vectored(context, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// The server flushes whenever it has nothing more to write, so actions that are due after that happen here.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let status = self.status(context)?;
        if status.silent {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        match status.action {
            None => {}
            Some(ConnectionAction::Silence) => {
                self.handle.silence();
                self.status(context)?;
            }
            Some(action) => return Poll::Ready(Err(self.end(action, context))),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let status = self.status(context)?;
        if status.silent {
            ready!(self.drain(context))?;
        } else if let Some(action @ (ConnectionAction::Close | ConnectionAction::Reset)) = status.action {
            return Poll::Ready(Err(self.end(action, context)));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Makes closing the connection send a RST.
fn reset_on_close(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(target: "flipswitch_local", %error, "cannot set SO_LINGER");
    }
}
