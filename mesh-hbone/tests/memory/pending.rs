//! What a handshake holds that goes no further.

use std::io::Write as _;
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use mesh_hbone::tls::{Admission, accept_with};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::authority::{Authority, SERVER, client_hello};
use crate::counting;

/// Fewer than one address may have under way.
const PENDING: usize = 150;

/// Bytes that each of many holds whose client stops after so many halves of its first words.
fn each(halves: usize) -> isize {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = Authority::root("root");
        let credentials = Arc::new(root.credentials(SERVER));
        let admission = Admission::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hello = client_hello(&root).await;
        let said = &hello[..hello.len() * halves / 2];
        let mut pairs = Vec::new();
        // One more: what the first of them leaves behind is for all.
        for _ in 0..=PENDING {
            let near = TcpStream::connect(address).unwrap();
            pairs.push((near, listener.accept().await.unwrap().0));
        }
        let (mut clients, mut pending) = (Vec::with_capacity(PENDING + 1), JoinSet::new());
        let mut before = 0;
        for (mut near, far) in pairs {
            let (credentials, admission) = (Arc::clone(&credentials), admission.clone());
            pending.spawn(async move {
                let source = far.peer_addr().unwrap().ip();
                let accepted = accept_with(far, source, &credentials, &admission).await;
                accepted.map(drop)
            });
            near.write_all(said).unwrap();
            clients.push(near);
            if clients.len() == 1 {
                sleep(Duration::from_millis(100)).await;
                before = counting::idle();
            }
        }
        sleep(Duration::from_millis(500)).await;
        let held = counting::idle() - before;
        assert!(pending.try_join_next().is_none(), "one has ended");
        // All have come as far as they should.
        let counts = (admission.waiting(), admission.handshakes());
        let all = PENDING + 1;
        assert_eq!(counts, if halves < 2 { (all, 0) } else { (0, all) });
        held / PENDING as isize
    })
}

/// Those that have not said all of their hello may be 4 096, those that have 256 for each listener: what they hold
/// is for the most part rustls' state.
#[test]
#[expect(clippy::print_stdout, reason = "the figures are what the test is for")]
fn a_handshake_that_goes_no_further_holds_little() {
    for (what, halves, most) in [
        ("nothing", 0, 3 << 10),
        ("half a hello", 1, 4 << 10),
        ("a hello", 2, 12 << 10),
    ] {
        let each = each(halves);
        println!("{what}: {each} bytes held");
        assert!(each <= most, "{what}: {each} bytes, at most {most}");
    }
}
