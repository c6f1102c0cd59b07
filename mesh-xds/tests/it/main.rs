//! The file source: manifests and ztunnel's form, loaded, reloaded and watched. The wire: protobuf as istiod has it. The server: what it serves.

mod asked;
mod corners;
mod decode_addresses;
mod decode_listeners;
mod decode_policies;
mod decode_rbac_goldens;
mod generated;
mod istio_samples;
mod istiod_notes;
mod istiod_notes_of_envoy;
mod istiod_recordings;
mod manifests;
mod missing_waypoints;
mod refusals;
mod reloading;
mod require;
mod serve;
mod serve_hosts;
mod serve_limits;
mod serve_listeners;
mod serve_our_client;
mod serve_recordings;
mod serve_start;
mod unknown_fields;
mod watching;
mod wire;
mod wire_vectors;
mod ztunnel_form;

/// The crate keeps these types to itself; a server that speaks them needs them here.
#[path = "../../src/proto/mod.rs"]
mod proto;
