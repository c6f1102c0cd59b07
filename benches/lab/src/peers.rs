//! The programs of others, with two threads each like everybody in the lab, and without access logs.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use crate::BoxError;
use crate::certificates::identity;
use crate::processes::Process;

/// Where a ztunnel has its mesh from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The folder's `mesh.yaml`.
    File,
    /// The control plane.
    Discovery,
}

/// istio/ztunnel in dedicated mode, for the workload `default/<account>`.
pub(crate) fn ztunnel(
    program: &Path,
    namespace: &str,
    folder: &Path,
    account: &'static str,
    control: SocketAddr,
    source: Source,
) -> Result<Process, BoxError> {
    let mut command = Command::new(program);
    match source {
        Source::File => command
            .env("LOCAL_XDS_PATH", folder.join("mesh.yaml"))
            .env("XDS_ADDRESS", ""),
        Source::Discovery => command
            .env("XDS_ADDRESS", format!("https://{control}"))
            .env("XDS_ROOT_CA", folder.join("root.pem"))
            .env("POD_NAME", account)
            .env("POD_NAMESPACE", "default"),
    };
    command
        .env("PROXY_MODE", "dedicated")
        .env(
            "PROXY_WORKLOAD_INFO",
            format!("default/{account}/{account}"),
        )
        .env("CA_ADDRESS", format!("https://{control}"))
        .env("CA_ROOT_CA", folder.join("root.pem"))
        .env("AUTH_TOKEN", account)
        .env("PACKET_MARK", "1337")
        .env("ENABLE_ORIG_SRC", "false")
        .env("ISTIO_META_DNS_CAPTURE", "false")
        .env("IPV6_ENABLED", "false")
        .env("ZTUNNEL_WORKER_THREADS", "2")
        .env("RUST_LOG", "warn,ztunnel::readiness=info,readiness=info");
    let name = match account {
        "client" => "ztunnel-client",
        _ => "ztunnel-server",
    };
    let mut process = Process::start(name, Some(namespace), folder, &command)?;
    // Its own words; it logs to standard output.
    while !process.line()?.contains("marking server ready") {}
    Ok(process.ignored())
}

/// Envoy as the sidecar of a client: plaintext HTTP on the loopback, HTTP/1.1 in mutual TLS to the server's.
pub(crate) fn envoy_client(
    program: &Path,
    namespace: &str,
    folder: &Path,
    on: SocketAddr,
    to: SocketAddr,
) -> Result<Process, BoxError> {
    let tls = tls_context(folder, "client", "server");
    let listener = listener(on, "client", "", "");
    let cluster = cluster(
        to,
        &format!(
            r#"
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {tls}"#
        ),
    );
    envoy(
        program,
        namespace,
        folder,
        "envoy-client",
        &(listener + &cluster),
    )
}

/// Envoy as the sidecar of a server: mutual TLS, one ALLOW rule on the client's identity, its application.
pub(crate) fn envoy_server(
    program: &Path,
    namespace: &str,
    folder: &Path,
    on: SocketAddr,
    to: SocketAddr,
) -> Result<Process, BoxError> {
    let tls = tls_context(folder, "server", "client");
    let transport = format!(
        r#"
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: {tls}
      filters:"#
    );
    let rbac = format!(
        r#"
          - name: envoy.filters.http.rbac
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC
              rules:
                action: ALLOW
                policies:
                  admit:
                    permissions: [{{ any: true }}]
                    principals: [{{ authenticated: {{ principal_name: {{ exact: "{}" }} }} }}]"#,
        identity("client")
    );
    let listener = listener(on, "server", &transport, &rbac);
    let resources = listener + &cluster(to, "");
    envoy(program, namespace, folder, "envoy-server", &resources)
}

fn tls_context(folder: &Path, own: &str, peer: &str) -> String {
    let (folder, peer) = (folder.display(), identity(peer));
    format!(
        r#"{{
          alpn_protocols: [http/1.1],
          tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }},
          tls_certificates: [{{ certificate_chain: {{ filename: "{folder}/{own}.crt" }}, private_key: {{ filename: "{folder}/{own}.key" }} }}],
          validation_context: {{
            trusted_ca: {{ filename: "{folder}/root.pem" }},
            match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: "{peer}" }} }}] }} }}"#
    )
}

fn listener(on: SocketAddr, name: &str, transport: &str, filters: &str) -> String {
    let (address, port) = (on.ip(), on.port());
    let transport = if transport.is_empty() {
        "\n    - filters:"
    } else {
        transport
    };
    format!(
        r#"
  listeners:
  - name: {name}
    address: {{ socket_address: {{ address: {address}, port_value: {port} }} }}
    filter_chains:{transport}
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: HTTP1
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: "/" }}, route: {{ cluster: next }} }}]
          http_filters:{filters}
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}"#
    )
}

fn cluster(to: SocketAddr, transport: &str) -> String {
    let (address, port) = (to.ip(), to.port());
    format!(
        r#"
  clusters:
  - name: next
    type: STATIC
    load_assignment:
      cluster_name: next
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: {address}, port_value: {port} }} }} }}{transport}
"#
    )
}

fn envoy(
    program: &Path,
    namespace: &str,
    folder: &Path,
    name: &'static str,
    resources: &str,
) -> Result<Process, BoxError> {
    let file = folder.join(format!("{name}.yaml"));
    fs::write(&file, format!("static_resources:{resources}"))?;
    let mut command = Command::new(program);
    command.arg("--config-path").arg(file);
    command.args([
        "--disable-hot-restart",
        "--concurrency",
        "2",
        "--log-level",
        "warning",
    ]);
    Ok(Process::start(name, Some(namespace), folder, &command)?.ignored())
}

/// The loopback's address of what a namespace keeps to itself.
pub(crate) fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
