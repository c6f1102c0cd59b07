//! Clients that begin handshakes and do not end them, from addresses that are not the newcomers'. What the server closes
//! is opened again, so many per second. On standard input: any line is answered by how many are open, and how often the
//! server has closed one.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_hbone::tls;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, duplex};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{interval, sleep};

use crate::args::{Silent, Stop, say};
use crate::certificates::identity;
use crate::echo::{ADMITTED, hbone};
use crate::{BoxError, Done, member};

struct Clients {
    hello: Vec<u8>,
    stop: Stop,
    sources: usize,
    open: AtomicUsize,
    closed: AtomicUsize,
    /// Begun at least once.
    begun: AtomicUsize,
    again: Semaphore,
}

pub(crate) async fn run(of: Silent) -> Done {
    let clients = Arc::new(Clients {
        hello: client_hello(&of).await?,
        stop: of.stop,
        sources: of.sources,
        open: AtomicUsize::new(0),
        closed: AtomicUsize::new(0),
        begun: AtomicUsize::new(0),
        again: Semaphore::new(0),
    });
    for index in 0..of.count {
        tokio::spawn(Arc::clone(&clients).stay(index));
        // As fast as the server's backlog takes them.
        if index % 64 == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
    while clients.begun.load(Ordering::Relaxed) < of.count {
        sleep(Duration::from_millis(20)).await;
    }
    let opens_again = Arc::clone(&clients);
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(20));
        loop {
            ticks.tick().await;
            let room = (of.again / 50) as usize;
            let spare = opens_again.again.available_permits();
            opens_again.again.add_permits(room.saturating_sub(spare));
        }
    });
    say("ready");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while lines.next_line().await?.is_some() {
        let open = clients.open.load(Ordering::Relaxed);
        say(&format!(
            "{open} {}",
            clients.closed.load(Ordering::Relaxed)
        ));
    }
    Ok(())
}

/// The first bytes of a client.
async fn client_hello(of: &Silent) -> Result<Vec<u8>, BoxError> {
    let credentials = member::credentials(&of.folder, ADMITTED)?;
    let expected = [identity("server").parse()?];
    let (near, mut far) = duplex(64 * 1024);
    let mut hello = vec![0; 64 * 1024];
    let count = tokio::select! {
        _ = tls::connect(near, &credentials, &expected) => return Err("somebody answered".into()),
        count = far.read(&mut hello) => count?,
    };
    hello.truncate(count);
    Ok(hello)
}

impl Clients {
    async fn stay(self: Arc<Self>, index: usize) {
        // 127.0.1.1 and following.
        let [high, low] = ((index % self.sources) as u16 + 257).to_be_bytes();
        let source = IpAddr::from(Ipv4Addr::new(127, 0, high, low));
        let mut first = true;
        loop {
            let stream = Self::connect(source).await;
            if std::mem::take(&mut first) {
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            if let Ok(stream) = stream {
                self.open.fetch_add(1, Ordering::Relaxed);
                let _ = self.hold(stream).await;
                self.open.fetch_sub(1, Ordering::Relaxed);
                self.closed.fetch_add(1, Ordering::Relaxed);
            }
            match self.again.acquire().await {
                Ok(permit) => permit.forget(),
                Err(_) => return,
            }
        }
    }

    async fn connect(source: IpAddr) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        socket.connect(hbone()).await
    }

    /// Until the server closes.
    async fn hold(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut answer = [0; 4096];
        match self.stop {
            Stop::Nothing => {}
            Stop::Hello => stream.write_all(&self.hello).await?,
            Stop::Half => {
                let (half, rest) = self.hello.split_at(self.hello.len() / 2);
                stream.write_all(half).await?;
                for byte in &rest[..rest.len() - 1] {
                    tokio::select! {
                        _ = stream.read(&mut answer) => return Ok(()),
                        () = sleep(Duration::from_secs(1)) => {}
                    }
                    stream.write_all(&[*byte]).await?;
                }
            }
        }
        while stream.read(&mut answer).await? > 0 {}
        Ok(())
    }
}
