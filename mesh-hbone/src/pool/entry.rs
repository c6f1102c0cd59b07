//! The connections of one key, and who waits for one: bookkeeping without I/O.

use std::collections::VecDeque;

/// What the pool has to know of a connection.
pub(super) trait Link: Clone {
    /// Streams that may be open at once; the peer may change it at any time.
    fn max_streams(&self) -> usize;
    /// Whether it takes no more streams.
    fn is_closed(&self) -> bool;
    /// Whether the peer's SETTINGS are here: until then nobody knows how many streams it takes.
    fn is_settled(&self) -> bool;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ConnectionId(pub(super) u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct WaiterId(pub(super) u64);

/// A stream's place on a connection, until it is released.
#[derive(Debug, Clone)]
pub(super) struct Grant<C> {
    pub(super) id: ConnectionId,
    pub(super) link: C,
}

#[derive(Debug)]
struct Connection<C> {
    id: ConnectionId,
    link: C,
    streams: usize,
    /// Of them, those that nobody has any more.
    lingering: usize,
}

impl<C> Connection<C> {
    fn state(&self) -> Released {
        match self.streams > self.lingering {
            true => Released::Busy,
            false => Released::Idle,
        }
    }
}

/// Invariant: whoever waits, waits for a dial. Nobody waits beside a free stream.
#[derive(Debug)]
pub(super) struct Entry<C> {
    connections: Vec<Connection<C>>,
    /// What is being dialled, or is a connection that is not settled: it stays until that is known.
    pub(super) dial: Option<ConnectionId>,
    pub(super) waiters: VecDeque<WaiterId>,
}

/// What a release left behind.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Released {
    /// Somebody has streams of the connection, or it is none of ours any more.
    Busy,
    /// None has, though some may wait for the peer's end.
    Idle,
}

impl<C: Link> Entry<C> {
    pub(super) fn new() -> Self {
        Self {
            connections: Vec::new(),
            dial: None,
            waiters: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.dial.is_none() && self.waiters.is_empty()
    }

    pub(super) fn links(&self) -> impl Iterator<Item = &C> {
        self.connections.iter().map(|connection| &connection.link)
    }

    /// Forgets connections that take no more streams, and names them.
    pub(super) fn prune(&mut self) -> Vec<(ConnectionId, C)> {
        let dial = self.dial;
        let closed = |connection: &mut Connection<C>| {
            connection.link.is_closed() && Some(connection.id) != dial
        };
        let gone = self.connections.extract_if(.., closed);
        gone.map(|connection| (connection.id, connection.link))
            .collect()
    }

    /// Takes a stream of the oldest connection that has one free: young ones become idle and go.
    pub(super) fn take(&mut self) -> Option<Grant<C>> {
        let dial = self.dial;
        let free = |connection: &&mut Connection<C>| {
            connection.streams < connection.link.max_streams()
                && !(Some(connection.id) == dial && connection.link.is_closed())
        };
        let connection = self.connections.iter_mut().find(free)?;
        connection.streams += 1;
        Some(Grant {
            id: connection.id,
            link: connection.link.clone(),
        })
    }

    /// A connection, and whether somebody has streams of it.
    pub(super) fn get(&self, id: ConnectionId) -> Option<(&C, Released)> {
        let mut all = self.connections.iter();
        let connection = all.find(|connection| connection.id == id)?;
        Some((&connection.link, connection.state()))
    }

    pub(super) fn streams(&self, id: ConnectionId) -> usize {
        let mut all = self.connections.iter();
        let connection = all.find(|connection| connection.id == id);
        connection.map_or(0, |connection| connection.streams)
    }

    pub(super) fn insert(&mut self, id: ConnectionId, link: C) {
        self.connections.push(Connection {
            id,
            link,
            streams: 0,
            lingering: 0,
        });
    }

    pub(super) fn release(&mut self, id: ConnectionId, lingered: bool) -> Released {
        self.change(id, |connection| {
            connection.streams = connection.streams.saturating_sub(1);
            connection.lingering -= usize::from(lingered && connection.lingering > 0);
        })
    }

    pub(super) fn linger(&mut self, id: ConnectionId) -> Released {
        self.change(id, |connection| connection.lingering += 1)
    }

    fn change(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection<C>)) -> Released {
        let mut all = self.connections.iter_mut();
        match all.find(|connection| connection.id == id) {
            Some(connection) => {
                change(connection);
                connection.state()
            }
            None => Released::Busy,
        }
    }

    pub(super) fn remove(&mut self, id: ConnectionId) -> Option<C> {
        let index = self
            .connections
            .iter()
            .position(|connection| connection.id == id)?;
        Some(self.connections.remove(index).link)
    }
}
