//! The control plane as its users meet it: its program, and meshes that join it over sockets.

mod hosts;
mod listeners;
mod plane;
mod restarts;
