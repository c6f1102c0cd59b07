//! The crypto provider that is set is the one that is used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mesh_core::hbone::tls::Provider;
use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom};

use crate::istiod;
use crate::istiod_place::{HOUR, Place};
use crate::mesh_world::{PORT, World, echo, ping};

/// Randomness, and how often it was asked for: every handshake asks.
#[derive(Debug)]
struct Counting {
    inner: &'static dyn SecureRandom,
    asked: &'static AtomicUsize,
}

impl SecureRandom for Counting {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.inner.fill(buffer)
    }
}

/// A provider, and how often it was asked for randomness.
fn counted() -> (Provider, &'static AtomicUsize) {
    let provider = istiod::provider();
    let asked: &_ = Box::leak(Box::default());
    let random = Counting {
        inner: provider.secure_random,
        asked,
    };
    let provider = CryptoProvider {
        secure_random: Box::leak(Box::new(random)),
        ..CryptoProvider::clone(&provider)
    };
    (Arc::new(provider).into(), asked)
}

#[tokio::test]
async fn tunnels_use_the_nodes() {
    let (provider, asked) = counted();
    let world = World::with(181, |node| node.crypto(provider));
    let (client, server) = world.pair().await;
    echo(server.listen(PORT).await.unwrap());
    let mut stream = client.connect(format!("server:{PORT}")).await.unwrap();
    ping(&mut stream).await.unwrap();
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked >= 2, "each side of a handshake: {asked}");
}

#[tokio::test(start_paused = true)]
async fn streams_and_certificates_use_the_control_planes() {
    let place = Place::new();
    place.token("client", HOUR);
    let (for_stream, stream) = counted();
    let (for_certificates, certificates) = counted();
    let control_plane = place.control_plane("client");
    let now = Arc::clone(&place.now);
    let client = mesh_core::Mesh::builder()
        .workload("default", "client", "client")
        .transport(place.network.clone())
        .clock(move || now())
        .config(
            mesh_core::config::Xds::istiod(control_plane.clone().crypto(for_stream))
                .addresses([std::net::IpAddr::from([10, 0, 0, 1])]),
        )
        .identity(mesh_core::identity::Istiod::new(
            control_plane.crypto(for_certificates),
        ))
        .build()
        .unwrap();
    client.ready().await.unwrap();
    assert_ne!(stream.load(Ordering::Relaxed), 0);
    assert_ne!(certificates.load(Ordering::Relaxed), 0);
}
