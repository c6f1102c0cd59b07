use std::fmt::Write as _;

use http::HeaderValue;

/// A workload as it describes itself: istio's `baggage` header.
///
/// On the wire it is `key=value` joined by commas, without spaces and without escaping. A value that
/// this form cannot carry (a comma, an equals sign, anything but visible ASCII) is left out rather
/// than sent as something else. An empty value is one that is not known.
///
/// # Examples
///
/// ```
/// use mesh_hbone::headers::Baggage;
///
/// let baggage = Baggage::default()
///     .with_namespace("default")
///     .with_workload("deployment", "reviews-v1");
/// assert_eq!(baggage.to_string(), "k8s.namespace.name=default,k8s.deployment.name=reviews-v1");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Baggage {
    cluster: Option<Box<str>>,
    namespace: Option<Box<str>>,
    workload_type: Option<WorkloadType>,
    workload_name: Option<Box<str>>,
    canonical_name: Option<Box<str>>,
    canonical_revision: Option<Box<str>>,
    region: Option<Box<str>>,
    zone: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorkloadType {
    Deployment,
    CronJob,
    Pod,
    Job,
}

impl WorkloadType {
    const ALL: [Self; 4] = [Self::Deployment, Self::CronJob, Self::Pod, Self::Job];

    fn name(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Deployment => "k8s.deployment.name",
            Self::CronJob => "k8s.cronjob.name",
            Self::Pod => "k8s.pod.name",
            Self::Job => "k8s.job.name",
        }
    }
}

const CLUSTER: &str = "k8s.cluster.name";
const NAMESPACE: &str = "k8s.namespace.name";
const CANONICAL_NAME: &str = "service.name";
const CANONICAL_REVISION: &str = "service.version";
const REGION: &str = "cloud.region";
const ZONE: &str = "cloud.availability_zone";

fn known<'a>(value: impl Into<Option<&'a str>>) -> Option<Box<str>> {
    value
        .into()
        .filter(|value| !value.is_empty())
        .map(Into::into)
}

fn fits(value: &str) -> bool {
    value
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b',' && byte != b'=')
}

impl Baggage {
    /// Sets the cluster.
    #[must_use]
    pub fn with_cluster<'a>(mut self, cluster: impl Into<Option<&'a str>>) -> Self {
        self.cluster = known(cluster);
        self
    }

    /// Sets the namespace.
    #[must_use]
    pub fn with_namespace<'a>(mut self, namespace: impl Into<Option<&'a str>>) -> Self {
        self.namespace = known(namespace);
        self
    }

    /// Sets the workload's type (`deployment`, `cronjob`, `pod`, `job`, in any case) and name. A name
    /// of any other type has no place in the header and is left out.
    #[must_use]
    pub fn with_workload<'a>(mut self, kind: &str, name: impl Into<Option<&'a str>>) -> Self {
        self.workload_type = WorkloadType::ALL
            .into_iter()
            .find(|known| known.name().eq_ignore_ascii_case(kind));
        self.workload_name = known(name);
        self
    }

    /// Sets the canonical service name.
    #[must_use]
    pub fn with_canonical_name<'a>(mut self, name: impl Into<Option<&'a str>>) -> Self {
        self.canonical_name = known(name);
        self
    }

    /// Sets the canonical revision.
    #[must_use]
    pub fn with_canonical_revision<'a>(mut self, revision: impl Into<Option<&'a str>>) -> Self {
        self.canonical_revision = known(revision);
        self
    }

    /// Sets the region.
    #[must_use]
    pub fn with_region<'a>(mut self, region: impl Into<Option<&'a str>>) -> Self {
        self.region = known(region);
        self
    }

    /// Sets the availability zone.
    #[must_use]
    pub fn with_zone<'a>(mut self, zone: impl Into<Option<&'a str>>) -> Self {
        self.zone = known(zone);
        self
    }

    /// `k8s.cluster.name`.
    pub fn cluster(&self) -> Option<&str> {
        self.cluster.as_deref()
    }

    /// `k8s.namespace.name`: what the peer says; its certificate knows better.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// `deployment`, `cronjob`, `pod` or `job`.
    pub fn workload_type(&self) -> Option<&'static str> {
        self.workload_type.map(WorkloadType::name)
    }

    /// `k8s.<type>.name`.
    pub fn workload_name(&self) -> Option<&str> {
        self.workload_name.as_deref()
    }

    /// `service.name`.
    pub fn canonical_name(&self) -> Option<&str> {
        self.canonical_name.as_deref()
    }

    /// `service.version`.
    pub fn canonical_revision(&self) -> Option<&str> {
        self.canonical_revision.as_deref()
    }

    /// `cloud.region`.
    pub fn region(&self) -> Option<&str> {
        self.region.as_deref()
    }

    /// `cloud.availability_zone`.
    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    /// Reads the lines of the header as istio/ztunnel does: the last of a key wins, unknown keys are
    /// skipped, nothing is trimmed, and text after a second `=` is dropped. `None` without a line, or
    /// when one is not visible ASCII.
    pub(super) fn parse<'a>(lines: impl IntoIterator<Item = &'a HeaderValue>) -> Option<Self> {
        let mut read = None;
        for line in lines {
            let line = line.to_str().ok()?;
            let baggage: &mut Self = read.get_or_insert_default();
            for member in line.split(',') {
                let mut parts = member.split('=');
                if let (Some(key), Some(value)) = (parts.next(), parts.next()) {
                    baggage.set(key, value);
                }
            }
        }
        read
    }

    fn set(&mut self, key: &str, value: &str) {
        let slot = match key {
            CLUSTER => &mut self.cluster,
            NAMESPACE => &mut self.namespace,
            CANONICAL_NAME => &mut self.canonical_name,
            CANONICAL_REVISION => &mut self.canonical_revision,
            REGION => &mut self.region,
            ZONE => &mut self.zone,
            _ => match WorkloadType::ALL
                .into_iter()
                .find(|known| known.key() == key)
            {
                Some(kind) => {
                    self.workload_type = Some(kind);
                    &mut self.workload_name
                }
                None => return,
            },
        };
        *slot = known(value);
    }

    pub(super) fn value(&self) -> HeaderValue {
        super::ascii(self.to_string())
    }
}

/// The header's value.
impl std::fmt::Display for Baggage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let workload = self.workload_type.map_or("", WorkloadType::key);
        let items = [
            (CLUSTER, &self.cluster),
            (NAMESPACE, &self.namespace),
            (workload, &self.workload_name),
            (CANONICAL_NAME, &self.canonical_name),
            (CANONICAL_REVISION, &self.canonical_revision),
            (REGION, &self.region),
            (ZONE, &self.zone),
        ];
        let mut first = true;
        for (key, value) in items {
            if let Some(value) = value.as_deref()
                && !key.is_empty()
                && fits(value)
            {
                if !first {
                    f.write_char(',')?;
                }
                first = false;
                write!(f, "{key}={value}")?;
            }
        }
        Ok(())
    }
}
