//! A wiretap: a TCP relay that keeps what passes through it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What was recorded, kept up to this many bytes.
const KEEP: usize = 64 << 20;

#[derive(Debug)]
pub(crate) struct Relay {
    seen: Arc<Mutex<Vec<u8>>>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Stands on `from` and passes everything on to `to`.
    pub(crate) async fn start(from: SocketAddr, to: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(from).await?;
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let record = Arc::clone(&record);
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(to).await {
                        let (client_read, client_write) = client.into_split();
                        let (server_read, server_write) = server.into_split();
                        tokio::join!(
                            pass(client_read, server_write, &record),
                            pass(server_read, client_write, &record),
                        );
                    }
                });
            }
        });
        Ok(Self { seen, task })
    }

    /// Whether `text` passed in the clear.
    pub(crate) fn saw(&self, text: &str) -> bool {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.windows(text.len())
            .any(|window| window == text.as_bytes())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    record: &Mutex<Vec<u8>>,
) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        {
            let mut seen = record.lock().unwrap_or_else(PoisonError::into_inner);
            let room = KEEP.saturating_sub(seen.len()).min(count);
            seen.extend_from_slice(&buffer[..room]);
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}
