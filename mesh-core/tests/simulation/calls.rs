//! What workloads ask of each other, and what they must hear.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use mesh_core::{ConnectionContext, Error, Mesh, MeshStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tower::service_fn;

use crate::network::CANARY;
use crate::plan::Random;
use crate::world::{ALL, HOSTS, HTTP, SECRET, Stage, TCP, Witness, whose};

/// How long the head of an answer may take, by the builder's setting.
pub(crate) const HEAD: Duration = Duration::from_secs(2);

/// After the head: its server's pauses, and a second for a PING that nobody answers.
const BODY: Duration = Duration::from_millis(2600);

/// Two attempts of a dial and a CONNECT, a second each, then as a body.
const STREAM: Duration = Duration::from_millis(4000 + 2600);

/// Parts of an answer, with a pause between two: an answer can be cut anywhere.
const PARTS: u64 = 4;
const PAUSE: Duration = Duration::from_millis(60);

/// One part of what is said under a number: it begins with the canary.
fn part(number: u64, at: u64) -> Bytes {
    let mut part = CANARY.to_vec();
    part.extend_from_slice(&number.to_le_bytes());
    part.push(at as u8);
    let length = number % 700;
    part.extend((0..length).map(|byte| (byte + at) as u8));
    part.into()
}

fn whole(number: u64) -> Vec<u8> {
    (0..PARTS).flat_map(|at| part(number, at)).collect()
}

fn caller(context: &ConnectionContext) -> Option<usize> {
    whose(context.identity()?.service_account())
}

/// Serves both ports.
pub(crate) async fn serve(mesh: &Mesh, host: usize, witness: &Witness) -> Result<(), Error> {
    let http = mesh.listen_http(HTTP).await?;
    let judge = witness.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let path = request.uri().path().to_owned();
        let caller = request.extensions().get().and_then(caller);
        judge.served(host, caller, &path);
        if path == SECRET {
            judge.broken(&format!("{} gave its secret away", HOSTS[host]));
        }
        async move { Ok::<_, Infallible>(answer(&path)) }
    });
    tokio::spawn(http.serve(service));
    let mut tcp = mesh.listen(TCP).await?;
    let witness = witness.clone();
    tokio::spawn(async move {
        while let Ok(stream) = tcp.accept().await {
            tokio::spawn(echo(stream, host, witness.clone()));
        }
    });
    Ok(())
}

fn answer(path: &str) -> Response<impl http_body::Body<Data = Bytes, Error = Infallible> + use<>> {
    let number = path.trim_start_matches('/').parse().unwrap_or(0);
    let parts = stream::unfold(0, move |at| async move {
        if at == PARTS {
            return None;
        }
        sleep(PAUSE).await;
        Some((Ok(Frame::data(part(number, at))), at + 1))
    });
    Response::new(StreamBody::new(parts))
}

/// Says what it hears, and ends when its caller has.
async fn echo(mut stream: MeshStream, host: usize, witness: Witness) {
    let caller = caller(stream.context());
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => {
                let _ = stream.shutdown().await;
                return;
            }
            Ok(count) => {
                witness.served(host, caller, "bytes");
                if stream.write_all(&buffer[..count]).await.is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All of the answer.
    Whole,
    Refused(StatusCode),
    Failed(String),
}

/// Calls others for ever.
pub(crate) async fn traffic(
    mesh: &Mesh,
    host: usize,
    mut random: Random,
    witness: &Witness,
) -> Infallible {
    let others = HOSTS.into_iter().filter(|other| *other != HOSTS[host]);
    let others: Vec<&str> = others.collect();
    loop {
        sleep(random.millis(50, 400)).await;
        if witness.seen().stage == Stage::Proof {
            break;
        }
        let to = others.iter().copied().chain([ALL]);
        let to = to.clone().nth(random.below(to.count() as u64) as usize);
        let (number, kind) = (random.next() % 1_000_000, Kind::random(&mut random));
        let (mesh, witness) = (mesh.clone(), witness.clone());
        tokio::spawn(
            async move { call(&mesh, host, to.unwrap_or(ALL), kind, number, &witness).await },
        );
    }
    for to in others {
        for kind in PROOF {
            let (mesh, witness) = (mesh.clone(), witness.clone());
            let number = random.next() % 1_000_000;
            tokio::spawn(async move {
                let outcome = call(&mesh, host, to, kind, number, &witness).await;
                witness
                    .seen()
                    .proofs
                    .insert((HOSTS[host], to, kind), outcome);
            });
        }
    }
    std::future::pending().await
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Http1,
    Http2,
    Secret,
    Tcp,
}

/// What everybody asks of everybody at the end.
pub(crate) const PROOF: [Kind; 4] = [Kind::Http1, Kind::Http2, Kind::Secret, Kind::Tcp];

impl Kind {
    fn random(random: &mut Random) -> Self {
        match random.below(8) {
            0..=2 => Self::Http1,
            3 | 4 => Self::Http2,
            5 => Self::Secret,
            _ => Self::Tcp,
        }
    }
}

/// One call, whose end is checked.
pub(crate) async fn call(
    mesh: &Mesh,
    host: usize,
    to: &str,
    kind: Kind,
    number: u64,
    witness: &Witness,
) -> Outcome {
    let what = format!("{} calls {to} ({kind:?} {number})", HOSTS[host]);
    let within = match kind {
        Kind::Tcp => STREAM,
        _ => HEAD + BODY,
    };
    let id = witness.call(&what, within);
    let outcome = match kind {
        Kind::Tcp => tcp(mesh, to, number).await,
        _ => http(mesh, to, kind, number).await,
    };
    witness.ended(id, outcome == Outcome::Whole);
    if outcome == Outcome::Whole && kind == Kind::Secret {
        witness.broken(&format!("{what}: it was told"));
    }
    if let Outcome::Failed(why) = &outcome
        && why.starts_with("cut")
    {
        witness.broken(&format!("{what}: {why}"));
    }
    witness.tell(&format!("{what}: {outcome:?}"));
    outcome
}

async fn http(mesh: &Mesh, to: &str, kind: Kind, number: u64) -> Outcome {
    let path = match kind {
        Kind::Secret => SECRET.to_owned(),
        _ => format!("/{number}"),
    };
    let mut request = Request::get(format!("http://{to}:{HTTP}{path}"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    if kind == Kind::Http2 {
        *request.version_mut() = Version::HTTP_2;
    }
    let response = match mesh.http_client().request(request).await {
        Ok(response) => response,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let status = response.status();
    match response.into_body().collect().await {
        Err(error) => Outcome::Failed(error.to_string()),
        Ok(_) if status != StatusCode::OK => Outcome::Refused(status),
        Ok(body) => compare(&body.to_bytes(), number),
    }
}

async fn tcp(mesh: &Mesh, to: &str, number: u64) -> Outcome {
    let said = async {
        let mut stream = mesh
            .connect(format!("{to}:{TCP}"))
            .await
            .map_err(|error| error.to_string())?;
        let mut heard = Vec::new();
        let talk = async {
            for at in 0..PARTS {
                stream.write_all(&part(number, at)).await?;
                sleep(PAUSE).await;
            }
            stream.shutdown().await?;
            stream.read_to_end(&mut heard).await
        };
        talk.await.map_err(|error| error.to_string())?;
        Ok(heard)
    };
    match said.await {
        Ok(heard) => compare(&heard, number),
        Err(error) => Outcome::Failed(error),
    }
}

fn compare(heard: &[u8], number: u64) -> Outcome {
    let whole = whole(number);
    if heard == whole {
        return Outcome::Whole;
    }
    Outcome::Failed(format!(
        "cut: {} of {} bytes look complete",
        heard.len(),
        whole.len()
    ))
}
