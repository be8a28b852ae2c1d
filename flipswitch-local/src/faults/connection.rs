//! Connections that end when the service does, whatever their clients still want, and that do what faults tell them.

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

use crate::{
    faults::effect::Effect,
    faults::handle::{Now, Order, Wire},
    faults::registry::Book,
    faults::response::Line,
};

/// Accepts connections that fail once `cut` is cancelled, and those that a fault holds already with `stop`.
pub(crate) struct Listener {
    pub(crate) listener: TcpListener,
    pub(crate) faults: Arc<Book>,
    pub(crate) stop: CancellationToken,
    pub(crate) cut: CancellationToken,
}

impl Listener {
    /// Lets the faults have a new connection; returns it unless one of them ends it.
    async fn spared(&self, mut stream: TcpStream, wire: &Wire) -> Option<TcpStream> {
        match self.faults.connection(&Arc::new(Line::new(wire.clone()))) {
            Some(Effect::Reset { .. }) => reset(&stream),
            Some(Effect::Close { .. }) => {
                // What the client has sent is not read; without this FIN the system would answer it with a RST.
                if let Err(error) = poll_fn(|context| Pin::new(&mut stream).poll_shutdown(context)).await {
                    tracing::debug!(target: "flipswitch_local", %error, "closing a connection");
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
            let wire = Wire::default();
            let Some(stream) = self.spared(stream, &wire).await else { continue };
            // Events are small and must not wait for one another.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(target: "flipswitch_local", %error, "TCP_NODELAY");
            }
            let stop = Box::pin(self.stop.clone().cancelled_owned());
            let cut = Box::pin(self.cut.clone().cancelled_owned());
            return (Connection { stream, wire, stop, cut }, peer);
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Whom a connection is with.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) wire: Wire,
    pub(crate) address: SocketAddr,
}

impl Connected<serve::IncomingStream<'_, Listener>> for Peer {
    fn connect_info(incoming: serve::IncomingStream<'_, Listener>) -> Self {
        Self { wire: incoming.io().wire.clone(), address: *incoming.remote_addr() }
    }
}

/// A connection in the hands of axum, which has tasks of its own for them and lets none of them be aborted.
pub(crate) struct Connection {
    stream: TcpStream,
    wire: Wire,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connection {
    /// How the connection stands, unless it has ended. Asks again when that changes.
    fn look(&mut self, context: &mut Context<'_>) -> io::Result<Now> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the service has been shut down"));
        }
        let stopping = self.stop.as_mut().poll(context).is_ready();
        let now = self.wire.watch(context.waker());
        match now.order {
            Some(order @ (Order::Close | Order::Reset)) if now.silent => Err(self.end(order, context)),
            _ if now.silent && stopping => Err(self.end(Order::Close, context)),
            _ => Ok(now),
        }
    }

    /// Ends the connection, which is dropped for the error.
    fn end(&mut self, order: Order, context: &mut Context<'_>) -> io::Error {
        if order == Order::Reset {
            reset(&self.stream);
        } else {
            // A socket is shut down without waiting, and one that cannot be is gone.
            let _ = Pin::new(&mut self.stream).poll_shutdown(context);
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "a fault has ended the connection")
    }

    /// Reads what a client sends to nobody, until it leaves.
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

    /// Writes, unless the connection is silent: then the bytes are lost.
    fn write(
        &mut self,
        context: &mut Context<'_>,
        length: usize,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let now = self.look(context)?;
        if now.silent {
            return Poll::Ready(Ok(length));
        }
        let outcome = write(Pin::new(&mut self.stream), context);
        match now.order {
            Some(order @ (Order::Close | Order::Reset)) if now.at_once && outcome.is_pending() => {
                Poll::Ready(Err(self.end(order, context)))
            }
            _ => outcome,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.wire.end();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.look(context)?.silent {
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

    /// The server flushes whenever it has nothing more to write, which is when orders are carried out.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.look(context)?;
        if now.silent {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        match now.order {
            None => {}
            Some(Order::Silence) => {
                self.wire.silence();
                self.look(context)?;
            }
            Some(order) => return Poll::Ready(Err(self.end(order, context))),
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let now = self.look(context)?;
        if now.silent {
            ready!(self.drain(context))?;
        } else if let Some(order @ (Order::Close | Order::Reset)) = now.order {
            return Poll::Ready(Err(self.end(order, context)));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Lets the end of a connection be a RST.
fn reset(stream: &TcpStream) {
    if let Err(error) = stream.set_zero_linger() {
        tracing::debug!(target: "flipswitch_local", %error, "SO_LINGER");
    }
}
