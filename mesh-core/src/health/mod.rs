//! How the application is, as a probe finds it.
//!
//! A host outside Kubernetes has no kubelet: whether its application is to get traffic is for the mesh to find
//! out, and to report to the control plane that the host is registered with. [`Probe`] says how;
//! [`Mesh::report_health`](crate::Mesh::report_health) is the application's own word, which counts as well.

mod check;
mod http;
mod metadata;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::time::Duration;

use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use crate::{Error, ErrorKind};

pub(crate) use run::run;

/// A readiness probe, with the meaning and the defaults that istio-agent gives a WorkloadGroup's.
///
/// It is tried every [`period`](Self::period), first after the [initial delay](Self::initial_delay) and not
/// before the mesh has its configuration and certificate: until then nobody could reach the application.
/// Before the first verdict nothing is reported, and the control plane has the host as unhealthy.
///
/// The target is plain HTTP, TCP or gRPC on the workload's own first address unless
/// [`host`](Self::host) says otherwise. The probe is a plaintext client like any other, whom pilot-agent's would go
/// around the sidecar: a port that this mesh serves is no good target under STRICT mutual TLS, or where an ALLOW
/// policy applies that does not let plaintext in for the probe's path. There another port is probed, or the
/// application says itself how it is, by [`Mesh::report_health`](crate::Mesh::report_health); a verdict that the
/// workload's own policies are the reason of says so.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use mesh_core::health::Probe;
///
/// let probe = Probe::http(8080).path("/ready").period(Duration::from_secs(5)).failure_threshold(3);
/// # let _ = probe;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    check: Check,
    timing: Timing,
}

/// What is tried.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    Http {
        target: Target,
        path: String,
        headers: Vec<(String, String)>,
    },
    Tcp(Target),
    Grpc {
        target: Target,
        service: String,
    },
    Exec(Vec<String>),
}

/// A probe's request, as policies see it.
struct Asked<'a> {
    method: Method,
    host: String,
    path: &'a str,
    headers: HeaderMap,
}

impl<'a> Asked<'a> {
    fn new(method: Method, path: &'a str, host: &str, fields: &[(&str, &str)]) -> Self {
        let parsed = |(name, value): &(&str, &str)| Some((name.parse().ok()?, value.parse().ok()?));
        let mut headers = HeaderMap::new();
        for (name, value) in fields.iter().filter_map(parsed) {
            let (name, value): (HeaderName, HeaderValue) = (name, value);
            headers.append(name, value);
        }
        let given = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        Self {
            host: given.unwrap_or(host).to_owned(),
            method,
            path: path.split(['?', '#']).next().unwrap_or(path),
            headers,
        }
    }
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    /// The workload's own address unless set.
    host: Option<String>,
    port: u16,
}

/// When, and how often before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    initial_delay: Duration,
    timeout: Duration,
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
}

impl Default for Timing {
    /// istio-agent's (`pkg/istio-agent/health/health_check.go`); one failure is enough, whatever the
    /// comment in the API says.
    fn default() -> Self {
        Self {
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(1),
            period: Duration::from_secs(10),
            success_threshold: 1,
            failure_threshold: 1,
        }
    }
}

impl Probe {
    fn new(check: Check) -> Self {
        Self {
            check,
            timing: Timing::default(),
        }
    }

    /// `GET /` on this port: a status of 200 to 399 is healthy.
    pub fn http(port: u16) -> Self {
        Self::new(Check::Http {
            target: Target { host: None, port },
            path: "/".to_owned(),
            headers: Vec::new(),
        })
    }

    /// A TCP connection to this port: that it comes about is healthy.
    pub fn tcp(port: u16) -> Self {
        Self::new(Check::Tcp(Target { host: None, port }))
    }

    /// gRPC's health checking protocol, in plaintext on this port: SERVING is healthy.
    pub fn grpc(port: u16) -> Self {
        Self::new(Check::Grpc {
            target: Target { host: None, port },
            service: String::new(),
        })
    }

    /// A program with its arguments, without a shell: exit status 0 is healthy. When it takes longer than the
    /// [time-out](Self::timeout) it is killed, with all that it has started (its process group, on Unix).
    pub fn exec(command: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::new(Check::Exec(command.into_iter().map(Into::into).collect()))
    }

    /// Sets the path of an HTTP probe, with its query: `/` unless set. Others have none.
    #[must_use]
    pub fn path(mut self, of: impl Into<String>) -> Self {
        if let Check::Http { path, .. } = &mut self.check {
            *path = of.into();
        }
        self
    }

    /// Adds a header to an HTTP probe. `Host` sets the authority, which is the target's unless set.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        if let Check::Http { headers, .. } = &mut self.check {
            headers.push((name.into(), value.into()));
        }
        self
    }

    /// Sets the service that a gRPC probe asks about: the server as a whole unless set.
    #[must_use]
    pub fn service(mut self, of: impl Into<String>) -> Self {
        if let Check::Grpc { service, .. } = &mut self.check {
            *service = of.into();
        }
        self
    }

    /// Sets the host to connect to, a name or an address: the workload's own first address unless set. Names are
    /// looked up as those of connections are ([`max_lookups`](crate::Builder::max_lookups),
    /// [`lookup_ttl`](crate::Builder::lookup_ttl)).
    #[must_use]
    pub fn host(mut self, host: impl Into<String>) -> Self {
        if let Some(target) = self.target_mut() {
            target.host = Some(host.into());
        }
        self
    }

    /// Sets how long after the start the first try is: at once unless set.
    #[must_use]
    pub fn initial_delay(mut self, delay: Duration) -> Self {
        self.timing.initial_delay = delay;
        self
    }

    /// Sets how long a try may take: 1 s unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timing.timeout = timeout;
        self
    }

    /// Sets how long after one try's beginning the next begins: 10 s unless set. Two never overlap.
    #[must_use]
    pub fn period(mut self, period: Duration) -> Self {
        self.timing.period = period;
        self
    }

    /// Sets how many tries in a row have to succeed before the application counts as healthy: 1 unless
    /// set.
    #[must_use]
    pub fn success_threshold(mut self, tries: u32) -> Self {
        self.timing.success_threshold = tries;
        self
    }

    /// Sets how many tries in a row have to fail before the application counts as unhealthy: 1 unless
    /// set, as in istio-agent.
    #[must_use]
    pub fn failure_threshold(mut self, tries: u32) -> Self {
        self.timing.failure_threshold = tries;
        self
    }

    fn target_mut(&mut self) -> Option<&mut Target> {
        match &mut self.check {
            Check::Http { target, .. } | Check::Tcp(target) | Check::Grpc { target, .. } => {
                Some(target)
            }
            Check::Exec(_) => None,
        }
    }

    /// The port of the workload's own address that it asks, if it does, and the request that it makes.
    fn of_own(&self, own: IpAddr) -> Option<(u16, Option<Asked<'_>>)> {
        let (target, request) = match &self.check {
            Check::Http {
                target,
                path,
                headers,
            } => {
                let host = target.authority(own);
                let fields = http::fields(&host, headers);
                (target, Some(Asked::new(Method::GET, path, &host, &fields)))
            }
            Check::Tcp(target) => (target, None),
            Check::Grpc { target, .. } => {
                let path = "/grpc.health.v1.Health/Check";
                let fields = [("content-type", "application/grpc"), ("te", "trailers")];
                let host = target.authority(own);
                (target, Some(Asked::new(Method::POST, path, &host, &fields)))
            }
            Check::Exec(_) => return None,
        };
        let host = target.host.as_deref();
        let is_own = host.is_none_or(|host| host.parse() == Ok(own));
        is_own.then_some((target.port, request))
    }

    /// Probes this host where none was set.
    pub(crate) fn or_host(mut self, host: &str) -> Self {
        if let Some(target) = self.target_mut()
            && target.host.is_none()
        {
            target.host = Some(host.to_owned());
        }
        self
    }

    /// # Errors
    ///
    /// Which part of it is no good.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let wrong = |what: &str| {
            let detail = format!("readiness_probe: {what}");
            Err(Error::new(ErrorKind::Config).with_detail(detail))
        };
        let target = match &self.check {
            Check::Http { target, .. } | Check::Tcp(target) | Check::Grpc { target, .. } => {
                Some(target)
            }
            Check::Exec(_) => None,
        };
        if target.is_some_and(|target| target.port == 0) {
            return wrong("port: expected 1 to 65535, found 0");
        }
        if target.is_some_and(|target| target.host.as_deref() == Some("")) {
            return wrong("host: expected a name or an address, found nothing");
        }
        match &self.check {
            Check::Http { path, headers, .. } => {
                if !path.starts_with('/') || path.parse::<PathAndQuery>().is_err() {
                    return wrong(&format!(
                        "path: expected one that begins with /, found {path:?}"
                    ));
                }
                for (name, value) in headers {
                    if name.parse::<HeaderName>().is_err() || value.parse::<HeaderValue>().is_err()
                    {
                        return wrong(&format!("header {name:?}: it cannot be sent"));
                    }
                }
            }
            Check::Exec(command) if command.is_empty() => {
                return wrong("exec: expected a program, found nothing");
            }
            _ => {}
        }
        let Timing {
            timeout,
            period,
            success_threshold,
            failure_threshold,
            ..
        } = self.timing;
        if timeout.is_zero() || period.is_zero() {
            return wrong("timeout, period: expected more than 0");
        }
        if success_threshold == 0 || failure_threshold == 0 {
            return wrong("success_threshold, failure_threshold: expected at least 1");
        }
        Ok(())
    }
}
