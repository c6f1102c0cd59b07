//! The control plane: certificates for who joins it, of which ztunnels have them from nowhere else, and a mesh of any size. A token
//! is the name of its service account: whoever can reach this can be anybody, which is right for a namespace that
//! lives for a measurement.
//!
//! Lines on standard input change the mesh: `endpoint there` and `endpoint gone` one workload, `push` all of them.
//! Each is answered by `done` when all clients have acknowledged it.

use std::convert::Infallible;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use mesh_authz::Identity;
use mesh_xds::model::Batch;
use mesh_xds::serve::{
    Authenticating, Authenticator, Ca, Credentials, Server, Service, Unauthenticated,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::args::{Control, complain, say};
use crate::fleet::Fleet;
use crate::{BoxError, Done};

/// Believes everybody.
pub(crate) struct Anybody;

impl Authenticator for Anybody {
    fn authenticate<'a>(&'a self, caller: &'a Credentials) -> Authenticating<'a> {
        let token = caller.token().unwrap_or_default();
        let identity = Identity::new("cluster.local", "default", token)
            .map_err(|error| Unauthenticated::new(error.to_string()));
        Box::pin(async { identity })
    }
}

pub(crate) async fn run(of: Control) -> Done {
    let read = |name: &str| {
        let path = of.folder.join(name);
        fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
    };
    let ca = Ca::new(&read("root.pem")?, &read("root.key")?)?;
    let server = Server::builder(Anybody).ca(ca).build();
    let chain = CertificateDer::from_pem_slice(read("control.crt")?.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(read("control.key")?.as_bytes())?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![chain], key)?;
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind(of.listen).await?;
    let fleet = Fleet {
        workloads: of.workloads,
        services: of.services,
    };
    if of.workloads > 0 {
        for batch in fleet.whole() {
            server.apply(batch);
        }
    } else {
        // There is nothing, and clients are to be told so.
        server.apply(Batch::default());
    }
    say("ready");
    tokio::spawn(follow(server.clone(), fleet));
    loop {
        let (stream, _) = listener.accept().await?;
        let (acceptor, service) = (acceptor.clone(), server.service());
        tokio::spawn(async move {
            if let Err(error) = connection(acceptor, stream, service).await {
                complain(&format!("a connection ends: {error}"));
            }
        });
    }
}

/// Does what lines say.
async fn follow(server: Server, fleet: Fleet) -> Done {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut revision = 0;
    while let Some(line) = lines.next_line().await? {
        match line.as_str() {
            "endpoint there" => server.apply(fleet.endpoint(true)),
            "endpoint gone" => server.apply(fleet.endpoint(false)),
            "push" => {
                revision += 1;
                server.apply(fleet.revised(revision));
            }
            _ => complain(&format!(
                "expected endpoint there, endpoint gone or push, got {line:?}"
            )),
        }
        // Streams look at what changed before it is seen that they have.
        sleep(Duration::from_millis(5)).await;
        while server.clients().iter().any(|client| {
            let mut subscriptions = client.subscriptions().iter();
            subscriptions.any(|of| of.pending().is_some())
        }) {
            sleep(Duration::from_millis(1)).await;
        }
        say("done");
    }
    Ok(())
}

async fn connection(acceptor: TlsAcceptor, stream: TcpStream, service: Service) -> Done {
    stream.set_nodelay(true)?;
    let stream = acceptor.accept(stream).await?;
    let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let mut service = service.clone();
        async move {
            let answer = tower::Service::call(&mut service, request).await;
            Ok::<_, Infallible>(answer.unwrap_or_else(|never| match never {}))
        }
    });
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await
        .map_err(BoxError::from)
}
