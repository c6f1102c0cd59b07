//! Envoy as a peer: its certificates, its configuration, its process. Shared with mesh-core's tests.
#![allow(dead_code, reason = "mesh-core's tests use less")]

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Longer than anything takes on a slow and busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Fails, naming what was waited for, rather than hanging.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// A root that writes what it issues into a folder of its own.
pub(crate) struct Pki {
    issuer: CertifiedIssuer<'static, KeyPair>,
    folder: TempDir,
}

/// The PEM files of one workload.
pub(crate) struct Files {
    pub(crate) chain: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) roots: PathBuf,
    pub(crate) crl: Option<PathBuf>,
}

impl Files {
    /// Who has these looks into this list of revoked certificates.
    pub(crate) fn with_crl(mut self, list: PathBuf) -> Self {
        self.crl = Some(list);
        self
    }
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("root.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    /// Issues what Istio's CA would to `identity`, a SPIFFE id.
    pub(crate) fn issue(&self, identity: &str) -> Files {
        self.issue_with(identity, |_| ())
    }

    /// The same, changed before it is signed.
    pub(crate) fn issue_with(
        &self,
        identity: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Files {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let stem = identity.replace([':', '/'], "_");
        let path = |extension: &str| self.folder.path().join(format!("{stem}.{extension}"));
        let files = Files {
            chain: path("crt"),
            key: path("key"),
            roots: self.folder.path().join("root.pem"),
            crl: None,
        };
        fs::write(&files.chain, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }

    /// Writes a list of revoked certificates.
    pub(crate) fn revoke(&self, serials: &[u64]) -> PathBuf {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: SerialNumber::from(*serial),
                    revocation_time: date_time_ymd(2020, 1, 1),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.folder.path().join("crl.pem");
        let list = params.signed_by(&self.issuer).unwrap();
        fs::write(&path, list.pem().unwrap()).unwrap();
        path
    }
}

/// What one Envoy does, as its static resources.
pub(crate) struct Role(String);

/// Envoy's `CommonTlsContext`, as a flow mapping: TLS 1.3, ALPN h2, these certificates, and a peer of
/// this identity.
fn tls_context(files: &Files, peer: &str) -> String {
    let Files {
        chain,
        key,
        roots,
        crl,
    } = files;
    let crl = crl
        .as_ref()
        .map(|list| format!(r#"crl: {{ filename: "{}" }},"#, list.display()));
    let crl = crl.unwrap_or_default();
    let (chain, key, roots) = (chain.display(), key.display(), roots.display());
    format!(
        r#"{{
        alpn_protocols: [h2],
        tls_params: {{ tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3 }},
        tls_certificates: [{{ certificate_chain: {{ filename: "{chain}" }}, private_key: {{ filename: "{key}" }} }}],
        validation_context: {{
          trusted_ca: {{ filename: "{roots}" }}, {crl}
          match_typed_subject_alt_names: [{{ san_type: URI, matcher: {{ exact: "{peer}" }} }}] }} }}"#
    )
}

const ACCESS_LOG: &str = r#"
          access_log:
          - name: envoy.access_loggers.file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: ACCESS_LOG_PATH
              log_format: { text_format_source: { inline_string: "FORMAT\n" } }"#;

impl Role {
    /// Any other.
    #[allow(dead_code, reason = "of mesh-core's tests")]
    pub(crate) fn of(resources: String) -> Self {
        Self(resources)
    }

    /// The same, with a part of its configuration replaced, which has to be there.
    pub(crate) fn replacing(self, part: &str, with: &str) -> Self {
        assert!(self.0.contains(part), "no {part} in {}", self.0);
        Self(self.0.replace(part, with))
    }

    /// Accepts tunnels from `peer` and joins each with a connection to `app`; CONNECT to
    /// `forbidden.example:80` is answered 403.
    pub(crate) fn server(files: &Files, on: IpAddr, peer: &str, app: SocketAddr) -> Self {
        let tls = tls_context(files, peer);
        let log = ACCESS_LOG.replace(
            "FORMAT",
            "%REQ(:METHOD)% %REQ(:AUTHORITY)% %RESPONSE_CODE% flags %RESPONSE_FLAGS% from %DOWNSTREAM_PEER_URI_SAN% forwarded %REQ(FORWARDED)%",
        );
        let (ip, port) = (app.ip(), app.port());
        Self(format!(
            r#"
  listeners:
  - name: tunnels
    stat_prefix: tunnels
    address: {{ socket_address: {{ address: "{on}", port_value: 0 }} }}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context: {tls}
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: tunnels
          codec_type: HTTP2
          http2_protocol_options: {{ allow_connect: true }}{log}
          route_config:
            virtual_hosts:
            - name: forbidden
              domains: ["forbidden.example:80"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                direct_response: {{ status: 403 }}
            - name: all
              domains: ["*"]
              routes:
              - match: {{ connect_matcher: {{}} }}
                response_headers_to_add:
                - header: {{ key: baggage, value: "k8s.namespace.name=default,service.name=envoy" }}
                route:
                  cluster: app
                  upgrade_configs: [{{ upgrade_type: CONNECT, connect_config: {{}} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: app
    type: STATIC
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{ip}", port_value: {port} }} }} }}
"#,
        ))
    }

    /// Accepts plain TCP and sends each connection to `authority` through a tunnel to `peer` at
    /// `server`.
    pub(crate) fn client(files: &Files, peer: &str, server: SocketAddr, authority: &str) -> Self {
        let tls = tls_context(files, peer);
        let log = ACCESS_LOG.replace(
            "FORMAT",
            "flags %RESPONSE_FLAGS% to %UPSTREAM_PEER_URI_SAN% failure %UPSTREAM_TRANSPORT_FAILURE_REASON%",
        );
        let (ip, port) = (server.ip(), server.port());
        Self(format!(
            r#"
  listeners:
  - name: plain
    stat_prefix: plain
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: 0 }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.tcp_proxy
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: plain
          cluster: tunnels{log}
          max_connect_attempts: 1
          tunneling_config:
            hostname: "{authority}"
            headers_to_add:
            - header: {{ key: baggage, value: "k8s.namespace.name=default,service.name=envoy" }}
  clusters:
  - name: tunnels
    type: STATIC
    load_assignment:
      cluster_name: tunnels
      endpoints:
      - lb_endpoints:
        - endpoint: {{ address: {{ socket_address: {{ address: "{ip}", port_value: {port} }} }} }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{ http2_protocol_options: {{}} }}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context: {tls}
"#,
        ))
    }
}

/// A running Envoy, killed when dropped.
pub(crate) struct Envoy {
    process: Child,
    admin: SocketAddr,
    listener: SocketAddr,
    folder: TempDir,
}

impl Envoy {
    /// Starts `program` and waits until it listens.
    pub(crate) async fn start(program: &Path, role: &Role) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let resources = role.0.replace(
            "ACCESS_LOG_PATH",
            &format!("\"{}\"", path("access.log").display()),
        );
        let admin = "admin: { address: { socket_address: { address: 127.0.0.1, port_value: 0 } } }";
        fs::write(
            path("envoy.yaml"),
            format!("{admin}\nstatic_resources:{resources}"),
        )
        .unwrap();
        let process = Command::new(program)
            .arg("--config-path")
            .arg(path("envoy.yaml"))
            .arg("--admin-address-path")
            .arg(path("admin"))
            .arg("--log-path")
            .arg(path("envoy.log"))
            .args([
                "--disable-hot-restart",
                "--concurrency",
                "1",
                "--log-level",
                "warning",
            ])
            .args(["--file-flush-interval-msec", "10"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut envoy = Self {
            process,
            admin: nowhere,
            listener: nowhere,
            folder,
        };
        let ready = timeout(PATIENCE, envoy.ready()).await.is_ok();
        assert!(ready, "Envoy does not start: {}", envoy.read("envoy.log"));
        envoy
    }

    async fn ready(&mut self) {
        loop {
            sleep(Duration::from_millis(20)).await;
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", self.read("envoy.log"));
            let Ok(admin) = self.read("admin").parse() else {
                continue;
            };
            self.admin = admin;
            if !self.get("/ready").await.contains("LIVE") {
                continue;
            }
            let listeners = self.get("/listeners").await;
            let line = listeners.lines().find_map(|line| line.split_once("::"));
            self.listener = line.unwrap().1.parse().unwrap();
            return;
        }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// What the admin interface answers.
    async fn get(&self, path: &str) -> String {
        let Ok(mut stream) = TcpStream::connect(self.admin).await else {
            return String::new();
        };
        let request = format!("GET {path} HTTP/1.1\r\nhost: envoy\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// The address of its one listener.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener
    }

    /// What a counter says, if it is there.
    pub(crate) async fn count(&self, counter: &str) -> Option<usize> {
        let stats = self.get(&format!("/stats?filter={counter}")).await;
        let line = format!("{counter}: ");
        let count = stats.lines().find_map(|stat| stat.strip_prefix(&line));
        count.map(|count| count.parse().unwrap())
    }

    /// Waits until a counter is at least 1.
    pub(crate) async fn counted(&self, counter: &str) {
        self.counted_to(counter, 1).await;
    }

    /// Waits until a counter is at least this.
    pub(crate) async fn counted_to(&self, counter: &str, least: usize) {
        let counted = async {
            while self.count(counter).await.is_none_or(|count| count < least) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(PATIENCE, counted).await.is_err() {
            let stats = self.get("/stats?usedonly&filter=tunnels").await;
            panic!(
                "{counter} stays below {least}: {stats}\n{}",
                self.read("access.log")
            );
        }
    }

    /// Waits until the access log has a line with all of `parts`.
    pub(crate) async fn logged(&self, parts: &[&str]) {
        let logged = async {
            loop {
                let log = self.read("access.log");
                if log
                    .lines()
                    .any(|line| parts.iter().all(|part| line.contains(part)))
                {
                    return;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let found = timeout(PATIENCE, logged).await.is_ok();
        assert!(found, "no {parts:?} in: {}", self.read("access.log"));
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// So many bytes, none of which tells what the next is.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}
