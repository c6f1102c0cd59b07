//! Which connections may begin a TLS handshake, and which wait.
//!
//! A handshake costs signatures and key exchanges, so few run at a time. A peer that says nothing
//! must not hold one of those slots: a slot is taken only once a whole ClientHello is here. One that
//! says nothing more afterwards holds it no longer than until somebody else wants it: slots are shared
//! out between source addresses.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::ready;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::client_hello::{ClientHello, MAX_RECORD, Malformed};
use super::slots::Slots;
use super::{Credentials, TlsStream, serve, timed_out};
use crate::{Error, ErrorKind, Side};

/// Bounds on connections that have not finished their TLS handshake.
#[derive(Debug, Clone)]
pub struct AdmissionLimits {
    listener_handshakes: usize,
    handshakes: usize,
    grace: Duration,
    waiting: usize,
    client_hello: usize,
}

impl Default for AdmissionLimits {
    fn default() -> Self {
        Self {
            listener_handshakes: 256,
            handshakes: 1024,
            grace: Duration::from_secs(1),
            waiting: 4096,
            client_hello: 2048,
        }
    }
}

impl AdmissionLimits {
    /// Handshakes in progress on one listener. Default: 256. At least 1.
    ///
    /// A quarter of them, rounded down, is given only to source addresses that have none in progress, so that
    /// others who hold all they can get make nobody wait.
    pub fn listener_handshakes(mut self, count: usize) -> Self {
        self.listener_handshakes = count.max(1);
        self
    }

    /// Handshakes in progress on all listeners that share the [`Admission`]. Default: 1 024. At
    /// least 1. A quarter likewise.
    pub fn handshakes(mut self, count: usize) -> Self {
        self.handshakes = count.max(1);
        self
    }

    /// How long a handshake may run before it may have to give way: when no slot is free, a connection
    /// from a source address with fewer takes that of the oldest of the address with most. Default:
    /// 1 s, which is several round trips of the longest path.
    pub fn handshake_grace(mut self, time: Duration) -> Self {
        self.grace = time;
        self
    }

    /// Connections without a handshake slot, on all listeners. One more evicts the oldest of the
    /// source address that has most. Default: 4 096. At least 1.
    pub fn waiting(mut self, count: usize) -> Self {
        self.waiting = count.max(1);
        self
    }

    /// Lowers [`waiting`](Self::waiting) to `count` if it is more: where connections are counted elsewhere
    /// too, those that wait must not be all of them, or none is ever evicted.
    pub fn waiting_at_most(self, count: usize) -> Self {
        let lower = self.waiting.min(count);
        self.waiting(lower)
    }

    /// Bytes of a ClientHello message, which is what a waiting connection may hold. Default: 2 048.
    /// At most 16 384.
    ///
    /// A hello that offers X25519MLKEM768 has about 1.5 KB (its key share is 1 216 bytes).
    pub fn client_hello(mut self, bytes: usize) -> Self {
        self.client_hello = bytes.min(MAX_RECORD);
        self
    }
}

/// Admits connections to their handshakes, within [`AdmissionLimits`].
///
/// Clones share everything; [`listener`](Self::listener) shares all but the bound per listener.
#[derive(Clone)]
pub struct Admission {
    shared: Arc<Shared>,
    listener: Arc<Slots>,
}

struct Shared {
    limits: AdmissionLimits,
    slots: Slots,
    /// Of those that had a slot.
    evicted: AtomicU64,
    // Held while one connection enters or leaves: O(log n), nothing waits inside.
    waiting: Mutex<Waiting>,
}

impl Admission {
    /// A new set of bounds, with its first listener.
    pub fn new(limits: AdmissionLimits) -> Self {
        Self {
            listener: Arc::new(Slots::new(limits.listener_handshakes, limits.grace)),
            shared: Arc::new(Shared {
                slots: Slots::new(limits.handshakes, limits.grace),
                evicted: AtomicU64::new(0),
                waiting: Mutex::new(Waiting::new(limits.waiting)),
                limits,
            }),
        }
    }

    /// The same bounds for another listener.
    pub fn listener(&self) -> Self {
        Self {
            listener: Arc::new(Slots::new(
                self.shared.limits.listener_handshakes,
                self.shared.limits.grace,
            )),
            shared: Arc::clone(&self.shared),
        }
    }

    /// Connections that have no slot yet, on all listeners.
    pub fn waiting(&self) -> usize {
        self.shared.waiting().count
    }

    /// Handshakes in progress, on all listeners.
    pub fn handshakes(&self) -> usize {
        self.shared.slots.taken()
    }

    /// Connections that were evicted so far, on all listeners.
    pub fn evicted(&self) -> u64 {
        self.shared.waiting().evicted + self.shared.evicted.load(Ordering::Relaxed)
    }

    fn enter(&self, source: IpAddr) -> Place<'_> {
        let (id, evicted) = self.shared.waiting().enter(source);
        Place {
            shared: &self.shared,
            source,
            id,
            evicted,
        }
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(AdmissionLimits::default())
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admission")
            .field("limits", &self.shared.limits)
            .field("waiting", &self.waiting())
            .field("handshakes", &self.handshakes())
            .finish()
    }
}

/// Whose an address is. Of IPv6 a host chooses 64 bits by itself ([RFC 4291 section
/// 2.5.1](https://www.rfc-editor.org/rfc/rfc4291#section-2.5.1)): to count single addresses would bound nothing.
fn of_whom(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            Ipv6Addr::from(network).into()
        }
        address => address,
    }
}

/// [`accept`](super::accept) within the bounds of `admission`; `source` is the peer's address, of which the
/// first 64 bits count if it is IPv6.
///
/// # Errors
///
/// As [`accept`](super::accept), and [`ErrorKind::Overloaded`] if this connection was evicted,
/// [`ErrorKind::NotTls`] and [`ErrorKind::ClientHelloTooLarge`].
///
/// # Cancel safety
///
/// Dropping the future drops `io` and gives back its place or slot.
pub async fn accept_with<IO>(
    mut io: IO,
    source: IpAddr,
    credentials: &Credentials,
    admission: &Admission,
) -> Result<TlsStream<IO>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let source = of_whom(source);
    let overloaded = |detail| {
        Error::new(ErrorKind::Overloaded, Side::Us)
            .with_detail(detail)
            .retry_safe()
    };
    let gave_way = || {
        admission.shared.evicted.fetch_add(1, Ordering::Relaxed);
        overloaded("the TLS handshake gave way to another")
    };
    let admitted = async {
        let mut place = admission.enter(source);
        let wait = async {
            let first = read_client_hello(&mut io, admission.shared.limits.client_hello).await?;
            // The listener's first, so that one listener's queue does not hold slots that another
            // could use.
            let mut listener = admission.listener.enter(source);
            listener.granted().await;
            let mut process = admission.shared.slots.enter(source);
            tokio::select! {
                biased;
                () = listener.evicted() => return Err(gave_way()),
                () = process.granted() => {}
            }
            Ok((listener, process, first))
        };
        let (mut listener, mut process, first) = tokio::select! {
            biased;
            _ = &mut place.evicted => {
                Err(overloaded("too many connections wait for a TLS handshake"))
            }
            waited = wait => waited,
        }?;
        drop(place);
        tokio::select! {
            biased;
            stream = serve(io, credentials, first) => stream,
            () = listener.evicted() => Err(gave_way()),
            () = process.evicted() => Err(gave_way()),
        }
    };
    timeout(credentials.options().handshake_timeout, admitted)
        .await
        .unwrap_or_else(|_| Err(timed_out(Side::Downstream)))
}

/// Reads until the ClientHello is whole; gives it, and what was read after it.
async fn read_client_hello<IO>(io: &mut IO, limit: usize) -> Result<Vec<u8>, Error>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut hello = ClientHello::new(limit);
    let read = poll_fn(|cx| {
        loop {
            // On the stack while polled: a silent connection holds no buffer.
            let mut bytes = [0; 2048];
            let mut buf = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut *io).poll_read(cx, &mut buf))
                .map_err(|error| Error::from_io(error, Side::Downstream))?;
            if buf.filled().is_empty() {
                return Err(Error::new(ErrorKind::Truncated, Side::Downstream)
                    .with_detail("before the ClientHello was whole"))
                .into();
            }
            match hello.push(buf.filled()) {
                Ok(None) => {}
                Ok(Some(used)) => return Ok(Ok(buf.filled()[used..].to_vec())).into(),
                Err(malformed) => return Ok(Err(malformed)).into(),
            }
        }
    });
    match read.await.map_err(Error::retry_safe)? {
        Ok(rest) => {
            let mut first = hello.into_record();
            first.extend_from_slice(&rest);
            Ok(first)
        }
        Err(malformed) => {
            if malformed != Malformed::NotTls {
                // Says why, to a peer that speaks TLS: fatal, illegal_parameter. The close that
                // follows says it again to a peer that does not read it.
                let _ = io.write_all(&[21, 3, 3, 0, 2, 2, 47]).await;
            }
            Err(refusal(malformed, limit).retry_safe())
        }
    }
}

fn refusal(malformed: Malformed, limit: usize) -> Error {
    let error = |kind| Error::new(kind, Side::Downstream);
    match malformed {
        Malformed::NotTls => error(ErrorKind::NotTls),
        Malformed::NotAlone => error(ErrorKind::Tls)
            .with_detail("expected nothing after the ClientHello in its record"),
        Malformed::TooLarge(size) => error(ErrorKind::ClientHelloTooLarge)
            .with_detail(format!("expected at most {limit} bytes, found {size}")),
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing in there can panic half way.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection among those that wait; leaving it is dropping it.
struct Place<'a> {
    shared: &'a Shared,
    source: IpAddr,
    id: u64,
    evicted: oneshot::Receiver<()>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.waiting().leave(self.source, self.id);
    }
}

/// Who waits, by source and age.
struct Waiting {
    limit: usize,
    count: usize,
    evicted: u64,
    next_id: u64,
    /// Ids grow with time, so a source's first is its oldest.
    sources: HashMap<IpAddr, BTreeMap<u64, oneshot::Sender<()>>>,
    /// The last is the source with most; of equals the one whose oldest is oldest.
    order: BTreeSet<(usize, Reverse<u64>, IpAddr)>,
}

impl Waiting {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            count: 0,
            evicted: 0,
            next_id: 0,
            sources: HashMap::new(),
            order: BTreeSet::new(),
        }
    }

    fn enter(&mut self, source: IpAddr) -> (u64, oneshot::Receiver<()>) {
        if self.count >= self.limit {
            self.evict();
        }
        let (sender, receiver) = oneshot::channel();
        let id = self.next_id;
        self.next_id += 1;
        self.change(source, |ids| {
            ids.insert(id, sender);
        });
        self.count += 1;
        (id, receiver)
    }

    fn leave(&mut self, source: IpAddr, id: u64) {
        let mut left = false;
        self.change(source, |ids| left = ids.remove(&id).is_some());
        // Those that were evicted have left already.
        self.count -= usize::from(left);
    }

    fn evict(&mut self) {
        let Some((_, Reverse(oldest), source)) = self.order.last().copied() else {
            return;
        };
        let mut victim = None;
        self.change(source, |ids| victim = ids.remove(&oldest));
        if let Some(victim) = victim {
            self.count -= 1;
            self.evicted += 1;
            // It may be leaving just now.
            let _ = victim.send(());
        }
    }

    /// Changes one source's connections and its rank with them.
    fn change(
        &mut self,
        source: IpAddr,
        change: impl FnOnce(&mut BTreeMap<u64, oneshot::Sender<()>>),
    ) {
        let ids = self.sources.entry(source).or_default();
        if let Some(rank) = rank(ids, source) {
            self.order.remove(&rank);
        }
        change(ids);
        match rank(ids, source) {
            Some(rank) => {
                self.order.insert(rank);
            }
            None => {
                self.sources.remove(&source);
            }
        }
    }
}

fn rank<T>(ids: &BTreeMap<u64, T>, source: IpAddr) -> Option<(usize, Reverse<u64>, IpAddr)> {
    let oldest = ids.first_key_value()?.0;
    Some((ids.len(), Reverse(*oldest), source))
}

#[cfg(test)]
mod tests;
