use mesh_hbone::ErrorKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::authority::{Authority, CLIENT, SERVER, shake};

#[tokio::test]
async fn the_next_handshake_uses_the_new_certificate_and_live_connections_go_on() {
    let root = Authority::root("root");
    let (client, server) = (root.credentials(CLIENT), root.credentials(SERVER));
    let mut changes = server.subscribe();
    let (near, far) = shake(&client, &server, &[SERVER]).await;
    let (mut near, mut far) = (near.unwrap(), far.unwrap());
    let old = server.current();
    assert_eq!(server.generation(), 1);
    assert!(!changes.has_changed().unwrap());

    server
        .clone()
        .replace(root.leaf(SERVER).bundle(&[&root]).unwrap())
        .unwrap();
    assert_eq!(*changes.borrow_and_update(), 2);
    let new = server.current();
    assert_ne!(old.serial_number(), new.serial_number());
    let (next, _far) = shake(&client, &server, &[SERVER]).await;
    assert_eq!(next.unwrap().peer().chain(), new.chain());

    assert_eq!(near.peer().chain(), old.chain());
    far.write_all(b"still here").await.unwrap();
    far.shutdown().await.unwrap();
    let mut text = String::new();
    near.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "still here");
}

/// S-12, CVE-2022-21654: nothing of an earlier handshake is believed.
#[tokio::test]
async fn the_next_handshake_uses_the_new_roots_on_both_sides() {
    let (old, new) = (Authority::root("old"), Authority::root("new"));
    let (client, server) = (old.credentials(CLIENT), old.credentials(SERVER));
    // New certificate, both roots trusted: the step that a rotation of roots begins with.
    server
        .replace(new.leaf(SERVER).bundle(&[&old, &new]).unwrap())
        .unwrap();
    let (near, _far) = shake(&client, &server, &[SERVER]).await;
    assert_eq!(near.unwrap_err().kind(), ErrorKind::UnknownIssuer);
    client
        .replace(old.leaf(CLIENT).bundle(&[&old, &new]).unwrap())
        .unwrap();
    let (near, far) = shake(&client, &server, &[SERVER]).await;
    assert!(near.is_ok() && far.is_ok());
    // The old root leaves.
    server
        .replace(new.leaf(SERVER).bundle(&[&new]).unwrap())
        .unwrap();
    let (_near, far) = shake(&client, &server, &[SERVER]).await;
    assert_eq!(far.unwrap_err().kind(), ErrorKind::UnknownIssuer);
}

#[tokio::test]
async fn a_bundle_that_cannot_be_used_leaves_the_old_one() {
    let root = Authority::root("root");
    let server = root.credentials(SERVER);
    let old = server.current();
    let mut mixed = root.leaf(SERVER);
    mixed.key = root.leaf(SERVER).key;
    let error = server.replace(mixed.bundle(&[&root]).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidBundle);
    assert_eq!(server.generation(), 1);
    assert_eq!(server.current().chain(), old.chain());
}
