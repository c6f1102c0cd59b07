//! Integration tests: one binary, a file for each behaviour.

#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod admin;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod admin_agrees;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod admin_answers;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod admin_dump;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod admin_explain;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
#[path = "../../../mesh-xds/tests/it/asked.rs"]
mod asked;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod backends_read_paths;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod config_churns;
#[cfg(all(any(feature = "aws-lc-rs", feature = "ring"), feature = "dev-ca"))]
mod config_in_parts;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
#[path = "../../../mesh-xds/tests/it/corners.rs"]
mod corners;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod crypto_provider;
#[cfg(all(
    any(feature = "aws-lc-rs", feature = "ring"),
    feature = "dev-ca",
    feature = "http",
    feature = "metrics"
))]
mod cuts_reach_the_wire;
#[cfg(all(
    unix,
    feature = "admin",
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod descriptors_run_out;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    any(feature = "aws-lc-rs", feature = "ring")
))]
#[path = "../../../mesh-hbone/tests/it/envoy.rs"]
mod envoy;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod envoy_meets_mesh;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod envoy_normalises_paths;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod errors_as_printed;
mod handler;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod hosts_join;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod hosts_renamed;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod http1_smuggling;
#[cfg(all(feature = "dev-ca", any(feature = "aws-lc-rs", feature = "ring")))]
mod identity_dev_ca;
#[cfg(all(feature = "dev-ca", any(feature = "aws-lc-rs", feature = "ring")))]
mod identity_files;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod identity_istiod;
#[cfg(all(feature = "dev-ca", any(feature = "aws-lc-rs", feature = "ring")))]
mod identity_renewal;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    feature = "workload-api",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod identity_workload_api;
mod interfaces;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_differences;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_discovery;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_faults;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_live;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_lives;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_place;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_records;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_replayed;
#[cfg(feature = "file")]
mod istiod_stream;
#[cfg(all(
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_streams_replay;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod istiod_takes_the_manifest;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod kubernetes;
mod layers_authorize;
mod layers_identify;
mod layers_logs;
#[cfg(feature = "metrics")]
mod layers_observe;
mod layers_retry;
mod layers_timeout;
mod layers_tokens;
mod listener_limits;
#[cfg(all(
    feature = "dev-ca",
    any(feature = "istiod", all(feature = "http", feature = "metrics")),
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod memory_network;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_cancels;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_connects;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_denies_the_living;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_drains;
mod mesh_ends;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "file",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_fed_by_istiod;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_follows_listeners;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_joins_istiod;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_judges_addresses;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_lets_go;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_listens;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_looks_up;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_pools;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_probes;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_reports;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_requests;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_resets;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_restarts;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_retries;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_revokes;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_starts;
#[cfg(all(
    feature = "admin",
    feature = "file",
    feature = "http",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_starts_wrongly;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod mesh_world;
#[cfg(all(
    feature = "file",
    feature = "http",
    feature = "dev-ca",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod node_fails_closed;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
#[path = "../../../mesh-hbone/tests/it/polls.rs"]
#[allow(dead_code, reason = "the tests of mesh-hbone use all of it")]
mod polls;
mod require;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod settings_bound;
#[cfg(all(
    feature = "admin",
    feature = "dev-ca",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod settings_of_istiod;
mod snapshot_applies_batches;
mod snapshot_attaches_policies;
mod snapshot_balances;
mod snapshot_finds;
mod snapshot_inbound_listeners;
mod snapshot_judges_inbound;
mod snapshot_model;
mod snapshot_resolves;
mod testing_tonic;
#[cfg(all(
    feature = "dev-ca",
    feature = "http",
    feature = "metrics",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod worker_blocked;
mod workspace;
mod workspace_lock;
mod workspace_sources;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod ztunnel;
#[cfg(all(
    feature = "dev-ca",
    feature = "file",
    feature = "istiod",
    any(feature = "aws-lc-rs", feature = "ring")
))]
mod ztunnel_meets_mesh;
