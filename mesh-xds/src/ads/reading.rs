//! A response that comes piece by piece: of a large one each resource is read as it comes.

use std::mem;
use std::sync::Arc;

use prost::bytes::{Bytes, BytesMut};
use prost::encoding::encode_varint;

use super::receive::Receiving;
use super::response::{Head, RESOURCE, Resource, Response};
use super::state::{Delivery, Protocol, Session};
use crate::error::{Error, ErrorKind};
use crate::model::Update;

/// Up to this size, in bytes, a response is gathered: its type, which it says behind its resources, is known before
/// they are read.
const SMALL: usize = 256 * 1024;

/// After so many resources of a large one it is known how many more there may be.
const SAMPLE: usize = 2048;

/// A response on its way into the session.
pub(super) struct Reading {
    protocol: Protocol,
    length: usize,
    /// How many of its resources were read.
    count: usize,
    /// How much of it is still to come.
    missing: usize,
    response: Response,
    state: State,
    /// Whether some of its updates were taken.
    is_taken: bool,
}

enum State {
    /// What came of one that is read when it is here.
    Gathering(BytesMut),
    /// One that is large, before its first resource, which tells its type.
    Large,
    /// `None`: nobody asked for its type.
    Reading(Option<Box<Receiving>>),
}

impl Reading {
    /// A response of this length, of which nothing came yet.
    pub(super) fn new(protocol: Protocol, length: usize) -> Self {
        Self::gathering(protocol, length, SMALL)
    }

    /// As [`new`](Self::new); it is gathered up to this size.
    pub(super) fn gathering(protocol: Protocol, length: usize, small: usize) -> Self {
        Self {
            protocol,
            length,
            count: 0,
            missing: length,
            response: Response::new(protocol, length),
            state: match length <= small {
                true => State::Gathering(BytesMut::with_capacity(length)),
                false => State::Large,
            },
            is_taken: false,
        }
    }

    /// More of it came. What came before was [read](Self::read).
    pub(super) fn push(&mut self, piece: Bytes) {
        self.missing = self.missing.saturating_sub(piece.len());
        match &mut self.state {
            State::Gathering(gathered) => gathered.extend_from_slice(&piece),
            _ => self.response.push(piece),
        }
    }

    /// Reads up to `room` resources of what came, and says whether all of it was read.
    ///
    /// # Errors
    ///
    /// `Status`, if it is no response. It is to be [cancelled](Self::cancel) then.
    pub(super) fn read(&mut self, session: &mut Session, room: &mut usize) -> Result<bool, Error> {
        loop {
            if let State::Gathering(gathered) = &mut self.state {
                if self.missing > 0 {
                    return Ok(true);
                }
                let gathered = mem::take(gathered).freeze();
                let head = head(self.protocol, gathered.clone(), session.max_removed())?;
                self.response = Response::new(self.protocol, gathered.len());
                self.response.push(gathered);
                self.state = State::Reading(session.begin(&head.url).map(Box::new));
            }
            if *room == 0 {
                return Ok(false);
            }
            let Some(bytes) = self.response.next()? else {
                return Ok(true);
            };
            let resource = Resource::read(self.protocol, &bytes, session.max_length())?;
            if let State::Large = self.state {
                let url = resource.value.as_ref().map(|value| &*value.url);
                let receiving = url.and_then(|url| session.begin(url));
                self.state = match receiving {
                    Some(receiving) => State::Reading(Some(Box::new(receiving))),
                    // What is wrong with it is said when its type is known.
                    None => State::Gathering(gather(&mut self.response, &bytes)),
                };
            }
            if let State::Reading(receiving) = &mut self.state {
                *room -= 1;
                self.count += 1;
                if let Some(receiving) = receiving {
                    session.resource(&resource, receiving);
                    if self.count == SAMPLE {
                        let size = (self.length - self.missing) / SAMPLE;
                        session.expect(receiving, self.length / size.max(1));
                    }
                }
            }
        }
    }

    /// Takes what it has brought so far.
    pub(super) fn take(&mut self) -> Vec<Update> {
        let State::Reading(Some(receiving)) = &mut self.state else {
            return Vec::new();
        };
        // The next part has as many.
        let next = Vec::with_capacity(receiving.updates().len());
        let updates = mem::replace(receiving.updates(), next);
        self.is_taken |= !updates.is_empty();
        updates
    }

    /// Whether it adds to what was here before.
    pub(super) fn is_later(&self) -> bool {
        matches!(&self.state, State::Reading(Some(receiving)) if !receiving.is_first())
    }

    /// Whether some of what it brings was taken.
    pub(super) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// That was all of it: its type, and what it brings beside what was taken.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub(super) fn end(&mut self, session: &mut Session) -> Result<(Arc<str>, Delivery), Error> {
        let head = self.response.end(session.max_removed())?;
        let url: Arc<str> = head.url.as_str().into();
        if let State::Large = self.state {
            self.state = State::Reading(session.begin(&url).map(Box::new));
        }
        if let State::Reading(Some(receiving)) = &self.state {
            let expected = session.url_of(receiving);
            if *expected != url {
                let detail =
                    format!("a response of {url}, whose first resource is of type {expected}");
                return Err(Error::new(ErrorKind::Status, detail));
            }
        }
        let delivery = match mem::replace(&mut self.state, State::Large) {
            State::Reading(Some(receiving)) => session.end(*receiving, head),
            _ => {
                session.strays(head);
                Delivery::default()
            }
        };
        Ok((url, delivery))
    }

    /// There is no end of it: it has changed nothing.
    pub(super) fn cancel(self, session: &mut Session) {
        if let State::Reading(Some(receiving)) = self.state {
            session.cancel(*receiving);
        }
    }
}

/// What a response that is here says beside its resources.
fn head(protocol: Protocol, message: Bytes, max_removed: usize) -> Result<Head, Error> {
    let mut response = Response::new(protocol, message.len());
    response.push(message);
    while response.next()?.is_some() {}
    response.end(max_removed)
}

/// What was read of a response, as it came.
fn gather(response: &mut Response, first: &[u8]) -> BytesMut {
    let (head, rest) = response.take();
    let mut gathered = BytesMut::from(&*head);
    encode_varint(RESOURCE, &mut gathered);
    encode_varint(first.len() as u64, &mut gathered);
    gathered.extend_from_slice(first);
    gathered.extend_from_slice(&rest);
    gathered
}
