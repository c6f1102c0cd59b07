//! What connections leave behind that had something to read and are idle again.

use std::pin::Pin;
use std::task::{Context, Waker};

use mesh_hbone::tls::{Options, accept, connect};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf, duplex};
use tokio::runtime::Builder;

use crate::authority::{Authority, CLIENT, SERVER, id};
use crate::counting;

/// One full record.
const BUFFER: usize = 16_645;
const CONNECTIONS: usize = 6;

/// Bytes held for connections to come, once [`CONNECTIONS`] were all half read at once and have ended idle.
fn held(spare: usize) -> isize {
    let runtime = Builder::new_current_thread().enable_time().build().unwrap();
    let root = Authority::root("root");
    let options = |spare| {
        let options = Options::default().read_buffer(BUFFER);
        options.spare_read_buffers(spare)
    };
    let client = root.credentials_with(CLIENT, options(0));
    let server = root.credentials_with(SERVER, options(spare));
    let expected = [id(SERVER)];
    runtime.block_on(async {
        let mut pairs = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let (near, far) = duplex(64 * 1024);
            let (near, far) = tokio::join!(connect(near, &client, &expected), accept(far, &server));
            pairs.push((near.unwrap(), far.unwrap()));
        }
        for (near, far) in &mut pairs {
            near.write_all(&[1; 10_000]).await.unwrap();
            near.flush().await.unwrap();
            far.read_u8().await.unwrap();
        }
        for (_, far) in &mut pairs {
            far.read_exact(&mut [0; 9_999]).await.unwrap();
            let mut byte = [0; 1];
            let mut nothing = ReadBuf::new(&mut byte);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(far).poll_read(&mut cx, &mut nothing).is_pending());
        }
        drop(pairs);
        // They are kept as long as the credentials are.
        let held = counting::idle();
        drop((client, server));
        held - counting::idle()
    })
}

#[test]
fn no_more_read_buffers_are_kept_than_set() {
    let none = held(0);
    for (spare, kept) in [(1, 1), (4, 4), (100, CONNECTIONS)] {
        let more = held(spare) - none;
        let least = (kept * BUFFER) as isize;
        assert!(
            (least..least + 4096).contains(&more),
            "{spare}: {more} bytes"
        );
    }
}
