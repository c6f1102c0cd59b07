//! Two network namespaces on one wire: two Pods on two nodes.

use std::net::Ipv4Addr;
use std::process::Command;

use crate::BoxError;

/// The Pod of the client, and of the server.
pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// They go when this is dropped.
pub(crate) struct Pair {
    pub(crate) client: String,
    pub(crate) server: String,
}

impl Pair {
    /// `name` tells this pair from others of this process.
    pub(crate) fn new(name: &str) -> Result<Self, BoxError> {
        let stem = format!("lab{}{name}", std::process::id());
        let pair = Self {
            client: format!("{stem}c"),
            server: format!("{stem}s"),
        };
        let Self { client, server } = &pair;
        run(&format!("ip netns add {client}"))?;
        run(&format!("ip netns add {server}"))?;
        run(&format!(
            "ip -n {client} link add wire type veth peer name wire netns {server}"
        ))?;
        for (namespace, address) in [(client, CLIENT), (server, SERVER)] {
            run(&format!(
                "ip -n {namespace} address add {address}/24 dev wire"
            ))?;
            run(&format!("ip -n {namespace} link set wire up"))?;
            run(&format!("ip -n {namespace} link set lo up"))?;
        }
        Ok(pair)
    }

    /// Sends what the client dials at `port` to its ztunnel, as Istio's rules for dedicated mode do; what
    /// ztunnel dials has a mark, but for its control plane, which is at another port.
    pub(crate) fn redirect(&self, port: u16) -> Result<(), BoxError> {
        run(&format!(
            "ip netns exec {} iptables -t nat -A OUTPUT -p tcp --dport {port} ! -o lo -m mark ! --mark 0x539 -j REDIRECT --to-ports 15001",
            self.client
        ))
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.server] {
            // It may never have been made.
            let _ = run(&format!("ip netns del {namespace}"));
        }
    }
}

fn run(command: &str) -> Result<(), BoxError> {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .map_err(|error| format!("{command}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{command}: {} (it takes root)", said.trim()).into())
}
