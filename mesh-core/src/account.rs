//! Ties connections to their metrics and access log: labels once, then counting.

use std::io;
use std::sync::Arc;

use tokio::time::Instant;

use crate::net::{Account, CutReason};
use crate::snapshot::{ServiceRecord, WorkloadRecord};
use crate::telemetry::{
    AccessLog, ConnectionFlag, DestinationService, Labels, Metrics, Peer, Reporter, TcpConnection,
};
use crate::{Error, ErrorKind};

/// All but the principal, which depends on the connection.
pub(crate) fn peer(record: &WorkloadRecord) -> Peer {
    Peer::new(
        Arc::clone(record.workload_name()),
        Arc::clone(record.namespace()),
    )
    .with_canonical_service(Arc::clone(record.canonical_name()))
    .with_canonical_revision(Arc::clone(record.canonical_revision()))
    .with_cluster(Arc::clone(record.cluster_id()))
    .with_locality(Arc::clone(record.region()), Arc::clone(record.zone()))
    .with_instance(record.name())
}

pub(crate) fn service(record: &ServiceRecord) -> DestinationService {
    let name = record.name();
    DestinationService::new(
        name.hostname(),
        Arc::clone(record.object_name()),
        name.namespace(),
    )
}

/// What is reported of one TCP connection from its opening to its end.
pub(crate) struct Connection {
    log: AccessLog,
    reporter: Reporter,
    counted: Option<TcpConnection>,
    opened: Instant,
    failure: Option<Error>,
}

impl Connection {
    /// Reports the connection as opened.
    pub(crate) fn open(metrics: &Metrics, labels: &Labels, log: AccessLog) -> Self {
        log.opened();
        Self {
            log,
            reporter: labels.reporter(),
            counted: Some(metrics.tcp_opened(labels)),
            opened: Instant::now(),
            failure: None,
        }
    }
}

impl Account for Connection {
    fn read(&mut self, bytes: usize) {
        let Some(counted) = &self.counted else { return };
        match self.reporter {
            Reporter::Source => counted.add_sent(bytes as u64),
            Reporter::Destination => counted.add_received(bytes as u64),
        }
    }

    fn wrote(&mut self, bytes: usize) {
        let Some(counted) = &self.counted else { return };
        match self.reporter {
            Reporter::Source => counted.add_received(bytes as u64),
            Reporter::Destination => counted.add_sent(bytes as u64),
        }
    }

    fn failed(&mut self, error: &io::Error, cut: Option<(CutReason, Option<&str>)>) {
        if self.failure.is_some() {
            return;
        }
        self.failure = Some(match cut {
            Some((reason, why)) => {
                let kind = match reason {
                    CutReason::Policy => ErrorKind::Denied,
                    CutReason::Drain => ErrorKind::Draining,
                    CutReason::Revoked => ErrorKind::TlsHandshake,
                    CutReason::Expired => ErrorKind::Identity,
                };
                let error = Error::new(kind);
                match why {
                    Some(why) => error.with_detail(format!("{}: {why}", reason.as_str())),
                    None => error.with_detail(reason.as_str()),
                }
            }
            // The error stays the caller's; this end keeps what it says.
            None => Error::from(io::Error::new(error.kind(), error.to_string())),
        });
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let Some(counted) = self.counted.take() else {
            return;
        };
        let flag = self
            .failure
            .as_ref()
            .map_or(ConnectionFlag::None, |error| error.kind().into());
        let traffic = counted.close(flag);
        match &self.failure {
            None => self.log.complete(traffic, self.opened.elapsed()),
            Some(error) => self.log.failed(traffic, self.opened.elapsed(), error),
        }
    }
}

/// Reports a connection that was refused before it opened.
pub(crate) fn refused(metrics: &Metrics, labels: &Labels, log: &AccessLog, error: &Error) {
    metrics.tcp_refused(labels, error.kind().into());
    log.failed(Default::default(), Default::default(), error);
}

/// Reports an attempt to open a connection that another follows.
pub(crate) fn passed_over(metrics: &Metrics, labels: &Labels, log: &AccessLog, error: &Error) {
    metrics.tcp_refused(labels, error.kind().into());
    log.passed_over(error);
}
