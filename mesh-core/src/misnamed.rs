//! Workloads whose certificates prove other identities than their records in the mesh have.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use tokio::time::Instant;

use crate::mesh::{MeshInner, WorkloadId};
use crate::sync::lock;

/// For so long a certificate and a record may be of two trust domains where nobody said which, before it is told: they come
/// at different times.
const SETTLED: Duration = Duration::from_secs(5 * 60);

/// A workload whose certificate proves another identity than its record has.
pub(crate) struct Misnamed<'a> {
    id: &'a WorkloadId,
    proven: Identity,
    expected: Identity,
}

impl fmt::Display for Misnamed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            proven,
            expected,
        } = self;
        write!(
            f,
            "the certificate of {id} proves {proven}, its record in the mesh is of {expected}: \
             give the builder the record's service account and trust domain"
        )
    }
}

/// What was told of a workload, and what may have to be.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Who it is and who its record says that it is, as told last.
    misnamed: Option<(Identity, Identity)>,
    /// Of two trust domains that nobody said.
    differ: Option<Differ>,
}

#[derive(Debug)]
struct Differ {
    proven: Identity,
    expected: Identity,
    since: Instant,
    told: bool,
}

impl MeshInner {
    /// What is wrong where this workload's own record has another identity than its certificate proves.
    pub(crate) fn misnamed(&self) -> Option<Misnamed<'_>> {
        let expected = self.misnamed.load();
        self.misnamed_by(expected.as_deref()?)
    }

    /// As [`misnamed`](Self::misnamed), of a record of `expected`. Where nobody said the trust domain, another one is no
    /// slip: records and certificates come at different times.
    pub(crate) fn misnamed_by(&self, expected: &Identity) -> Option<Misnamed<'_>> {
        let proven = self.identity();
        let permits = (self.settings().trust_domain_of).permits(expected, &proven);
        (!permits).then(|| Misnamed {
            id: &self.id,
            proven,
            expected: expected.clone(),
        })
    }

    /// What the workload's own record says of who it is has changed.
    pub(crate) fn expected_changed(&self, expected: Option<&Identity>) {
        // Certificates of others than who was asked for are refused.
        let permits = |expected| (self.settings().trust_domain_of).permits(expected, &self.asked);
        let misnamed = expected.filter(|expected| !permits(expected));
        if misnamed.is_none() {
            // Should it come again, it is told again.
            let mut told = lock(&self.told);
            told.misnamed = None;
        }
        if self.misnamed.load().as_deref() != misnamed {
            self.misnamed.store(misnamed.cloned().map(Arc::new));
        }
    }

    /// Says it, unless it was said before.
    pub(crate) fn tell(&self, misnamed: &Misnamed<'_>) {
        let pair = (misnamed.proven.clone(), misnamed.expected.clone());
        let is_new = {
            let mut told = lock(&self.told);
            told.misnamed.replace(pair.clone()) != Some(pair)
        };
        if is_new {
            tracing::warn!(target: "mesh::identity", %misnamed, "peers and their policies see the former");
        }
    }

    /// Who serves dials nobody: a record that became another's while it listens is said as well.
    pub(crate) fn tell_who_serves(&self) {
        if let Some(misnamed) = self.misnamed()
            && !self.ports().is_empty()
        {
            self.tell(&misnamed);
        }
    }

    /// Says once if the certificate and the record are of two trust domains that nobody said, and stay so.
    pub(crate) fn compare_trust_domains(&self, now: Instant) {
        let pair = self.proven().and_then(|proven| {
            let snapshot = self.node.inner.snapshot.load();
            let expected = self.record(&snapshot)?.identity()?.clone();
            let permits = (self.settings().trust_domain_of).permits(&expected, &proven);
            (expected != proven && permits).then_some((proven, expected))
        });
        let mut told = lock(&self.told);
        let Some((proven, expected)) = pair else {
            told.differ = None;
            return;
        };
        let stands = |differ: &&mut Differ| differ.proven == proven && differ.expected == expected;
        let Some(differ) = told.differ.as_mut().filter(stands) else {
            told.differ = Some(Differ {
                proven,
                expected,
                since: now,
                told: false,
            });
            return;
        };
        if now.duration_since(differ.since) >= SETTLED && !std::mem::replace(&mut differ.told, true)
        {
            tracing::warn!(
                target: "mesh::identity",
                workload = %self.id,
                %proven,
                %expected,
                "the certificate and the record in the mesh are of two trust domains: peers expect the record's and refuse \
                 the certificate's, which their policies see. Give whoever issues certificates and the mesh's configuration \
                 (trustDomain) the same one; until then members want the other among their trust domain aliases",
            );
        }
    }
}
