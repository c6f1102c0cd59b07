//! HTTP requests over kept connections, by deployments that take turns.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use crate::args::{Requests, peer, say};
use crate::bare::Keys;
use crate::certificates::Root;
use crate::namespaces::{CLIENT, Pair, SERVER};
use crate::peers::{self, Source};
use crate::processes::Process;
use crate::spread::Spread;
use crate::{BoxError, machine};

const PORT: u16 = 8080;

/// Client and server in namespaces of their own, with what stands between them.
struct Deployment {
    name: &'static str,
    load: Process,
    /// All that is not the client.
    others: Vec<Process>,
    samples: Vec<Sample>,
    // Below the processes: they end first.
    _pair: Pair,
    _folder: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Requests per second.
    rate: f64,
    /// CPU of all processes per request, in microseconds.
    cpu: f64,
    /// Time of a request in microseconds.
    p50: f64,
    p99: f64,
    /// Memory of all processes, in MB.
    memory: f64,
}

pub(crate) fn run(of: &Requests) -> crate::Done {
    machine::print();
    let mut deployments = vec![direct(PLAIN, "plain")?];
    let mut add = |name: &str, make: &dyn Fn() -> Result<Deployment, BoxError>| {
        if name.contains(&of.only) {
            deployments.push(make().map_err(|error| format!("{name}: {error}"))?);
        }
        crate::Done::Ok(())
    };
    add(TLS, &|| direct(TLS, "tls"))?;
    add(CONNECT, &|| direct(CONNECT, "connect"))?;
    add(SDK_L4, &|| direct(SDK_L4, "tunnel"))?;
    add(SDK_L7, &|| direct(SDK_L7, "http"))?;
    match peer(of.ztunnel.as_ref(), "PEER_ZTUNNEL") {
        Some(program) => add(ZTUNNEL, &|| ztunnels(&program))?,
        None => say("PEER_ZTUNNEL names no program: left out"),
    }
    match peer(of.envoy.as_ref(), "PEER_ENVOY") {
        Some(program) => add(ENVOY, &|| envoys(&program))?,
        None => say("PEER_ENVOY names no program: left out"),
    }
    // The first round warms up.
    for round in 0..=of.rounds {
        for deployment in &mut deployments {
            let sample = deployment.measure(of)?;
            if round > 0 {
                deployment.samples.push(sample);
            }
        }
    }
    machine::print();
    report(of, &deployments);
    Ok(())
}

const PLAIN: &str = "no mesh";
const TLS: &str = "bare mutual TLS";
const CONNECT: &str = "CONNECT over hyper's h2";
const SDK_L4: &str = "SDK, connect and listen";
const SDK_L7: &str = "SDK, http_client and listen_http";
const ZTUNNEL: &str = "two ztunnels";
const ENVOY: &str = "two Envoys";

fn server_at(address: impl Into<std::net::IpAddr>) -> SocketAddr {
    (address.into(), PORT).into()
}

/// A folder with everybody's certificates and the mesh of both.
pub(crate) fn folder() -> Result<TempDir, BoxError> {
    let folder = tempfile::tempdir()?;
    let root = Root::new()?;
    root.write(folder.path(), SERVER.into())?;
    Keys::write(&root, folder.path())?;
    let mut mesh = "workloads:".to_owned();
    for (account, address) in [("client", CLIENT), ("server", SERVER)] {
        root.write_member(folder.path(), account)?;
        mesh += &format!(
            "
- uid: {account}
  name: {account}
  namespace: default
  serviceAccount: {account}
  trustDomain: cluster.local
  workloadIps: [{address}]
  services: {{}}
  protocol: HBONE"
        );
    }
    mesh += "
  authorizationPolicies: [default/admit]
policies:
- name: admit
  namespace: default
  scope: WorkloadSelector
  action: Allow
  dryRun: false
  rules:
  - - - serviceAccounts: [{namespace: default, serviceAccount: client}]
";
    fs::write(folder.path().join("mesh.yaml"), mesh)?;
    Ok(folder)
}

fn serve(pair: &Pair, folder: &Path, road: &str) -> Result<Process, BoxError> {
    let listen = server_at([0, 0, 0, 0]).to_string();
    let member = folder.display().to_string();
    let places = ["--listen", &listen, "--folder", &member];
    let arguments = [&["serve", "--road", road][..], &places].concat();
    Process::role("server", &pair.server, folder, &arguments)
}

fn load(pair: &Pair, folder: &Path, road: &str, to: SocketAddr) -> Result<Process, BoxError> {
    let (to, member) = (to.to_string(), folder.display().to_string());
    let places = ["--to", &to, "--folder", &member];
    let arguments = [&["load", "--road", road][..], &places].concat();
    Process::role("client", &pair.client, folder, &arguments)
}

/// Nothing between them.
fn direct(name: &'static str, road: &str) -> Result<Deployment, BoxError> {
    let (pair, folder) = (Pair::new(road)?, folder()?);
    let server = serve(&pair, folder.path(), road)?;
    let load = load(&pair, folder.path(), road, server_at(SERVER))?;
    Ok(Deployment::of(name, load, vec![server], pair, folder))
}

fn ztunnels(program: &Path) -> Result<Deployment, BoxError> {
    let (pair, folder) = (Pair::new("z")?, folder()?);
    let path = folder.path();
    let control = SocketAddr::from((SERVER, 15_012));
    let (listen, certificates) = (control.to_string(), path.display().to_string());
    let arguments = ["control", "--listen", &listen, "--folder", &certificates];
    let issuing = Process::role("control", &pair.server, path, &arguments)?;
    let ztunnel = |account, namespace: &str| {
        peers::ztunnel(program, namespace, path, account, control, Source::File)
    };
    let others = vec![
        ztunnel("server", &pair.server)?,
        ztunnel("client", &pair.client)?,
        serve(&pair, path, "plain")?,
        issuing,
    ];
    pair.redirect(PORT)?;
    let load = load(&pair, path, "plain", server_at(SERVER))?;
    Ok(Deployment::of(ZTUNNEL, load, others, pair, folder))
}

fn envoys(program: &Path) -> Result<Deployment, BoxError> {
    let (pair, folder) = (Pair::new("e")?, folder()?);
    let path = folder.path();
    let (near, far) = (peers::local(15_001), SocketAddr::from((SERVER, 15_006)));
    let app = server_at([127, 0, 0, 1]);
    let others = vec![
        serve(&pair, path, "plain")?,
        peers::envoy_server(program, &pair.server, path, far, app)?,
        peers::envoy_client(program, &pair.client, path, near, far)?,
    ];
    let load = load(&pair, path, "plain", near)?;
    Ok(Deployment::of(ENVOY, load, others, pair, folder))
}

impl Deployment {
    fn of(
        name: &'static str,
        load: Process,
        others: Vec<Process>,
        pair: Pair,
        folder: TempDir,
    ) -> Self {
        Self {
            name,
            load,
            others,
            samples: Vec::new(),
            _pair: pair,
            _folder: folder,
        }
    }

    fn sum(&self, of: impl Fn(&Process) -> Result<f64, BoxError>) -> Result<f64, BoxError> {
        let all = self.others.iter().chain([&self.load]);
        all.map(of).sum()
    }

    fn measure(&mut self, of: &Requests) -> Result<Sample, BoxError> {
        let line = format!("run {} {}", of.connections, of.millis);
        self.load.tell(&line)?;
        self.expect("begin")?;
        let before = self.sum(Process::cpu)?;
        self.expect("stop")?;
        let cpu = self.sum(Process::cpu)? - before;
        let memory = self.sum(Process::resident)? / 1e6;
        let line = self.load.line()?;
        let mut numbers = line.split(' ').skip(1).map(str::parse::<f64>);
        let mut next = || numbers.next().ok_or("a number is missing");
        let (requests, seconds) = (next()??, next()??);
        let (p50, p99, failures) = (next()?? / 1e3, next()?? / 1e3, next()??);
        if failures > 0.0 || requests == 0.0 {
            return Err(format!("{}: {line}", self.name).into());
        }
        Ok(Sample {
            rate: requests / seconds,
            cpu: cpu * 1e6 / requests,
            p50,
            p99,
            memory,
        })
    }

    fn expect(&mut self, word: &str) -> crate::Done {
        let line = self.load.line()?;
        if line == word {
            return Ok(());
        }
        Err(format!("{}: expected {word}, got {line:?}", self.name).into())
    }
}

fn report(of: &Requests, deployments: &[Deployment]) {
    let Requests {
        rounds,
        millis,
        connections,
        ..
    } = of;
    say(&format!(
        "{connections} connections, {rounds} rounds of {millis} ms; CPU and memory of all processes"
    ));
    say(&format!(
        "{:<34}{:>28}{:>24}{:>24}{:>24}{:>20}",
        "", "requests/s", "CPU µs a request", "p50 µs", "p99 µs", "MB"
    ));
    for deployment in deployments {
        let of = |field: fn(&Sample) -> f64| Spread::of(deployment.samples.iter().map(field));
        say(&format!(
            "{:<34}{:>28}{:>24}{:>24}{:>24}{:>20}",
            deployment.name,
            of(|sample| sample.rate),
            of(|sample| sample.cpu),
            of(|sample| sample.p50),
            of(|sample| sample.p99),
            of(|sample| sample.memory),
        ));
    }
    say("round by round: against proxies CPU and memory less the run without a mesh");
    let find = |name: &str| deployments.iter().find(|one| one.name == name);
    let plain = &deployments[0];
    for (ours, theirs, bounds) in [
        (SDK_L4, ZTUNNEL, "CPU at most 0.4, p50 at most 0.45"),
        (
            SDK_L7,
            ENVOY,
            "rate at least 3, p50 at most 0.4, CPU at most 0.3, memory at most 0.3",
        ),
        (SDK_L7, ZTUNNEL, "not asked for"),
        (
            PLAIN,
            ZTUNNEL,
            "the least of anything; its CPU and memory whole",
        ),
        (TLS, ZTUNNEL, "TLS alone"),
        (CONNECT, ZTUNNEL, "HBONE without a mesh"),
        (TLS, PLAIN, "what encryption costs"),
        (CONNECT, PLAIN, "what HBONE costs"),
        (SDK_L4, PLAIN, "what the mesh costs"),
        (CONNECT, TLS, "what HTTP/2 costs"),
        (SDK_L4, TLS, "not asked for"),
        (SDK_L4, CONNECT, "not asked for"),
    ] {
        let (Some(ours), Some(theirs)) = (find(ours), find(theirs)) else {
            continue;
        };
        let beyond = ours.name != PLAIN && [ZTUNNEL, ENVOY].contains(&theirs.name);
        let ratio = |value: fn(&Sample) -> f64, less: bool| {
            let rounds = ours.samples.iter().zip(&theirs.samples);
            let ratios = rounds.zip(&plain.samples).map(|((ours, theirs), plain)| {
                let base = if less { value(plain) } else { 0.0 };
                (value(ours) - base) / (value(theirs) - base)
            });
            Spread::of(ratios)
        };
        say(&format!("{} against {} ({bounds})", ours.name, theirs.name));
        say(&format!(
            "  rate {}, p50 {}, p99 {}, CPU {}, memory {}",
            ratio(|sample| sample.rate, false),
            ratio(|sample| sample.p50, false),
            ratio(|sample| sample.p99, false),
            ratio(|sample| sample.cpu, beyond),
            ratio(|sample| sample.memory, beyond),
        ));
    }
}
