//! The file source: manifests and ztunnel's form, loaded, reloaded and watched.

mod istiod_recordings;
mod manifests;
mod missing_waypoints;
mod refusals;
mod reloading;
mod watching;
mod ztunnel_form;
