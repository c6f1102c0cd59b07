//! The metrics as a scrape sees them.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_authz::Identity;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder,
    MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;

use super::{BOUNDS, Closed, Histogram, Inner, Metrics, Opened, Overflow, Requests};
use crate::telemetry::outcome::OutcomeKind;
use crate::telemetry::{ConnectionFlag, Labels, Peer, Reporter, RequestProtocol};

/// The value of a label that says nothing (ztunnel and Istio's proxies alike).
const UNKNOWN: &str = "unknown";
/// The value of the labels of what found no room.
const OVERFLOW: &str = "overflow";

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let inner = &*self.inner;
        inner.encode_opened(&mut encoder)?;
        inner.encode_closed(&mut encoder)?;
        inner.encode_requests(&mut encoder)?;
        inner.encode_build(&mut encoder)
    }
}

/// One line's label set: a connection's, or the overflow's.
#[derive(Clone)]
enum Subject {
    Own(Labels),
    Overflow(Reporter),
}

impl Subject {
    fn labels(&self) -> Option<&Labels> {
        match self {
            Self::Own(labels) => Some(labels),
            Self::Overflow(_) => None,
        }
    }

    fn reporter(&self) -> Reporter {
        match self {
            Self::Own(labels) => labels.reporter(),
            Self::Overflow(reporter) => *reporter,
        }
    }
}

impl Inner {
    fn overflows(&self) -> [(Reporter, &Overflow); 2] {
        [
            (Reporter::Source, &self.overflow[0]),
            (Reporter::Destination, &self.overflow[1]),
        ]
    }

    fn encode_opened(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut lines: Vec<(TcpLabels, Arc<Opened>)> = Vec::new();
        for (labels, series) in self.opened.snapshot() {
            lines.push((TcpLabels::own(labels, ConnectionFlag::None), series));
        }
        for (reporter, overflow) in self.overflows() {
            if load(&overflow.opened.opened) > 0 {
                lines.push((TcpLabels::overflow(reporter), Arc::clone(&overflow.opened)));
            }
        }
        counters(
            encoder,
            "istio_tcp_connections_opened",
            "The total number of TCP connections opened.",
            lines.iter().map(|(labels, s)| (labels, load(&s.opened))),
        )?;
        counters(
            encoder,
            "istio_tcp_received_bytes",
            "The size of total bytes received during request in case of a TCP connection.",
            lines.iter().map(|(labels, s)| (labels, load(&s.received))),
        )?;
        counters(
            encoder,
            "istio_tcp_sent_bytes",
            "The size of total bytes sent during response in case of a TCP connection.",
            lines.iter().map(|(labels, s)| (labels, load(&s.sent))),
        )
    }

    fn encode_closed(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let read = |series: &Closed| (load(&series.closed), load(&series.failed));
        let mut lines: Vec<(TcpLabels, (u64, u64))> = Vec::new();
        for ((labels, flag), series) in self.closed.snapshot() {
            lines.push((TcpLabels::own(labels, flag), read(&series)));
        }
        for (reporter, overflow) in self.overflows() {
            lines.push((TcpLabels::overflow(reporter), read(&overflow.closed)));
        }
        let closed = lines.iter().map(|(labels, (closed, _))| (labels, *closed));
        counters(
            encoder,
            "istio_tcp_connections_closed",
            "The total number of TCP connections closed.",
            closed.filter(|(_, count)| *count > 0),
        )?;
        let failed = lines.iter().map(|(labels, (_, failed))| (labels, *failed));
        counters(
            encoder,
            "istio_tcp_connections_failed",
            "The total number of TCP connections that failed (unstable).",
            failed.filter(|(_, count)| *count > 0),
        )
    }

    fn encode_requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut lines: Vec<(RequestLabels, [Read; 3])> = Vec::new();
        for ((labels, kind), series) in self.requests.snapshot() {
            let labels = RequestLabels {
                subject: Subject::Own(labels),
                outcome: Outcome::Own(kind),
            };
            lines.push((labels, Read::all(&series)));
        }
        for (reporter, overflow) in self.overflows() {
            for (protocol, series) in [
                (RequestProtocol::Http, &overflow.http),
                (RequestProtocol::Grpc, &overflow.grpc),
            ] {
                let labels = RequestLabels {
                    subject: Subject::Overflow(reporter),
                    outcome: Outcome::Overflow(protocol),
                };
                lines.push((labels, Read::all(series)));
            }
        }
        lines.retain(|(_, [duration, ..])| duration.count > 0);
        counters(
            encoder,
            "istio_requests",
            "The total number of requests.",
            (lines.iter()).map(|(labels, [duration, ..])| (labels, duration.count)),
        )?;
        if lines.is_empty() {
            return Ok(());
        }
        for (at, (name, help)) in HISTOGRAMS.into_iter().enumerate() {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (labels, histograms) in &lines {
                histograms[at].encode(family.encode_family(labels)?)?;
            }
        }
        Ok(())
    }

    fn encode_build(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = encoder.encode_descriptor(
            "istio_build",
            "Istio component build info.",
            None,
            MetricType::Gauge,
        )?;
        let labels = [
            ("component", &*self.settings.component),
            ("tag", &*self.settings.tag),
        ];
        family.encode_family(&labels)?.encode_gauge(&1_u64)
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Writes a family of counters; one without lines is left out, name and all.
fn counters<'a, L: EncodeLabelSet + 'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    lines: impl Iterator<Item = (&'a L, u64)>,
) -> fmt::Result {
    let mut lines = lines.peekable();
    if lines.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in lines {
        family
            .encode_family(labels)?
            .encode_counter::<NoLabelSet, _, u64>(&value, None)?;
    }
    Ok(())
}

/// Names and descriptions, in the order of [`Read::all`].
const HISTOGRAMS: [(&str, &str); 3] = [
    (
        "istio_request_duration_milliseconds",
        "The duration of requests, in milliseconds.",
    ),
    (
        "istio_request_bytes",
        "The size of requests: header names and values, body and trailers, in bytes.",
    ),
    (
        "istio_response_bytes",
        "The size of responses: header names and values, body and trailers, in bytes.",
    ),
];

/// A histogram at one moment: its count is the sum of the buckets that were read, so the two agree.
struct Read {
    buckets: Vec<(f64, u64)>,
    count: u64,
    sum: f64,
}

impl Read {
    fn all(series: &Requests) -> [Self; 3] {
        [
            Self::of(&series.duration, 1e3),
            Self::of(&series.request_bytes, 1.0),
            Self::of(&series.response_bytes, 1.0),
        ]
    }

    /// Of a histogram whose sum is in parts of the unit.
    fn of(histogram: &Histogram, parts: f64) -> Self {
        let bounds = BOUNDS
            .iter()
            .map(|thousandths| *thousandths as f64 / 1e3)
            .chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(histogram.buckets.iter().map(load)).collect();
        Self {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum: load(&histogram.sum) as f64 / parts,
            buckets,
        }
    }

    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }
}

/// Labels of the TCP metrics, in the order in which ztunnel writes them.
struct TcpLabels {
    subject: Subject,
    flags: &'static str,
}

impl TcpLabels {
    fn own(labels: Labels, flag: ConnectionFlag) -> Self {
        Self {
            subject: Subject::Own(labels),
            flags: flag.as_str(),
        }
    }

    fn overflow(reporter: Reporter) -> Self {
        Self {
            subject: Subject::Overflow(reporter),
            flags: OVERFLOW,
        }
    }
}

/// Labels of the request metrics, in the order in which Istio's proxies write them.
struct RequestLabels {
    subject: Subject,
    outcome: Outcome,
}

enum Outcome {
    Own(OutcomeKind),
    Overflow(RequestProtocol),
}

type Field = (&'static str, fn(&Labels) -> Value<'_>);

/// A label's value, not yet formatted.
enum Value<'a> {
    Text(Option<&'a str>),
    Principal(Option<&'a Identity>),
}

impl EncodeLabelValue for Value<'_> {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Text(Some(text)) => encoder.write_str(text),
            Self::Principal(Some(principal)) => write!(encoder, "{principal}"),
            Self::Text(None) | Self::Principal(None) => encoder.write_str(UNKNOWN),
        }
    }
}

const SOURCE: [Field; 8] = [
    ("source_workload", |l| Value::Text(l.source().workload())),
    ("source_canonical_service", |l| {
        Value::Text(l.source().canonical_service())
    }),
    ("source_canonical_revision", |l| {
        Value::Text(l.source().canonical_revision())
    }),
    ("source_workload_namespace", |l| {
        Value::Text(l.source().namespace())
    }),
    ("source_principal", |l| {
        Value::Principal(l.source().principal())
    }),
    ("source_app", |l| Value::Text(l.source().app())),
    ("source_version", |l| Value::Text(l.source().version())),
    ("source_cluster", |l| Value::Text(l.source().cluster())),
];

const SERVICE: Field = ("destination_service", |l| {
    Value::Text(l.service().and_then(|service| service.hostname()))
});
const SERVICE_NAMESPACE: Field = ("destination_service_namespace", |l| {
    Value::Text(l.service().and_then(|service| service.namespace()))
});
const SERVICE_NAME: Field = ("destination_service_name", |l| {
    Value::Text(l.service().and_then(|service| service.name()))
});
const WORKLOAD: Field = ("destination_workload", |l| {
    Value::Text(l.destination().workload())
});
const CANONICAL_SERVICE: Field = ("destination_canonical_service", |l| {
    Value::Text(l.destination().canonical_service())
});
const CANONICAL_REVISION: Field = ("destination_canonical_revision", |l| {
    Value::Text(l.destination().canonical_revision())
});
const WORKLOAD_NAMESPACE: Field = ("destination_workload_namespace", |l| {
    Value::Text(l.destination().namespace())
});
const PRINCIPAL: Field = ("destination_principal", |l| {
    Value::Principal(l.destination().principal())
});
const APP: Field = ("destination_app", |l| Value::Text(l.destination().app()));
const VERSION: Field = ("destination_version", |l| {
    Value::Text(l.destination().version())
});
const CLUSTER: Field = ("destination_cluster", |l| {
    Value::Text(l.destination().cluster())
});

const TCP_DESTINATION: [Field; 11] = [
    SERVICE,
    SERVICE_NAMESPACE,
    SERVICE_NAME,
    WORKLOAD,
    CANONICAL_SERVICE,
    CANONICAL_REVISION,
    WORKLOAD_NAMESPACE,
    PRINCIPAL,
    APP,
    VERSION,
    CLUSTER,
];

const REQUEST_DESTINATION: [Field; 11] = [
    WORKLOAD,
    WORKLOAD_NAMESPACE,
    PRINCIPAL,
    APP,
    VERSION,
    SERVICE,
    CANONICAL_SERVICE,
    CANONICAL_REVISION,
    SERVICE_NAME,
    SERVICE_NAMESPACE,
    CLUSTER,
];

/// Only on TCP metrics, and only where a workload is known.
const LOCALITY: [Field; 4] = [
    ("source_region", |l| Value::Text(l.source().region())),
    ("source_zone", |l| Value::Text(l.source().zone())),
    ("destination_region", |l| {
        Value::Text(l.destination().region())
    }),
    ("destination_zone", |l| Value::Text(l.destination().zone())),
];

struct Writer<'a, 'b> {
    encoder: &'a mut LabelSetEncoder<'b>,
    subject: &'a Subject,
}

impl Writer<'_, '_> {
    fn text(&mut self, name: &str, value: &str) -> fmt::Result {
        self.write(name, &Value::Text(Some(value)))
    }

    fn fields(&mut self, fields: &[Field]) -> fmt::Result {
        let subject = self.subject;
        for (name, value) in fields {
            match subject.labels() {
                Some(labels) => self.write(name, &value(labels))?,
                None => self.text(name, OVERFLOW)?,
            }
        }
        Ok(())
    }

    fn security(&mut self) -> fmt::Result {
        let policy = match self.subject.labels() {
            Some(labels) => labels.security().as_str(),
            None => OVERFLOW,
        };
        self.text("connection_security_policy", policy)
    }

    fn write(&mut self, name: &str, value: &Value<'_>) -> fmt::Result {
        let mut label = self.encoder.encode_label();
        let mut key = label.encode_label_key()?;
        key.write_str(name)?;
        let mut encoder = key.encode_label_value()?;
        value.encode(&mut encoder)?;
        encoder.finish()
    }
}

impl EncodeLabelSet for TcpLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut writer = Writer {
            encoder,
            subject: &self.subject,
        };
        writer.text("reporter", self.subject.reporter().as_str())?;
        writer.fields(&SOURCE)?;
        writer.fields(&TCP_DESTINATION)?;
        writer.text("request_protocol", "tcp")?;
        writer.text("response_flags", self.flags)?;
        writer.security()?;
        let known = |peer: &Peer| peer.is_known();
        match self.subject.labels() {
            Some(l) if !known(l.source()) && !known(l.destination()) => Ok(()),
            _ => writer.fields(&LOCALITY),
        }
    }
}

impl EncodeLabelSet for RequestLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        let mut writer = Writer {
            encoder,
            subject: &self.subject,
        };
        writer.text("reporter", self.subject.reporter().as_str())?;
        writer.fields(&SOURCE)?;
        writer.fields(&REQUEST_DESTINATION)?;
        match &self.outcome {
            Outcome::Own(kind) => {
                writer.text("request_protocol", kind.protocol.as_str())?;
                writer.text("response_code", &kind.response_code.to_string())?;
                // Envoy leaves it empty, not `unknown`, on what is not gRPC.
                writer.text("grpc_response_status", kind.grpc_status().unwrap_or(""))?;
                writer.text("response_flags", kind.flags())?;
            }
            Outcome::Overflow(protocol) => {
                writer.text("request_protocol", protocol.as_str())?;
                writer.text("response_code", OVERFLOW)?;
                writer.text("grpc_response_status", OVERFLOW)?;
                writer.text("response_flags", OVERFLOW)?;
            }
        }
        writer.security()
    }
}
