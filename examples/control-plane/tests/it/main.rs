//! The control plane as its users meet it: its program, and meshes that join it over sockets.

mod agent_joins;
mod cast;
mod certificates;
mod hostile;
mod hosts;
mod listeners;
mod load;
mod on_the_wire;
mod operators;
mod outages;
mod plane;
mod require;
mod restarts;
mod starts;
mod way;
#[path = "../../../../mesh-core/tests/it/ztunnel.rs"]
mod ztunnel;
mod ztunnel_joins;
