use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::tls::{Credentials, Options, TlsStream, accept, connect, connect_unflushed};
use mesh_hbone::{DeferredFlush, Error, ErrorKind, Side, client, server};
use proptest::prelude::*;
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf, duplex,
};
use tokio_rustls::TlsAcceptor;

use crate::authority::{Authority, CLIENT, SERVER, id, pair, provider};
use crate::foreign;
use crate::peers::request;

/// Counts what reaches the transport, and in how many writes of any number of slices, and the reads that
/// found something.
struct Counted {
    io: DuplexStream,
    bytes: Arc<AtomicUsize>,
    writes: Arc<AtomicUsize>,
    reads: Arc<AtomicUsize>,
}

impl Counted {
    fn new(io: DuplexStream) -> Self {
        Self {
            io,
            bytes: Arc::default(),
            writes: Arc::default(),
            reads: Arc::default(),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.reads.fetch_add(usize::from(read.is_ready()), Relaxed);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Relaxed);
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        let written = Pin::new(&mut self.io).poll_write(cx, &bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.bytes.fetch_add(count, Relaxed);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A client whose writes are counted, from zero, and its server.
async fn counted() -> (
    TlsStream<Counted>,
    TlsStream<DuplexStream>,
    Arc<AtomicUsize>,
) {
    counted_with(Options::default()).await
}

async fn counted_with(
    options: Options,
) -> (
    TlsStream<Counted>,
    TlsStream<DuplexStream>,
    Arc<AtomicUsize>,
) {
    let root = Authority::root("root");
    let client = root.credentials_with(CLIENT, options);
    let server = root.credentials(SERVER);
    let (io, far) = duplex(4 * 1024 * 1024);
    let near = Counted::new(io);
    let bytes = Arc::clone(&near.bytes);
    let expected = [id(SERVER)];
    let (near, far) = tokio::join!(connect(near, &client, &expected), accept(far, &server));
    bytes.store(0, Relaxed);
    (near.unwrap(), far.unwrap(), bytes)
}

fn defer<IO: DeferredFlush + Unpin>(io: &mut IO) {
    Pin::new(io).defer_flushes();
}

async fn flush_now<IO: DeferredFlush + Unpin>(io: &mut IO) {
    poll_fn(|cx| Pin::new(&mut *io).poll_flush_now(cx))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_flush_writes_at_once_unless_it_is_deferred() {
    let (mut near, mut far, bytes) = counted().await;
    near.write_all(b"one").await.unwrap();
    assert_eq!(bytes.load(Relaxed), 0);
    near.flush().await.unwrap();
    let first = bytes.load(Relaxed);
    assert!(first > 3);

    defer(&mut near);
    near.write_all(b"two").await.unwrap();
    near.flush().await.unwrap();
    assert_eq!(bytes.load(Relaxed), first);
    flush_now(&mut near).await;
    assert_eq!(bytes.load(Relaxed), 2 * first);
    let mut text = [0; 6];
    far.read_exact(&mut text).await.unwrap();
    assert_eq!(&text, b"onetwo");
}

#[tokio::test]
async fn a_deferred_flush_writes_from_384_kib() {
    let (mut near, _far, bytes) = counted().await;
    defer(&mut near);
    let frame = [7; 16_384];
    for _ in 0..23 {
        near.write_all(&frame).await.unwrap();
        near.flush().await.unwrap();
    }
    assert_eq!(bytes.load(Relaxed), 0);
    near.write_all(&frame).await.unwrap();
    near.flush().await.unwrap();
    // 24 full records of 22 bytes more each: no small ones between them.
    assert_eq!(bytes.load(Relaxed), 24 * (16_384 + 22));
}

#[tokio::test]
async fn a_deferred_flush_writes_from_where_it_was_set() {
    for records in [1, 3] {
        let options = Options::default().flush_at(records * (16_384 + 22));
        let (mut near, _far, bytes) = counted_with(options).await;
        defer(&mut near);
        let mut sent = 0;
        while bytes.load(Relaxed) == 0 {
            near.write_all(&[7; 16_384]).await.unwrap();
            near.flush().await.unwrap();
            sent += 1;
        }
        assert_eq!(sent, records);
        assert_eq!(bytes.load(Relaxed), records * (16_384 + 22));
    }
    let root = Authority::root("root");
    for wrong in [0, 512 * 1024 + 1] {
        let bundle = root.leaf(CLIENT).bundle(&[&root]).unwrap();
        let options = Options::default().flush_at(wrong);
        let error = Credentials::new(provider(), bundle, options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidSettings);
    }
}

#[tokio::test]
async fn a_write_takes_no_more_than_the_send_buffer_that_is_set() {
    for records in [1, 2] {
        let bytes = records * 16_384;
        let options = Options::default().flush_at(bytes).send_buffer(bytes);
        let (mut near, _far, _) = counted_with(options).await;
        assert_eq!(near.write(&[7; 512 * 1024]).await.unwrap(), bytes);
    }
    let root = Authority::root("root");
    let bundle = root.leaf(CLIENT).bundle(&[&root]).unwrap();
    let less = Options::default().flush_at(1).send_buffer(16_383);
    let error = Credentials::new(provider(), bundle, less).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidSettings);
}

#[tokio::test]
async fn an_unflushed_handshake_ends_with_what_is_said_first() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let expected = [id(SERVER)];
    for waits in [false, true] {
        let (near, far) = duplex(64 * 1024);
        let mut cx = Context::from_waker(Waker::noop());
        let mut accepting = pin!(accept(far, &server));
        let mut connecting = pin!(connect_unflushed(near, &client, &expected));
        let mut near = loop {
            assert!(accepting.as_mut().poll(&mut cx).is_pending());
            if let Poll::Ready(near) = connecting.as_mut().poll(&mut cx) {
                break near.unwrap();
            }
        };
        assert!(
            accepting.as_mut().poll(&mut cx).is_pending(),
            "the last flight has not left"
        );
        let mut answer = [0; 4];
        if waits {
            let reading = pin!(near.read_exact(&mut answer));
            assert!(reading.poll(&mut cx).is_pending());
        } else {
            near.write_all(b"said").await.unwrap();
            near.flush().await.unwrap();
        }
        let Poll::Ready(far) = accepting.as_mut().poll(&mut cx) else {
            panic!("the last flight is here")
        };
        if !waits {
            far.unwrap().read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"said");
        }
    }
}

#[tokio::test]
async fn a_new_connection_costs_its_client_three_writes_up_to_its_first_request() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (io, far) = duplex(64 * 1024);
    let near = Counted::new(io);
    let count = Arc::clone(&near.writes);
    let serving = tokio::spawn(async move {
        let mut connection = server::handshake(accept(far, &server).await?, &Config::default());
        let mut tunnels = Vec::new();
        while let Some(incoming) = connection.accept().await {
            tunnels.push(incoming?.accept(None)?);
        }
        Ok::<_, Error>(())
    });
    let expected = [id(SERVER)];
    let tls = connect_unflushed(near, &client, &expected).await.unwrap();
    assert_eq!(count.load(Relaxed), 1, "the hello");
    let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    assert_eq!(count.load(Relaxed), 2, "finished, preface and SETTINGS");
    tokio::spawn(connection);
    let opened = sender.connect(request("10.0.0.7:80")).await.unwrap();
    assert_eq!(
        count.load(Relaxed),
        3,
        "the answer to SETTINGS, and CONNECT"
    );
    drop((opened, sender));
    serving.await.unwrap().unwrap();
}

/// Over a transport that takes and gives all at once: what a kernel cuts comes on top.
#[tokio::test]
async fn a_bulk_stream_costs_a_write_and_a_read_for_24_records() {
    const BLOCK: usize = 64 << 10;
    const BLOCKS: usize = 256;
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, far) = duplex(4 << 20);
    let (near, far) = (Counted::new(near), Counted::new(far));
    let (writes, reads) = (Arc::clone(&near.writes), Arc::clone(&far.reads));
    let answers = Arc::clone(&far.writes);
    let serving = tokio::spawn(async move {
        let mut connection = server::handshake(accept(far, &server).await?, &Config::default());
        while let Some(incoming) = connection.accept().await {
            let mut tunnel = incoming?.accept(None)?;
            tokio::spawn(async move {
                let mut block = vec![0; BLOCK];
                while tunnel.read(&mut block).await.unwrap() > 0 {}
                tunnel.shutdown().await.unwrap();
            });
        }
        Ok::<_, Error>(())
    });
    let tls = connect_unflushed(near, &client, &[id(SERVER)])
        .await
        .unwrap();
    let (connection, sender) = client::handshake(tls, &Config::default()).await.unwrap();
    tokio::spawn(connection);
    let (mut tunnel, _) = sender.connect(request("10.0.0.7:80")).await.unwrap();
    for _ in 0..BLOCKS {
        tunnel.write_all(&[7; BLOCK]).await.unwrap();
    }
    tunnel.shutdown().await.unwrap();
    assert_eq!(tunnel.read(&mut [0]).await.unwrap(), 0);
    let counts = [&writes, &reads, &answers].map(|count| count.load(Relaxed));
    // Those that a window cuts, and those of the connection's and the stream's beginning and end, are few.
    let lumps = BLOCKS * BLOCK / (24 * 16_375);
    assert!(counts[0] <= lumps * 5 / 4 + 10, "{counts:?}");
    assert!(counts[1] <= lumps * 5 / 4 + 10, "{counts:?}");
    // A window of 1 MiB is given again by halves, the connection's beside it.
    assert!(counts[2] <= BLOCKS * BLOCK / (1 << 18) + 10, "{counts:?}");
    drop((tunnel, sender));
    serving.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_reader_that_waits_sends_what_was_deferred() {
    let (mut near, mut far, _) = counted().await;
    defer(&mut near);
    let answer = tokio::spawn(async move {
        let mut question = [0; 8];
        far.read_exact(&mut question).await.unwrap();
        far.write_all(&question).await.unwrap();
        far.flush().await.unwrap();
        far
    });
    near.write_all(b"question").await.unwrap();
    near.flush().await.unwrap();
    let mut bytes = [0; 8];
    near.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"question");
    drop(answer.await.unwrap());
}

#[tokio::test]
async fn a_full_queue_makes_writers_wait() {
    let (mut near, mut far) = pair().await;
    let mut cx = Context::from_waker(Waker::noop());
    let chunk = [1; 50_000];
    let mut accepted = 0;
    while let Poll::Ready(count) = Pin::new(&mut near).poll_write(&mut cx, &chunk) {
        accepted += count.unwrap();
    }
    // What waits is from 384 KiB to one chunk more, beside 64 KiB in the transport.
    let least = (384 + 64) * 1024 - 1024;
    assert!((least..least + 51_024).contains(&accepted), "{accepted}");

    let reader = tokio::spawn(async move {
        let mut bytes = vec![0; accepted + 50_000];
        far.read_exact(&mut bytes).await.unwrap();
        bytes
    });
    near.write_all(&chunk).await.unwrap();
    near.flush().await.unwrap();
    assert!(reader.await.unwrap().iter().all(|byte| *byte == 1));
}

#[tokio::test]
async fn one_vectored_write_fills_one_record() {
    let (mut near, mut far, bytes) = counted().await;
    assert!(near.is_write_vectored());
    let (head, body) = ([1; 9], [2; 16_375]);
    let slices = [IoSlice::new(&head), IoSlice::new(&body)];
    assert_eq!(near.write_vectored(&slices).await.unwrap(), 16_384);
    near.flush().await.unwrap();
    assert_eq!(bytes.load(Relaxed), 16_384 + 22);
    let mut read = vec![0; 16_384];
    far.read_exact(&mut read).await.unwrap();
    assert!(read[..9] == head && read[9..] == body);

    // More than fits is taken in part, in order.
    let many = vec![3; 600_000];
    let slices = [
        IoSlice::new(&head),
        IoSlice::new(&many),
        IoSlice::new(&body),
    ];
    let count = near.write_vectored(&slices).await.unwrap();
    assert_eq!(count, 512 * 1024);
    near.flush().await.unwrap();
    let mut read = vec![0; count];
    far.read_exact(&mut read).await.unwrap();
    assert!(read[..9] == head && read[9..] == many[..count - 9]);
}

#[tokio::test]
async fn an_end_without_close_notify_is_no_end() {
    let (mut near, mut far) = pair().await;
    far.write_all(b"part").await.unwrap();
    far.flush().await.unwrap();
    drop(far);
    let mut text = Vec::new();
    let error = near.read_to_end(&mut text).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = error.downcast::<Error>().unwrap();
    assert_eq!(
        (error.kind(), error.side()),
        (ErrorKind::Truncated, Side::Upstream)
    );
    assert!(!error.is_retry_safe());
    assert_eq!(text, b"part");
    // It stays no end.
    assert!(near.read_u8().await.is_err());

    let (mut near, mut far) = pair().await;
    far.write_all(b"whole").await.unwrap();
    far.shutdown().await.unwrap();
    drop(far);
    let mut text = Vec::new();
    near.read_to_end(&mut text).await.unwrap();
    assert_eq!(text, b"whole");
}

#[tokio::test]
async fn either_end_closes_for_itself() {
    let (mut near, mut far) = pair().await;
    near.write_all(b"request").await.unwrap();
    near.shutdown().await.unwrap();
    let error = near.write_all(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let mut text = String::new();
    far.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "request");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "answer");
}

#[tokio::test]
async fn a_forged_record_ends_the_session_with_an_alert_while_only_reading() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, mut middle) = duplex(64 * 1024);
    let (mut other, far) = duplex(64 * 1024);
    let expected = [id(SERVER)];
    let relay = async {
        // Until the handshake is over and one byte was echoed.
        let _ = tokio::io::copy_bidirectional(&mut middle, &mut other).await;
    };
    let ends = async {
        let (near, far) = tokio::join!(connect(near, &client, &expected), accept(far, &server));
        let (mut near, mut far) = (near.unwrap(), far.unwrap());
        near.write_u8(1).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), 1);
        (near, far)
    };
    let (mut near, _far) = tokio::select! {
        () = relay => unreachable!("the ends are alive"),
        ends = ends => ends,
    };
    middle.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
    middle.write_all(&[0; 20]).await.unwrap();
    let error = near.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut alert = [0; 3];
    middle.read_exact(&mut alert).await.unwrap();
    // An encrypted record left, without any write or flush of ours.
    assert_eq!(alert, [23, 3, 3]);
}

#[tokio::test]
async fn keys_change_under_way() {
    let root = Authority::root("root");
    let client = root.credentials(CLIENT);
    let acceptor = TlsAcceptor::from(Arc::new(foreign::server(&root.leaf(SERVER))));
    let (near, far) = duplex(64 * 1024);
    let expected = [id(SERVER)];
    let (near, far) = tokio::join!(connect(near, &client, &expected), acceptor.accept(far));
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    for round in 0..5 {
        far.get_mut().1.refresh_traffic_keys().unwrap();
        far.write_u8(round).await.unwrap();
        far.flush().await.unwrap();
        assert_eq!(near.read_u8().await.unwrap(), round);
        near.write_u8(round).await.unwrap();
        near.flush().await.unwrap();
        assert_eq!(far.read_u8().await.unwrap(), round);
    }
}

#[tokio::test]
async fn halves_in_two_tasks_do_not_take_each_others_wake_ups() {
    const TOTAL: usize = 3 * 1024 * 1024;
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let (near, far) = duplex(1500);
    let expected = [id(SERVER)];
    let (near, far) = tokio::join!(connect(near, &client, &expected), accept(far, &server));
    let mut tasks = Vec::new();
    for stream in [near.unwrap(), far.unwrap()] {
        let (mut reader, mut writer) = tokio::io::split(stream);
        tasks.push(tokio::spawn(async move {
            for chunk in vec![5; TOTAL].chunks(70_001) {
                writer.write_all(chunk).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        }));
        tasks.push(tokio::spawn(async move {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).await.unwrap();
            assert_eq!(bytes.len(), TOTAL);
        }));
    }
    for task in tasks {
        // A wake-up that was lost would be waited for without end.
        let done = tokio::time::timeout(Duration::from_secs(60), task).await;
        done.expect("a wake-up was lost").unwrap();
    }
}

#[derive(Debug, Clone)]
struct Traffic {
    transport: usize,
    read_buffer: usize,
    deferred: bool,
    writes: Vec<usize>,
    reads: Vec<usize>,
}

fn traffic() -> impl Strategy<Value = Traffic> {
    (
        1..40_000_usize,
        1..40_000_usize,
        any::<bool>(),
        proptest::collection::vec(1..90_000_usize, 1..12),
        proptest::collection::vec(1..90_000_usize, 1..12),
    )
        .prop_map(
            |(transport, read_buffer, deferred, writes, reads)| Traffic {
                // Small ones are the interesting ones.
                transport: transport.min(1 + transport % 300),
                read_buffer,
                deferred,
                writes,
                reads,
            },
        )
}

proptest! {
    // 48 where others try 256, and as much less of `PROPTEST_CASES`: each case is a handshake and its traffic.
    #![proptest_config(ProptestConfig::with_cases((48 * ProptestConfig::default().cases).div_ceil(256)))]

    #[test]
    fn bytes_in_are_bytes_out(traffic in traffic()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let root = Authority::root("root");
            let options = || Options::default().read_buffer(traffic.read_buffer);
            let client = root.credentials_with(CLIENT, options());
            let server = root.credentials_with(SERVER, options());
            let (near, far) = duplex(traffic.transport);
            let expected = [id(SERVER)];
            let (near, far) = tokio::join!(connect(near, &client, &expected), accept(far, &server));
            let (mut near, mut far) = (near.unwrap(), far.unwrap());
            if traffic.deferred {
                defer(&mut near);
            }
            let total: usize = traffic.writes.iter().sum();
            let sent: Vec<u8> = (0..total).map(|index| (index * 31 / 7) as u8).collect();
            let write = async {
                let mut rest = &sent[..];
                for size in &traffic.writes {
                    let (chunk, after) = rest.split_at(*size);
                    near.write_all(chunk).await.unwrap();
                    near.flush().await.unwrap();
                    rest = after;
                }
                near.shutdown().await.unwrap();
            };
            let read = async {
                let mut received = Vec::new();
                for size in traffic.reads.iter().cycle() {
                    let mut bytes = vec![0; *size];
                    let count = far.read(&mut bytes).await.unwrap();
                    if count == 0 {
                        break;
                    }
                    received.extend_from_slice(&bytes[..count]);
                }
                received
            };
            let ((), received) = tokio::join!(write, read);
            assert!(received == sent);
        });
    }
}
