//! Signatures on certificates that were found good before: a peer that comes back shows the same ones.

use std::sync::Arc;

use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::recent::{LONGEST, Recent};

/// Good signatures, whole: whether one is good depends on nothing but these bytes. Times, revocation,
/// usage and names are judged each time, and so is the signature by which a peer proves its key.
#[derive(Debug)]
pub(super) struct Good(Recent<()>);

impl Good {
    pub(super) fn new(most: usize) -> Self {
        Self(Recent::new(most))
    }

    /// The algorithms of a provider, which remember here. All that remember here are of one provider.
    pub(super) fn remembering(
        self: &Arc<Self>,
        algorithms: &[&'static dyn SignatureVerificationAlgorithm],
    ) -> Vec<Remembering> {
        let with = |(index, algorithm): (usize, &&'static dyn SignatureVerificationAlgorithm)| {
            Remembering {
                index,
                algorithm: *algorithm,
                good: Arc::clone(self),
            }
        };
        algorithms.iter().enumerate().map(with).collect()
    }
}

/// An algorithm that looks at no signature twice.
#[derive(Debug)]
pub(super) struct Remembering {
    index: usize,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    good: Arc<Good>,
}

impl SignatureVerificationAlgorithm for Remembering {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let verify = || {
            self.algorithm
                .verify_signature(public_key, message, signature)
        };
        let parts = [public_key, message, signature];
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if self.good.0.is_none() || length > LONGEST {
            return verify();
        }
        // With their lengths, so that no two inputs read the same.
        let mut signed = Vec::with_capacity(24 + length);
        for number in [self.index, public_key.len(), message.len()] {
            signed.extend_from_slice(&(number as u64).to_be_bytes());
        }
        for part in parts {
            signed.extend_from_slice(part);
        }
        if self.good.0.get(&signed).is_some() {
            return Ok(());
        }
        verify()?;
        self.good.0.insert(signed, ());
        Ok(())
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.algorithm.signature_alg_id()
    }

    fn fips(&self) -> bool {
        self.algorithm.fips()
    }
}

#[cfg(test)]
mod tests;
