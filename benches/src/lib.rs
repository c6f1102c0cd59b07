//! What the mesh costs: `instructions::count() -> Report` for the gate, criterion and programs for people.
//!
//! `README.md` beside this crate lists the commands and what each of them shows.

pub mod floods;
pub mod instructions;
pub mod mesh;
pub mod policies;
#[path = "../../mesh-hbone/tests/it/hostile/wire.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod wire;
