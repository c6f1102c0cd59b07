//! Integration tests: one binary, a file for each behaviour.

#[cfg(all(feature = "dev-ca", feature = "aws-lc-rs"))]
mod identity_dev_ca;
#[cfg(all(feature = "dev-ca", feature = "aws-lc-rs"))]
mod identity_files;
#[cfg(all(feature = "dev-ca", feature = "aws-lc-rs"))]
mod identity_renewal;
