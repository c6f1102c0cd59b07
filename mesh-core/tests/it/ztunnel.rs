//! istio/ztunnel as a peer: a network namespace of its own, for its ports are fixed, and its process in
//! dedicated mode. Shared with the control plane's tests.
#![allow(dead_code, reason = "the control plane's tests use less")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a slow and busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A namespace that is a Pod: `outside`, an address of this process, and `inside`, the Pod's, on one wire.
/// `service` is an address that leads through the Pod's redirection, as its application would dial it.
pub(crate) struct Pod {
    namespace: String,
    pub(crate) outside: Ipv4Addr,
    pub(crate) inside: Ipv4Addr,
    pub(crate) service: Ipv4Addr,
}

impl Pod {
    /// Makes it, which takes root and iproute2: the error says what is missing.
    pub(crate) fn new() -> Result<Self, String> {
        static PODS: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (
            std::process::id(),
            PODS.fetch_add(1, Ordering::Relaxed) % 32,
        );
        let address = |last: u32| {
            Ipv4Addr::new(
                10,
                192 + (process % 32) as u8,
                (process / 32 % 256) as u8,
                (number * 8 + last) as u8,
            )
        };
        let pod = Self {
            namespace: format!("zt{process}-{number}"),
            outside: address(1),
            inside: address(2),
            service: address(3),
        };
        let Self {
            namespace,
            outside,
            inside,
            service,
        } = &pod;
        let (near, far) = (format!("{namespace}n"), format!("{namespace}f"));
        run(&format!("ip netns add {namespace}"))?;
        for command in [
            format!("ip link add {near} type veth peer name {far} netns {namespace}"),
            format!("ip address add {outside}/29 dev {near}"),
            format!("ip link set {near} up"),
            format!("ip -n {namespace} address add {inside}/29 dev {far}"),
            format!("ip -n {namespace} link set {far} up"),
            format!("ip -n {namespace} link set lo up"),
            format!("ip route add {service}/32 via {inside}"),
            format!(
                "ip netns exec {namespace} iptables -t nat -A PREROUTING -d {service} -p tcp -j REDIRECT --to-ports 15001"
            ),
        ] {
            run(&command)?;
        }
        Ok(pod)
    }

    /// Sends what the Pod dials at its own `port` to `application`: there, in this process, is its application.
    pub(crate) fn application(&self, port: u16, application: SocketAddr) {
        let Self {
            namespace, inside, ..
        } = self;
        run(&format!(
            "ip netns exec {namespace} iptables -t nat -A OUTPUT -d {inside} -p tcp --dport {port} -j DNAT --to-destination {application}"
        ))
        .unwrap();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.namespace));
    }
}

fn run(command: &str) -> Result<(), String> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        Err(format!("{command}: {}", said.trim()))
    }
}

/// A running ztunnel, killed when dropped.
pub(crate) struct Ztunnel {
    process: Child,
    ready: SocketAddr,
    folder: TempDir,
}

impl Ztunnel {
    /// Starts `program` in `pod` as the workload `namespace/name/account`, set by `variables`.
    pub(crate) fn start(
        program: &Path,
        pod: &Pod,
        workload: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &pod.namespace])
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("PROXY_MODE", "dedicated")
            .env("PROXY_WORKLOAD_INFO", workload)
            .env("ISTIO_META_DNS_CAPTURE", "false")
            .env("ENABLE_ORIG_SRC", "false")
            .env("IPV6_ENABLED", "false")
            .env("INSTANCE_IP", pod.inside.to_string())
            .env("RUST_LOG", "info")
            .envs(variables.iter().copied())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            process,
            ready: SocketAddr::from((pod.inside, 15021)),
            folder,
        }
    }

    /// Waits until it says that it is ready.
    pub(crate) async fn ready(&mut self) {
        let ready = timeout(PATIENCE, async {
            loop {
                sleep(Duration::from_millis(50)).await;
                let ended = self.process.try_wait().unwrap();
                let said = || self.log().lines().last().map(str::to_owned);
                assert!(ended.is_none(), "{ended:?}: {:?}", said());
                if ask(self.ready)
                    .await
                    .is_ok_and(|answer| answer.contains(" 200 "))
                {
                    return;
                }
            }
        });
        assert!(ready.await.is_ok(), "not ready: {}", self.log());
    }

    /// What it said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Waits until its log has a line with all of `parts`.
    pub(crate) async fn logged(&self, parts: &[&str]) {
        let logged = timeout(PATIENCE, async {
            loop {
                let log = self.log();
                let mut lines = log.lines();
                if lines.any(|line| parts.iter().all(|part| line.contains(part))) {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        assert!(logged.await.is_ok(), "no {parts:?} in: {}", self.log());
    }
}

async fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = "GET /healthz/ready HTTP/1.1\r\nhost: ztunnel\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
