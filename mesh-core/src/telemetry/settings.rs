//! The bounds of metrics.

use std::borrow::Cow;
use std::time::Duration;

/// The bounds of [`Metrics`](super::Metrics), and the name they are reported under.
#[derive(Debug, Clone)]
pub struct MetricsSettings {
    pub(super) max_series: usize,
    pub(super) idle: Duration,
    pub(super) component: Cow<'static, str>,
    pub(super) tag: Cow<'static, str>,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            max_series: 10_000,
            idle: Duration::from_secs(600),
            component: Cow::Borrowed("mesh-core"),
            tag: Cow::Borrowed(env!("CARGO_PKG_VERSION")),
        }
    }
}

impl MetricsSettings {
    /// Sets how many series are kept: one is one label set of one metric, a histogram being one metric.
    ///
    /// Default 10 000. What would need one more is counted under the label set `overflow`, so the
    /// sums stay right. A peer can have labels of its choice counted (CVE-2025-43915), hence the bound.
    pub fn with_max_series(mut self, max_series: usize) -> Self {
        self.max_series = max_series;
        self
    }

    /// Sets after which time a series that nothing was counted in, and that no live connection uses, is
    /// forgotten. Default 10 minutes: longer than two scrapes of anybody.
    pub fn with_idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Sets the labels of `istio_build`. Default: `mesh-core` and its version.
    pub fn with_build(
        mut self,
        component: impl Into<Cow<'static, str>>,
        tag: impl Into<Cow<'static, str>>,
    ) -> Self {
        self.component = component.into();
        self.tag = tag.into();
        self
    }
}
