use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use mesh_hbone::ErrorKind;
use mesh_hbone::tls::{Admission, AdmissionLimits, Credentials, accept_with, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::task::{JoinHandle, yield_now};

use crate::authority::{Authority, CLIENT, SERVER, Shaken, id};

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, last).into()
}

/// A server's end that runs by itself, and the transport to it.
fn incoming(
    server: &Credentials,
    admission: &Admission,
    source: IpAddr,
) -> (DuplexStream, JoinHandle<Shaken>) {
    let (near, far) = duplex(64 * 1024);
    let (server, admission) = (server.clone(), admission.clone());
    let task = tokio::spawn(async move { accept_with(far, source, &server, &admission).await });
    (near, task)
}

/// Lets every task run until it waits; time stands still.
async fn settle() {
    for _ in 0..10_000 {
        yield_now().await;
    }
}

fn kind(shaken: Shaken) -> ErrorKind {
    shaken.unwrap_err().kind()
}

/// The first bytes of a client.
pub(crate) async fn client_hello(client: &Credentials) -> Vec<u8> {
    let (near, mut far) = duplex(64 * 1024);
    let expected = [id(SERVER)];
    let mut hello = vec![0; 64 * 1024];
    let count = tokio::select! {
        _ = connect(near, client, &expected) => unreachable!("nobody answers"),
        count = far.read(&mut hello) => count.unwrap(),
    };
    hello.truncate(count);
    hello
}

/// sockets that say nothing.
#[tokio::test(start_paused = true)]
async fn silent_sockets_lock_nobody_out() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let limits = AdmissionLimits::default()
        .listener_handshakes(1)
        .handshakes(1)
        .waiting(8);
    let admission = Admission::new(limits);
    // Twice what may wait, silent or a byte short of a hello.
    let hello = client_hello(&client).await;
    let mut silent = Vec::new();
    for index in 0..16 {
        let (mut near, task) = incoming(&server, &admission, ip(1));
        if index % 2 == 0 {
            near.write_all(&hello[..hello.len() - 1]).await.unwrap();
        }
        settle().await;
        silent.push((near, task));
    }
    assert_eq!(
        (
            admission.waiting(),
            admission.handshakes(),
            admission.evicted()
        ),
        (8, 0, 8)
    );
    let (near, task) = incoming(&server, &admission, ip(2));
    connect(near, &client, &[id(SERVER)]).await.unwrap();
    let stream = task.await.unwrap().unwrap();
    assert_eq!(stream.peer().identity(), &id(CLIENT));

    // The oldest went, the youngest still wait, until their time is over.
    let mut ends = Vec::new();
    for (near, task) in silent {
        ends.push(kind(task.await.unwrap()));
        drop(near);
    }
    assert_eq!(ends[..9], [ErrorKind::Overloaded; 9]);
    assert_eq!(ends[9..], [ErrorKind::Timeout; 7]);
    assert_eq!((admission.waiting(), admission.handshakes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn the_quiet_source_stays_when_the_busy_one_overflows() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let admission = Admission::new(AdmissionLimits::default().waiting(4));
    let (_quiet_io, quiet) = incoming(&server, &admission, ip(1));
    settle().await;
    let mut busy = Vec::new();
    for _ in 0..8 {
        busy.push(incoming(&server, &admission, ip(2)));
        settle().await;
    }
    assert_eq!(admission.waiting(), 4);
    assert!(!quiet.is_finished());
    let finished: Vec<_> = busy.iter().map(|(_, task)| task.is_finished()).collect();
    assert_eq!(
        finished,
        [true, true, true, true, true, false, false, false]
    );
    assert_eq!(kind(quiet.await.unwrap()), ErrorKind::Timeout);
}

#[tokio::test(start_paused = true)]
async fn handshakes_beyond_the_bounds_wait_for_a_slot() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let limits = AdmissionLimits::default()
        .listener_handshakes(2)
        .handshakes(3);
    let first = Admission::new(limits);
    let second = first.listener();
    let hello = client_hello(&client).await;
    // Twice each bound, with a whole hello and nothing after it.
    let mut stalled = Vec::new();
    for index in 0..4 {
        let (mut near, task) = incoming(&server, &first, ip(index));
        near.write_all(&hello).await.unwrap();
        stalled.push((near, task));
    }
    settle().await;
    assert_eq!((first.handshakes(), first.waiting()), (2, 2));
    for index in 4..6 {
        let (mut near, task) = incoming(&server, &second, ip(index));
        near.write_all(&hello).await.unwrap();
        stalled.push((near, task));
    }
    settle().await;
    assert_eq!((second.handshakes(), second.waiting()), (3, 3));

    // One more, which is served as soon as the stalled ones' time is over.
    tokio::time::advance(Duration::from_secs(5)).await;
    let (near, task) = incoming(&server, &first, ip(9));
    let connected = connect(near, &client, &[id(SERVER)]).await;
    connected.unwrap();
    task.await.unwrap().unwrap();
    for (near, task) in stalled {
        assert_eq!(kind(task.await.unwrap()), ErrorKind::Timeout);
        drop(near);
    }
    assert_eq!((first.handshakes(), first.waiting()), (0, 0));
}

/// one address says a whole hello and nothing more, and its next ones queue; others have the slots that it
/// does not get, until some of them stall too.
#[tokio::test(start_paused = true)]
async fn stalled_handshakes_of_one_address_lock_no_other_out() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let hello = client_hello(&client).await;
    let grace = Duration::from_millis(400);
    // Full by the listener's bound, and by that of all.
    for (of_listener, of_all) in [(8, 100), (100, 8)] {
        let limits = AdmissionLimits::default()
            .listener_handshakes(of_listener)
            .handshakes(of_all)
            .handshake_grace(grace);
        let admission = Admission::new(limits);
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let (mut near, task) = incoming(&server, &admission, ip(1));
            near.write_all(&hello).await.unwrap();
            stalled.push((near, task));
        }
        settle().await;
        assert_eq!((admission.handshakes(), admission.waiting()), (6, 34));
        let began = tokio::time::Instant::now();
        let (near, task) = incoming(&server, &admission, ip(9));
        connect(near, &client, &[id(SERVER)]).await.unwrap();
        task.await.unwrap().unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "it waits for nobody");

        let mut kept = Vec::new();
        for source in 7..9 {
            let (mut near, task) = incoming(&server, &admission, ip(source));
            near.write_all(&hello).await.unwrap();
            kept.push((near, task));
        }
        settle().await;
        assert_eq!((admission.handshakes(), admission.waiting()), (8, 34));
        let mut others = Vec::new();
        for source in 2..6 {
            let (near, task) = incoming(&server, &admission, ip(source));
            let client = client.clone();
            let connects = tokio::spawn(async move { connect(near, &client, &[id(SERVER)]).await });
            others.push((connects, task));
        }
        for (connects, task) in others {
            connects.await.unwrap().unwrap();
            task.await.unwrap().unwrap();
        }
        assert!(began.elapsed() <= grace, "{:?}", began.elapsed());
        // No more than had to, and the oldest first.
        settle().await;
        assert_eq!(admission.evicted(), 4);
        let mut ends = Vec::new();
        for (near, task) in stalled.into_iter().chain(kept) {
            ends.push(kind(task.await.unwrap()));
            drop(near);
        }
        assert_eq!(ends[..4], [ErrorKind::Overloaded; 4]);
        assert_eq!(ends[4..], [ErrorKind::Timeout; 38]);
        assert_eq!((admission.handshakes(), admission.waiting()), (0, 0));
    }
}

/// A host has as many IPv6 addresses as it likes, of one network.
#[tokio::test(start_paused = true)]
async fn addresses_of_one_ipv6_network_are_one_source() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let hello = client_hello(&client).await;
    let admission = Admission::new(AdmissionLimits::default().listener_handshakes(8));
    let of = |network, host| IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, network, 0, 0, 0, host));
    let mut stalled = Vec::new();
    for host in 1..=40 {
        let (mut near, task) = incoming(&server, &admission, of(1, host));
        near.write_all(&hello).await.unwrap();
        stalled.push((near, task));
    }
    settle().await;
    assert_eq!((admission.handshakes(), admission.waiting()), (6, 34));
    let began = tokio::time::Instant::now();
    let (near, task) = incoming(&server, &admission, of(2, 1));
    connect(near, &client, &[id(SERVER)]).await.unwrap();
    task.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO, "it waits for nobody");
}

#[tokio::test]
async fn a_hello_in_records_of_one_byte_is_a_hello() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let admission = Admission::default();
    let (mut near, task) = incoming(&server, &admission, ip(1));
    let (io, mut middle) = duplex(64 * 1024);
    let connecting = tokio::spawn(async move { connect(io, &client, &[id(SERVER)]).await });
    let mut header = [0; 5];
    middle.read_exact(&mut header).await.unwrap();
    let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
    for _ in 0..length {
        let byte = middle.read_u8().await.unwrap();
        for byte in [22, 3, 1, 0, 1, byte] {
            near.write_all(&[byte]).await.unwrap();
            yield_now().await;
        }
    }
    let relay = tokio::spawn(async move {
        let _ = tokio::io::copy_bidirectional(&mut near, &mut middle).await;
    });
    connecting.await.unwrap().unwrap();
    task.await.unwrap().unwrap();
    relay.abort();
}

/// The largest hello we send must fit the default, by some room for other implementations.
#[tokio::test]
async fn our_hello_fits_the_default_bound() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let hello = client_hello(&client).await;
    if cfg!(feature = "aws-lc-rs") {
        // It does hold a post-quantum key share.
        assert!(hello.len() > 1216, "{}", hello.len());
    }
    assert!(hello.len() < 1700, "{}", hello.len());

    for (limit, fits) in [(hello.len() - 5, true), (hello.len() - 6, false)] {
        let admission = Admission::new(AdmissionLimits::default().client_hello(limit));
        let (mut near, task) = incoming(&server, &admission, ip(1));
        if fits {
            connect(near, &client, &[id(SERVER)]).await.unwrap();
            task.await.unwrap().unwrap();
        } else {
            near.write_all(&hello).await.unwrap();
            assert_eq!(kind(task.await.unwrap()), ErrorKind::ClientHelloTooLarge);
            let mut alert = [0; 7];
            near.read_exact(&mut alert).await.unwrap();
            assert_eq!(alert[0], 21);
        }
    }
}

#[tokio::test]
async fn what_is_no_tls_is_refused_at_its_first_byte() {
    let server = Authority::root("root").credentials(SERVER);
    let admission = Admission::default();
    let (mut near, task) = incoming(&server, &admission, ip(1));
    near.write_all(b"P").await.unwrap();
    assert_eq!(kind(task.await.unwrap()), ErrorKind::NotTls);
    let (near, task) = incoming(&server, &admission, ip(1));
    drop(near);
    assert_eq!(kind(task.await.unwrap()), ErrorKind::Truncated);
    assert_eq!(admission.waiting(), 0);
}

#[tokio::test]
async fn a_dropped_accept_gives_its_place_back() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let admission = Admission::default();
    let (_near, task) = incoming(&server, &admission, ip(1));
    let hello = client_hello(&root.credentials(CLIENT)).await;
    let (mut stalled_io, stalled) = incoming(&server, &admission, ip(1));
    stalled_io.write_all(&hello).await.unwrap();
    settle().await;
    assert_eq!((admission.waiting(), admission.handshakes()), (1, 1));
    task.abort();
    stalled.abort();
    assert!(task.await.is_err() && stalled.await.is_err());
    assert_eq!((admission.waiting(), admission.handshakes()), (0, 0));
}
