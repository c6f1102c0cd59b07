//! Those of whom the tests of faults are: one who is called, one who may call it, one who may not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_core::hbone::config::Config;
use mesh_core::{BoxedIo, Error, ErrorKind, Incoming, Mesh, OutboundPolicy, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::plane::{PATIENCE, Plane, join, until};

pub(crate) const TARGET: &str = "echo.default:7000";

/// Where they are, as the last part of an address.
pub(crate) const ECHO: u8 = 2;
pub(crate) const CALLER: u8 = 3;
pub(crate) const STRANGER: u8 = 4;
pub(crate) const LATE: u8 = 5;

fn pod(name: &str, last: u8) -> String {
    format!(
        "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default, labels: {{app: {name}}}}}
spec: {{serviceAccountName: {name}}}
status:
  phase: Running
  conditions: [{{type: Ready, status: \"True\"}}]
  podIP: 127.0.1.{last}
  podIPs: [{{ip: 127.0.1.{last}}}]
"
    )
}

/// The manifests as they are since an edit: whoever knows `generation-<n>.example` has it.
pub(crate) fn manifests(generation: usize, allowed: &[&str]) -> String {
    let mut all = String::from(
        "apiVersion: v1
kind: Namespace
metadata: {name: default, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec: {selector: {app: echo}, ports: [{port: 7000}]}
",
    );
    for (name, last) in [
        ("echo", ECHO),
        ("caller", CALLER),
        ("stranger", STRANGER),
        ("late", LATE),
    ] {
        all += &pod(name, last);
    }
    let allowed: Vec<_> = allowed
        .iter()
        .map(|name| format!("cluster.local/ns/default/sa/{name}"))
        .collect();
    let allowed = allowed.join(", ");
    all += &format!(
        "---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: echo, namespace: default}}
spec:
  selector: {{matchLabels: {{app: echo}}}}
  rules: [{{from: [{{source: {{principals: [{allowed}]}}}}]}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: generation, namespace: default}}
spec:
  hosts: [generation-{generation}.example]
  addresses: [240.0.0.1]
  ports: [{{number: 80, name: http}}]
  resolution: STATIC
"
    );
    all
}

/// Whether an edit has come.
pub(crate) async fn knows(mesh: &Mesh, generation: usize) -> bool {
    let name = format!("generation-{generation}.example");
    mesh.resolve(&name).await.is_ok()
}

/// Serves one connection after the other: what comes goes back.
pub(crate) async fn echo(mesh: Mesh) {
    let mut listener = mesh.listen(7000).await.unwrap();
    while let Ok(mut stream) = listener.accept().await {
        tokio::spawn(async move {
            let mut bytes = [0; 4];
            while stream.read_exact(&mut bytes).await.is_ok() {
                if stream.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = stream.shutdown().await;
        });
    }
}

/// A connection on which what is said comes back, and which then ends.
pub(crate) async fn call(mesh: &Mesh) -> Result<(), Error> {
    let io = |error| Error::new(ErrorKind::Io).with_source(error);
    let mut stream = mesh.connect(TARGET).await?;
    stream.write_all(b"ping").await.map_err(io)?;
    stream.shutdown().await.map_err(io)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(io)?;
    match &*answer {
        b"ping" => Ok(()),
        _ => Err(Error::new(ErrorKind::Io).with_detail(format!("{answer:?}"))),
    }
}

/// Whether the policy refuses, and nothing else does.
pub(crate) async fn is_refused(mesh: &Mesh) -> bool {
    call(mesh).await.is_err_and(|error| error.is_denied())
}

/// A member whose connections are all new ones, with a TLS handshake each, which are counted.
pub(crate) fn join_afresh(plane: &Plane, name: &str, last: u8) -> (Mesh, Arc<AtomicUsize>) {
    let dials = Arc::new(AtomicUsize::new(0));
    let builder = Mesh::builder().bootstrap_dir(plane.configure(name, plane.ip(last)));
    let mesh = builder
        .unwrap()
        .outbound_policy(OutboundPolicy::RegistryOnly)
        .start_timeout(PATIENCE)
        .hbone(afresh())
        .transport(counting(&dials))
        .build()
        .unwrap();
    (mesh, dials)
}

/// One tunnel on a connection, which ends with it.
pub(crate) fn afresh() -> Config {
    Config::default()
        .max_outgoing_streams(1)
        .idle_timeout(Duration::ZERO)
}

fn counting(dials: &Arc<AtomicUsize>) -> Transport {
    let dials = Arc::clone(dials);
    Transport::new(
        move |to| {
            dials.fetch_add(1, Ordering::Relaxed);
            async move {
                let stream = TcpStream::connect(to).await?;
                stream.set_nodelay(true)?;
                Ok(BoxedIo::new(stream))
            }
        },
        |_| {
            let unsupported = std::io::ErrorKind::Unsupported.into();
            std::future::ready(Err::<Box<dyn Incoming>, _>(unsupported))
        },
    )
}

/// All but who comes late, at work.
pub(crate) struct Cast {
    pub(crate) echo: Mesh,
    pub(crate) caller: Mesh,
    pub(crate) stranger: Mesh,
}

impl Cast {
    pub(crate) async fn join(plane: &Plane) -> Self {
        let member = |name, last| join(&plane.configure(name, plane.ip(last)));
        let cast = Self {
            echo: member("echo", ECHO),
            caller: member("caller", CALLER),
            stranger: member("stranger", STRANGER),
        };
        tokio::spawn(echo(cast.echo.clone()));
        cast.play().await;
        cast
    }

    /// Waits until who may call is answered, and who may not is refused.
    pub(crate) async fn play(&self) {
        until("the caller is answered", async || {
            call(&self.caller).await.is_ok()
        })
        .await;
        until("the stranger is refused", async || {
            is_refused(&self.stranger).await
        })
        .await;
    }

    /// All is as it was.
    pub(crate) async fn plays_on(&self, while_: &str) {
        if let Err(error) = call(&self.caller).await {
            panic!("{while_}: {error:?}");
        }
        let answer = call(&self.stranger).await;
        let refused = matches!(&answer, Err(error) if error.is_denied());
        assert!(refused, "{while_}: the stranger got {answer:?}");
    }

    /// Waits until an edit that lets the stranger call, and the caller not, is in effect.
    pub(crate) async fn turns(&self, generation: usize) {
        for mesh in [&self.echo, &self.caller, &self.stranger] {
            until("the edit is heard", async || knows(mesh, generation).await).await;
        }
        until("the stranger is answered", async || {
            call(&self.stranger).await.is_ok()
        })
        .await;
        until("the caller is refused", async || {
            is_refused(&self.caller).await
        })
        .await;
    }
}
