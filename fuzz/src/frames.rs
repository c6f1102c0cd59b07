//! HTTP/2 frames of a client, after its preface.

use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::server;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::Builder;
use tokio::time::timeout;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Longer than any wait of the defaults, their sum included.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many frames say END_STREAM, as far as the input can be read as frames.
fn ends(mut data: &[u8]) -> usize {
    let mut ends = 0;
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = data {
        ends += usize::from(*kind <= 1 && flags & 1 == 1);
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        data = rest.get(length..).unwrap_or_default();
    }
    ends
}

/// A connection on which the peer says just this and ends: it ends too, and no tunnel of it ends cleanly
/// of which the peer did not say so.
pub fn frames(data: &[u8]) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let clean = runtime.block_on(async {
        let (mut near, far) = duplex(PREFACE.len() + data.len() + 1);
        near.write_all(PREFACE).await.expect("it fits");
        near.write_all(data).await.expect("it fits");
        near.shutdown().await.expect("it is open");
        let (mut near, mut unheard) = tokio::io::split(near);
        // Whatever is answered is taken.
        let hears = tokio::spawn(async move {
            let mut sink = tokio::io::sink();
            let _ = tokio::io::copy(&mut near, &mut sink).await;
        });
        let serves = async {
            let mut connection = server::handshake(far, &Config::default());
            let mut tunnels = tokio::task::JoinSet::new();
            while let Some(Ok(incoming)) = connection.accept().await {
                if let Ok(mut tunnel) = incoming.accept(None) {
                    tunnels.spawn(async move {
                        let _ = tunnel.write_all(b"hello").await;
                        let ended = tunnel.read_to_end(&mut Vec::new()).await;
                        let _ = tunnel.shutdown().await;
                        ended.is_ok()
                    });
                }
            }
            drop(connection);
            let ended = tunnels.join_all().await;
            ended.into_iter().filter(|clean| *clean).count()
        };
        let clean = timeout(PATIENCE, serves).await.expect("it ends");
        let _ = unheard.shutdown().await;
        hears.abort();
        clean
    });
    assert!(clean <= ends(data), "{clean} tunnels look complete");
}
