//! The control plane as its users meet it: its program, and meshes that join it over sockets.

mod agent_joins;
mod hosts;
mod listeners;
mod plane;
mod require;
mod restarts;
mod starts;
#[path = "../../../../mesh-core/tests/it/ztunnel.rs"]
mod ztunnel;
mod ztunnel_joins;
