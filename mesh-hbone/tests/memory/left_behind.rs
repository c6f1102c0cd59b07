//! What connections leave behind that have come and gone.

use mesh_hbone::client::{self, ConnectRequest};
use mesh_hbone::config::Config;
use mesh_hbone::headers::ConnectHeaders;
use mesh_hbone::server;
use mesh_hbone::tls::{Credentials, accept, connect};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::runtime::Builder;

use crate::authority::{Authority, CLIENT, SERVER, id};
use crate::counting;

/// One connection with one tunnel and a byte each way on it.
async fn come_and_go(client: &Credentials, server: &Credentials) {
    let (near, far) = duplex(64 * 1024);
    let serve = async {
        let tls = accept(far, server).await.unwrap();
        let mut connection = server::handshake(tls, &Config::default());
        let mut tunnel = None;
        while let Some(incoming) = connection.accept().await {
            let Ok(incoming) = incoming else { break };
            let mut accepted = incoming.accept(None).unwrap();
            tunnel = Some(tokio::spawn(async move {
                let byte = accepted.read_u8().await.unwrap();
                accepted.write_u8(byte).await.unwrap();
                accepted.flush().await.unwrap();
                accepted.shutdown().await.unwrap();
                let _ = accepted.read_to_end(&mut Vec::new()).await;
            }));
        }
        tunnel.unwrap().await.unwrap();
    };
    let ask = async {
        let tls = connect(near, client, &[id(SERVER)]).await.unwrap();
        let (connection, sender) = client::start(tls, &Config::default()).await.unwrap();
        let connection = tokio::spawn(connection);
        let request =
            ConnectRequest::new("10.0.0.7:80".parse().unwrap(), ConnectHeaders::default());
        let (mut tunnel, _) = sender.connect(request).await.unwrap();
        tunnel.write_u8(7).await.unwrap();
        assert_eq!(tunnel.read_u8().await.unwrap(), 7);
        tunnel.shutdown().await.unwrap();
        tunnel.read_to_end(&mut Vec::new()).await.unwrap();
        drop((tunnel, sender));
        let _ = connection.await.unwrap();
    };
    tokio::join!(serve, ask);
}

/// the last of many costs no more than the first of them.
#[test]
#[expect(clippy::print_stdout, reason = "the figure is what the test is for")]
fn connections_that_have_gone_leave_nothing() {
    const MANY: usize = 300;
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let root = Authority::root("root");
        let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
        // What is kept to be used again is there.
        for _ in 0..50 {
            come_and_go(&client, &server).await;
        }
        let before = counting::idle();
        for _ in 0..MANY {
            come_and_go(&client, &server).await;
        }
        let left = counting::idle() - before;
        println!("{left} bytes of {MANY} connections");
        assert!(left < MANY as isize, "{left} bytes of {MANY} connections");
    });
}
