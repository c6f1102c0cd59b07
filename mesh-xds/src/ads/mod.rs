//! Aggregated discovery: one stream to a control plane, with all types of resources on it.
//!
//! [`Client::new`] makes three things. The [`Worker`] is the session's future; spawn it. The [`Client`] says
//! what is wanted and how the application is. [`Events`] brings what the control plane sends as [`Batch`]es:
//! applying one answers a verdict for each resource, and these become the acknowledgement, or the refusal
//! that names each bad resource while the good ones are in effect.
//!
//! # What survives a lost stream
//!
//! Everything. A new stream says which versions are here, and the control plane sends what differs. Where
//! that does not fit a request, or names were forgotten, it sends everything, and what is not among it is
//! removed. Attempts are spread: see [`Settings::with_backoff`].
//!
//! # What survives the process
//!
//! What the caller keeps: with [`Settings::with_changes`] it is told of each resource that is in effect as it
//! came, and with [`Settings::with_restored`] a later session begins with them.
//!
//! # Bounds
//!
//! One response is in work at a time; the next is not read before its verdicts are in. Sizes of messages
//! are a setting of the [`Channel`](crate::transport::Channel), numbers of names and resources and the
//! size of a resource of the [`Settings`]. A name has at most 4 KiB, a refusal at most 1 KiB.
//!
//! [`Batch`]: crate::model::Batch

mod backoff;
mod client;
#[doc(hidden)]
pub mod fuzzing;
mod kept;
mod node;
mod reading;
mod receive;
mod refusal;
mod response;
mod settings;
mod state;
mod subscription;
#[cfg(test)]
mod tests;
mod worker;
#[cfg(feature = "file")]
mod yaml;

pub use client::{Client, Event, Events, Presence};
pub use kept::Kept;
pub use node::{Node, NodeValue};
pub use settings::{Interest, Settings};
pub use state::Health;
pub use worker::Worker;
