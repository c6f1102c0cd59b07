//! A member of a mesh that makes connections, told by lines on standard input: for the row `scale` of `lab`.

use std::process::ExitCode;

fn main() -> ExitCode {
    lab::member()
}
