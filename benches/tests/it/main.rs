//! What things may cost, checked.

mod instructions;
mod require;
