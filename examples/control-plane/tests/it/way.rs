//! The way to a control plane, of TCP, which a test can spoil.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// What becomes of what the control plane sends; what it is sent comes as it is, where it says nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Open,
    /// It comes in pieces of so many bytes, each after such a pause.
    Slow(usize, Duration),
    /// The first so many bytes of each connection come, then it ends.
    Cut(usize),
    /// This byte is another, and so is the first one of each later piece.
    Garbled(usize),
    /// Nothing comes either way, not even that one end is gone.
    Lost,
    /// Connections end as they begin.
    Closed,
}

pub(crate) struct Way {
    address: SocketAddr,
    said: watch::Sender<(SocketAddr, Mode)>,
    connections: Arc<AtomicUsize>,
    running: JoinHandle<()>,
}

impl Way {
    /// Opens a way to there, from another port of the same address.
    pub(crate) async fn open(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((to.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let said = watch::Sender::new((to, Mode::Open));
        let connections = Arc::new(AtomicUsize::new(0));
        let (hears, count) = (said.subscribe(), Arc::clone(&connections));
        let running = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(carry(stream, hears.clone()));
            }
        });
        Self {
            address,
            said,
            connections,
            running,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections there were.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// What becomes of connections from now on, those that are there included.
    pub(crate) fn turn(&self, mode: Mode) {
        self.said.send_modify(|said| said.1 = mode);
    }

    /// Leads elsewhere; connections that are there end.
    pub(crate) fn lead(&self, to: SocketAddr) {
        self.said.send_modify(|said| said.0 = to);
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn carry(mut client: TcpStream, mut said: watch::Receiver<(SocketAddr, Mode)>) {
    let to = said.borrow_and_update().0;
    let Ok(mut server) = TcpStream::connect(to).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let (mut modes, mut passing) = (said.clone(), said.clone());
    let up = async {
        let mut piece = vec![0; 16 << 10];
        loop {
            let read = from_client.read(&mut piece).await.unwrap_or(0);
            let _ = passing.wait_for(|said| said.1 != Mode::Lost).await;
            if read == 0 || to_server.write_all(&piece[..read]).await.is_err() {
                return;
            }
        }
    };
    let down = async {
        let (mut passed, mut piece) = (0_usize, vec![0; 16 << 10]);
        loop {
            let size = match modes.borrow().1 {
                Mode::Slow(size, _) => size.min(piece.len()),
                _ => piece.len(),
            };
            let Ok(mut read @ 1..) = from_server.read(&mut piece[..size]).await else {
                return;
            };
            let _ = modes.wait_for(|said| said.1 != Mode::Lost).await;
            // As it is now: the wait was long.
            let mode = modes.borrow().1;
            match mode {
                Mode::Slow(_, pause) => sleep(pause).await,
                Mode::Cut(most) => read = read.min(most.saturating_sub(passed)),
                Mode::Garbled(from) if passed + read > from => {
                    piece[from.saturating_sub(passed)] ^= 0x55;
                }
                Mode::Open | Mode::Garbled(_) | Mode::Lost | Mode::Closed => {}
            }
            passed += read;
            if to_client.write_all(&piece[..read]).await.is_err() {
                return;
            }
            // Not when there is more to say: that may be never.
            if matches!(mode, Mode::Cut(most) if passed >= most) {
                return;
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
        _ = said.wait_for(|said| said.0 != to || said.1 == Mode::Closed) => {}
    }
}
