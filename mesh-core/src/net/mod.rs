//! Connections: where sockets come from, and what is set on them.

#[cfg_attr(
    not(test),
    expect(dead_code, reason = "inbound and outbound are built on it")
)]
mod listener;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "inbound and outbound are built on it")
)]
mod socket;
