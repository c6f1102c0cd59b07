//! Connections: the stream that applications see, where sockets come from, and what is set on them.

mod cut;
mod listener;
mod socket;
mod stream;
mod tcp;
mod transport;

pub(crate) use cut::{Cut, CutReason};
#[cfg(feature = "admin")]
pub(crate) use listener::{Accept, Listener};
pub(crate) use stream::Account;
pub use stream::MeshStream;
pub use transport::{BoxedIo, Incoming, Transport};
