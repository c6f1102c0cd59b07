//! The one task that fetches certificates: a thin shell around [`Schedule`].

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::mem::take;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{AbortHandle, Abortable, BoxFuture, FutureExt};
use futures_util::stream::FuturesUnordered;
use mesh_authz::Identity;
use mesh_hbone::tls::Bundle;
use rustls_pki_types::CertificateDer;
use tokio::time::{Instant, sleep_until};

use super::schedule::{Limits, Schedule, Step, Ticket};
use super::store::Store;
use super::trust::{Change, Trust};
use super::watch::{Ask, Failed, Fetched, Latest, Shared};
use crate::identity::renew::Now;
use crate::identity::renewed::judge_in;
use crate::identity::{Error, ErrorKind};

/// Runs until nobody can watch any more.
pub(super) async fn run(shared: Arc<Shared>) {
    let _ends = Ends(&shared);
    let trust = Trust::open(&shared.settings).await;
    let mut work = Work::new(&shared, trust);
    loop {
        work.look_who_came();
        let wake = work.step();
        tokio::select! {
            Some(event) = work.events.next(), if !work.events.is_empty() => work.take(event),
            change = work.trust.changed() => work.trust_changed(change),
            () = sleep_until(wake) => {}
            () = shared.wake.notified() => {}
        }
        if shared.state().closed {
            return;
        }
    }
}

/// Tells those who watch that the task has gone, whatever ended it.
struct Ends<'a>(&'a Shared);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running = false;
        state.broken |= std::thread::panicking();
        // Whoever watches one begins anew.
        state.begin_anew();
    }
}

/// What comes back from outside.
enum Event {
    Fetched(Ticket, Result<Fetched, Failed>),
    Restored(Identity, u64, Option<Bundle>),
    Stored,
    /// It was forgotten meanwhile.
    Dropped,
}

struct Work<'a> {
    shared: &'a Shared,
    schedule: Schedule,
    kept: HashMap<Identity, Kept>,
    events: FuturesUnordered<BoxFuture<'static, Event>>,
    trust: Trust,
    store: Store,
}

/// An identity that is in the schedule, or about to be.
struct Kept {
    slot: u64,
    issued: Option<Bundle>,
    /// Drops its fetch.
    fetch: Option<AbortHandle>,
}

impl<'a> Work<'a> {
    fn new(shared: &'a Shared, trust: Trust) -> Self {
        let settings = &shared.settings;
        let limits = Limits {
            fetches: settings.fetches,
            backoff: settings.backoff,
        };
        // The standard library's hash keys are the random numbers to be had for nothing.
        let seed = settings
            .seed
            .unwrap_or_else(|| RandomState::new().hash_one(0_u8));
        Self {
            shared,
            schedule: Schedule::new(limits, seed),
            kept: HashMap::new(),
            events: FuturesUnordered::new(),
            trust,
            store: Store::new(settings),
        }
    }

    /// Follows who wants what since the last look.
    fn look_who_came(&mut self) {
        let touched: Vec<_> = {
            let mut state = self.shared.state();
            let touched = take(&mut state.touched).into_iter();
            touched
                .map(|identity| {
                    let slot = state.slots.get(&identity);
                    let slot = slot.map(|slot| (slot.number, slot.watchers > 0));
                    (identity, slot)
                })
                .collect()
        };
        for (identity, slot) in touched {
            let is_same = |kept: &Kept| slot.is_some_and(|(number, _)| number == kept.slot);
            if self.kept.get(&identity).is_some_and(|kept| !is_same(kept)) {
                self.forget(&identity);
            }
            let Some((number, demanded)) = slot else {
                continue;
            };
            if self.kept.contains_key(&identity) {
                // Its kept certificate may still be on its way.
                self.schedule
                    .raise(&identity, demanded, self.shared.settings.now());
                continue;
            }
            let kept = Kept {
                slot: number,
                issued: None,
                fetch: None,
            };
            self.kept.insert(identity.clone(), kept);
            match self.store.load(&identity) {
                Some(loading) => {
                    let restored = move |bundle| Event::Restored(identity, number, bundle);
                    self.events.push(loading.map(restored).boxed());
                }
                None => self.begin(&identity, demanded),
            }
        }
    }

    fn begin(&mut self, identity: &Identity, demanded: bool) {
        let now = self.shared.settings.now();
        self.schedule.want(identity, demanded, now);
    }

    fn forget(&mut self, identity: &Identity) {
        self.schedule.forget(identity);
        if let Some(kept) = self.kept.remove(identity)
            && let Some(fetch) = kept.fetch
        {
            fetch.abort();
        }
    }

    /// Does what is due; says when to look again.
    fn step(&mut self) -> Instant {
        loop {
            let now = self.shared.settings.now();
            match self.schedule.step(now) {
                Step::Fetch(ticket, identity) => self.fetch(ticket, &identity),
                Step::Expired {
                    identity, failures, ..
                } => {
                    if let Some(kept) = self.kept.get_mut(&identity) {
                        kept.issued = None;
                    }
                    let detail = format!(
                        "{identity}: the last one has expired, renewals failed: {failures}"
                    );
                    let error = Error::new(ErrorKind::Expired, detail);
                    self.tell(&identity, |latest| latest.expire(error));
                }
                Step::Sleep(until) => {
                    // Far enough: whoever comes wakes it.
                    return until.unwrap_or(now.monotonic + Duration::from_secs(3600));
                }
            }
        }
    }

    fn fetch(&mut self, ticket: Ticket, identity: &Identity) {
        let Some(kept) = self.kept.get(identity) else {
            return;
        };
        let current = kept.issued.clone();
        let ask = Ask {
            identity: identity.clone(),
            current,
            known: self.known_roots(),
        };
        let limit = self.shared.settings.fetch_timeout;
        let fetching = tokio::time::timeout(limit, (self.shared.fetch)(ask));
        let (abort, registration) = AbortHandle::new_pair();
        let fetching = Abortable::new(fetching, registration).map(move |outcome| match outcome {
            Ok(Ok(outcome)) => Event::Fetched(ticket, outcome),
            Ok(Err(_)) => {
                let detail = format!("no answer within {limit:?}");
                let error = Error::new(ErrorKind::Unavailable, detail);
                Event::Fetched(ticket, Err(error.into()))
            }
            Err(_) => Event::Dropped,
        });
        self.events.push(fetching.boxed());
        if let Some(kept) = self.kept.get_mut(identity) {
            kept.fetch = Some(abort);
        }
    }

    /// The roots that came with certificates, each once.
    fn known_roots(&self) -> Vec<CertificateDer<'static>> {
        let mut known = Vec::new();
        for bundle in self.kept.values().filter_map(|kept| kept.issued.as_ref()) {
            for root in bundle.roots() {
                if !known.contains(root) {
                    known.push(root.clone());
                }
            }
        }
        known
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Fetched(ticket, outcome) => self.fetched(ticket, outcome),
            Event::Restored(identity, slot, bundle) => self.restored(&identity, slot, bundle),
            Event::Stored => {
                self.store.stored();
                self.keep_next();
            }
            Event::Dropped => {}
        }
    }

    fn fetched(&mut self, ticket: Ticket, outcome: Result<Fetched, Failed>) {
        let now = self.shared.settings.now();
        let Some(identity) = self.schedule.identity(ticket) else {
            return;
        };
        let outcome = outcome.and_then(|fetched| {
            let bundle = self.judge(fetched.bundle, &identity, now)?;
            Ok((bundle, fetched.content))
        });
        match outcome {
            Ok((bundle, content)) => {
                let validity = (bundle.not_before(), bundle.not_after());
                self.schedule.fetched(ticket, now, validity);
                self.publish(&identity, bundle);
                if let Some(content) = content {
                    self.store.put(identity, content);
                    self.keep_next();
                }
            }
            Err(Failed { error, failure }) => {
                self.schedule.failed(ticket, now, failure);
                let is_final = error.is_final();
                self.tell(&identity, |latest| latest.complain(error));
                if is_final {
                    self.schedule.forget(&identity);
                }
            }
        }
    }

    fn judge(&self, bundle: Bundle, identity: &Identity, now: Now) -> Result<Bundle, Error> {
        judge_in(self.shared.settings.trust_domain, bundle, identity, now)
    }

    fn keep_next(&mut self) {
        if let Some(storing) = self.store.next() {
            self.events.push(storing.map(|()| Event::Stored).boxed());
        }
    }

    fn restored(&mut self, identity: &Identity, slot: u64, bundle: Option<Bundle>) {
        if self.kept.get(identity).is_none_or(|kept| kept.slot != slot) {
            return;
        }
        let demanded = {
            let state = self.shared.state();
            let slot = state.slots.get(identity);
            slot.is_some_and(|slot| slot.watchers > 0)
        };
        self.begin(identity, demanded);
        let now = self.shared.settings.now();
        match bundle.map(|bundle| self.judge(bundle, identity, now)) {
            Some(Ok(bundle)) => {
                let validity = (bundle.not_before(), bundle.not_after());
                self.schedule.restored(identity, now, validity);
                if self.trust.is_of_others(&bundle) {
                    tracing::info!(target: "mesh::identity", %identity, "the kept certificate is of an authority that the root file does not have: it is replaced as soon as can be");
                    self.schedule.replace(identity, now);
                }
                self.publish(identity, bundle);
            }
            Some(Err(error)) => {
                tracing::info!(target: "mesh::identity", %error, "the kept certificate is not used");
            }
            None => {}
        }
    }

    /// Keeps a certificate, and tells of it with the roots and lists of now.
    fn publish(&mut self, identity: &Identity, issued: Bundle) {
        let composed = self.trust.compose(&issued);
        if let Some(kept) = self.kept.get_mut(identity) {
            kept.issued = Some(issued);
        }
        self.tell(identity, |latest| match composed {
            Ok(bundle) => latest.tell(bundle),
            Err(error) => latest.complain(error),
        });
    }

    fn trust_changed(&mut self, change: Change) {
        match change {
            // What failures were due to may be gone.
            Change::Token => self.schedule.hurry(self.shared.settings.now()),
            Change::Problem(error) => self.tell_all(|_| Some(Err(error.clone()))),
            Change::Files(candidate) => {
                self.schedule.hurry(self.shared.settings.now());
                let issued = self.kept.values().filter_map(|kept| kept.issued.as_ref());
                if let Some(error) = issued
                    .map(|issued| candidate.compose(issued))
                    .find_map(Result::err)
                {
                    return self.tell_all(|_| Some(Err(error.clone())));
                }
                self.trust.accept(candidate);
                let trust = &self.trust;
                self.tell_all(|issued| issued.map(|issued| trust.compose(issued)));
            }
        }
    }

    fn tell_all(&self, what: impl Fn(Option<&Bundle>) -> Option<Result<Bundle, Error>>) {
        for (identity, kept) in &self.kept {
            match what(kept.issued.as_ref()) {
                Some(Ok(bundle)) => self.tell(identity, |latest| latest.tell(bundle)),
                Some(Err(error)) => self.tell(identity, |latest| latest.complain(error)),
                None => {}
            }
        }
    }

    fn tell(&self, identity: &Identity, change: impl FnOnce(&mut Latest)) {
        let state = self.shared.state();
        if let Some(slot) = state.slots.get(identity) {
            slot.latest.send_modify(change);
        }
    }
}
