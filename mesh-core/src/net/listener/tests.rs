use std::collections::VecDeque;
#[cfg(unix)]
use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tracing_subscriber::fmt::MakeWriter;

use super::{Accept, Listener};
use crate::net::socket::TcpSettings;

const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

type Next = Box<dyn FnMut() -> Option<io::Result<u32>> + Send>;

/// Answers `accept` by a function; `None` is "nothing yet, ask in a second".
struct Script {
    next: Next,
    calls: Arc<Mutex<Vec<Instant>>>,
}

impl Accept for Script {
    type Io = u32;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<(u32, SocketAddr)>> {
        self.calls.lock().unwrap().push(Instant::now());
        match (self.next)() {
            Some(answer) => Poll::Ready(answer.map(|io| (io, PEER))),
            None => {
                wake_in_a_second(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn wake_in_a_second(waker: Waker) {
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        waker.wake();
    });
}

fn scripted(
    next: impl FnMut() -> Option<io::Result<u32>> + Send + 'static,
) -> (Listener<Script>, Arc<Mutex<Vec<Instant>>>) {
    let calls = Arc::default();
    let script = Script {
        next: Box::new(next),
        calls: Arc::clone(&calls),
    };
    (Listener::new(script), calls)
}

fn list(
    answers: impl IntoIterator<Item = io::Result<u32>>,
) -> impl FnMut() -> Option<io::Result<u32>> + Send {
    let mut answers: VecDeque<_> = answers.into_iter().collect();
    move || answers.pop_front()
}

/// The numbers that Linux gives, and one that nobody does.
const EPERM: i32 = 1;
const ENOMEM: i32 = 12;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const EPROTO: i32 = 71;
const ECONNABORTED: i32 = 103;
const ENOBUFS: i32 = 105;
const UNHEARD_OF: i32 = 9999;

const ALL: [i32; 8] = [
    EPERM,
    ENOMEM,
    ENFILE,
    EMFILE,
    EPROTO,
    ECONNABORTED,
    ENOBUFS,
    UNHEARD_OF,
];

#[tokio::test(start_paused = true)]
async fn no_error_ends_it_and_it_recovers_within_a_second() {
    for errno in ALL {
        for count in [1, 10, 1000] {
            let errors = (0..count).map(move |_| Err(io::Error::from_raw_os_error(errno)));
            let (mut listener, calls) = scripted(list(errors.chain([Ok(7)])));
            // Shedding takes the one connection there is for a waiting one, which is its work.
            if matches!(errno, EMFILE | ENFILE) {
                listener.reserve = None;
            }
            let (io, peer) = listener.accept().await;
            assert_eq!((io, peer), (7, PEER), "errno {errno}");
            let calls = calls.lock().unwrap();
            let last = calls[calls.len() - 1] - calls[calls.len() - 2];
            assert!(last <= Duration::from_secs(1), "{last:?}");
        }
    }
}

/// An hour of errors: two tries a second and one line a second.
#[tokio::test(start_paused = true)]
async fn errors_without_end_neither_spin_nor_fill_the_log() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(lines.clone())
        .without_time()
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for errno in ALL {
        lines.0.lock().unwrap().clear();
        let (mut listener, calls) =
            scripted(move || Some(Err(io::Error::from_raw_os_error(errno))));
        let hour = Duration::from_secs(3600);
        assert!(timeout(hour, listener.accept()).await.is_err());
        let calls = calls.lock().unwrap().len();
        // Shedding asks once more each time.
        assert!(calls <= 2 * (2 * 3600 + 100), "{calls} of errno {errno}");
        let lines = lines.0.lock().unwrap();
        let lines = lines.iter().filter(|byte| **byte == b'\n').count();
        assert!((3000..=3601).contains(&lines), "{lines} of errno {errno}");
    }
}

#[tokio::test(start_paused = true)]
async fn pauses_double_from_5_to_500_ms_and_begin_anew_after_a_connection() {
    let error = || Err(io::Error::from_raw_os_error(ENOBUFS));
    let answers = [error(), error(), error(), Ok(1), error(), Ok(2)];
    let (mut listener, calls) = scripted(list(answers));
    listener.accept().await;
    listener.accept().await;
    let calls = calls.lock().unwrap();
    let pauses: Vec<_> = calls
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_millis())
        .collect();
    assert_eq!(pauses, [5, 10, 20, 0, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_died_in_the_queue_costs_no_pause() {
    let begin = Instant::now();
    let aborted = || Err(ErrorKind::ConnectionAborted.into());
    let (mut listener, _) = scripted(list((0..50).map(move |_| aborted()).chain([Ok(7)])));
    assert_eq!(listener.accept().await.0, 7);
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[cfg(unix)]
#[tokio::test(start_paused = true)]
async fn connections_are_shed_while_descriptors_lack() {
    let mut queue = vec![3, 2, 1];
    let mut first = true;
    let (mut listener, _) = scripted(move || {
        if std::mem::take(&mut first) {
            return Some(Err(io::Error::from_raw_os_error(EMFILE)));
        }
        queue.pop().map(Ok)
    });
    assert!(
        timeout(Duration::from_secs(5), listener.accept())
            .await
            .is_err()
    );
    assert!(listener.reserve.is_some(), "it is taken back");
}

#[tokio::test(start_paused = true)]
async fn giving_up_a_wait_loses_nothing() {
    let error = || Err(io::Error::from_raw_os_error(ENOMEM));
    let (mut listener, calls) = scripted(list([error(), error(), error(), error(), Ok(7)]));
    while timeout(Duration::from_millis(1), listener.accept())
        .await
        .is_err()
    {}
    assert_eq!(calls.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn accepted_sockets_have_their_options_set() {
    let on = "127.0.0.1:0".parse().unwrap();
    let mut listener = Listener::bind(on, TcpSettings::default()).unwrap();
    let to = listener.local_addr().unwrap();
    let (dialled, (mut accepted, peer)) = tokio::join!(
        async { TcpSettings::default().connect(to).await.unwrap() },
        listener.accept()
    );
    let mut dialled = dialled;
    assert_eq!(peer, dialled.local_addr().unwrap());
    for stream in [&dialled, &accepted] {
        assert!(stream.nodelay().unwrap());
        let socket = socket2::SockRef::from(stream);
        assert!(socket.keepalive().unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(
                socket.tcp_keepalive_time().unwrap(),
                Duration::from_secs(180)
            );
            assert_eq!(
                socket.tcp_keepalive_interval().unwrap(),
                Duration::from_secs(180)
            );
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 9);
        }
    }
    dialled.write_all(b"hello").await.unwrap();
    let mut hello = [0; 5];
    accepted.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
}

/// R-14 with a real limit: a process that runs out of descriptors closes what it cannot take, and
/// takes connections again when it has some.
#[cfg(unix)]
#[test]
fn a_process_without_descriptors_sheds_and_recovers() {
    let child = Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "net::listener::tests::starved", "--ignored"])
        .args(["--nocapture", "--test-threads=1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = KillOnDrop(child);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| Some(line.unwrap().split_once("listening on ")?.1.to_owned()))
        .unwrap();
    let read = || {
        let mut stream = std::net::TcpStream::connect(&address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).map(|_| text)
    };
    for _ in 0..20 {
        match read() {
            Ok(text) => assert_eq!(text, "", "shed"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
        }
    }
    child.0.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert!(lines.any(|line| line.unwrap().contains("descriptors again")));
    assert_eq!(read().unwrap(), "welcome");
}

#[cfg(unix)]
struct KillOnDrop(Child);

#[cfg(unix)]
impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(unix)]
#[tokio::test]
#[ignore = "the other side of a_process_without_descriptors_sheds_and_recovers"]
#[allow(clippy::print_stdout, reason = "the parent reads it")]
async fn starved() {
    let on = "127.0.0.1:0".parse().unwrap();
    let mut listener = Listener::bind(on, TcpSettings::default()).unwrap();
    let mut hoard = Vec::new();
    while let Ok(file) = File::open("/dev/null") {
        assert!(hoard.len() < 64, "started by its parent only");
        hoard.push(file);
    }
    println!("listening on {}", listener.local_addr().unwrap());
    let mut signal = Box::pin(tokio::task::spawn_blocking(|| {
        io::stdin().read_line(&mut String::new()).unwrap()
    }));
    tokio::select! {
        _ = listener.accept() => panic!("there is no descriptor for a connection"),
        _ = &mut signal => {}
    }
    hoard.clear();
    println!("descriptors again");
    loop {
        let (mut stream, _) = listener.accept().await;
        stream.write_all(b"welcome").await.unwrap();
    }
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}
