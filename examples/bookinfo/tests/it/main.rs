//! The example as its users meet it: its program, its output, its page in a browser.

mod browser;
mod processes;
mod program;
mod require;
