use std::sync::Weak;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::time::Instant;

use super::*;
use crate::admin::Settings;

fn admin() -> Admin {
    Admin {
        pages: crate::admin::Pages::All,
        node: Weak::new(),
        workload: None,
        settings: Settings::default(),
        only_local_names: true,
    }
}

/// How long a connection lives on which the client does only this.
async fn lives(admin: Admin, client_sends: &[u8]) -> Duration {
    let (mut client, server) = duplex(1024);
    client.write_all(client_sends).await.unwrap();
    let began = Instant::now();
    admin.serve_connection(server).await;
    let lived = began.elapsed();
    drop(client);
    lived
}

#[tokio::test(start_paused = true)]
async fn a_head_comes_in_time() {
    assert_eq!(lives(admin(), b"").await, Duration::from_secs(2));
    assert_eq!(
        lives(admin(), b"GET / HTTP/1.1\r\nhost:").await,
        Duration::from_secs(2)
    );
    let patient = admin().header_timeout(Duration::from_secs(7));
    assert_eq!(lives(patient, b"GET / ").await, Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn so_does_the_next_one() {
    let request = b"GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    assert_eq!(lives(admin(), request).await, Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_got_rid_of() {
    // More answers than the pipe and the server's own buffer hold.
    let request = "GET /healthz/ready HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let (client, server) = duplex(64);
    let (mut reads, mut writes) = tokio::io::split(client);
    let writing =
        tokio::spawn(async move { while writes.write_all(request.as_bytes()).await.is_ok() {} });
    let began = Instant::now();
    admin().serve_connection(server).await;
    assert_eq!(began.elapsed(), Duration::from_secs(60));
    writing.await.unwrap();
    assert!(reads.read(&mut [0; 8]).await.unwrap() > 0);
}
