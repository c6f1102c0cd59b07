//! Certificates from SPIFFE's Workload API, as SPIRE's agent serves it.
//!
//! The agent knows who asks by the connection, a unix socket, and pushes certificates as it renews them
//! ([SPIFFE Workload API](https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE_Workload_API.md)).

use std::fmt;

use tonic::metadata::MetadataValue;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind};
use crate::proto::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::proto::workload_api::{X509svid, X509svidRequest, X509svidResponse};
use crate::transport::Channel;

/// Room for some hundred identities with their roots and lists.
const MAX_UPDATE: usize = 16 << 20;

/// A client of the Workload API.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Takes the way to the agent. Nothing is dialled before it is used.
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    /// Watches what the caller may be, over a connection of its own.
    ///
    /// # Errors
    ///
    /// The status of the call; `PermissionDenied` is what an agent says to whom it knows nothing of.
    pub async fn watch(&self) -> Result<Updates, Error> {
        let mut request = self.channel.request(X509svidRequest {}).await?;
        // The agent refuses whoever does not say so: a browser that was lured cannot (section 5).
        let metadata = request.metadata_mut();
        metadata.insert("workload.spiffe.io", MetadataValue::from_static("true"));
        let stream = SpiffeWorkloadApiClient::new(self.channel.fresh())
            .max_decoding_message_size(MAX_UPDATE.min(self.channel.max_message_size()))
            .fetch_x509svid(request)
            .await?
            .into_inner();
        Ok(Updates { stream })
    }
}

/// What the agent pushes. Dropping it ends the watch.
pub struct Updates {
    stream: tonic::Streaming<X509svidResponse>,
}

impl Updates {
    /// The next update: all that the caller may be, instead of what the last one said. `None` at the end.
    ///
    /// # Errors
    ///
    /// The status with which the watch ended; `InvalidResponse` for certificates that are not DER one
    /// after the other.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: no update is lost.
    pub async fn next(&mut self) -> Result<Option<Update>, Error> {
        let Some(message) = self.stream.message().await? else {
            return Ok(None);
        };
        let svids = message.svids.into_iter().map(Svid::parse);
        Ok(Some(Update {
            svids: svids.collect::<Result<_, _>>()?,
            crls: message.crl.into_iter().map(|crl| crl.to_vec()).collect(),
        }))
    }
}

impl fmt::Debug for Updates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Updates").finish_non_exhaustive()
    }
}

/// All that the caller may be.
#[derive(Debug, Clone)]
pub struct Update {
    svids: Vec<Svid>,
    crls: Vec<Vec<u8>>,
}

impl Update {
    /// One for each identity, the default first.
    pub fn svids(&self) -> &[Svid] {
        &self.svids
    }

    /// Revocation lists, DER.
    pub fn crls(&self) -> &[Vec<u8>] {
        &self.crls
    }
}

/// A certificate with its key and the roots of its trust domain.
#[derive(Clone)]
pub struct Svid {
    id: String,
    chain: Vec<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    roots: Vec<Vec<u8>>,
}

impl Svid {
    fn parse(message: X509svid) -> Result<Self, Error> {
        let invalid = |field: &'static str| {
            let detail = format!(
                "{}: {field}: expected DER, one after the other",
                message.spiffe_id
            );
            Error::new(ErrorKind::InvalidResponse, detail)
        };
        Ok(Self {
            chain: split(&message.x509_svid).ok_or_else(|| invalid("x509_svid"))?,
            key: Zeroizing::new(message.x509_svid_key.to_vec()),
            roots: split(&message.bundle).ok_or_else(|| invalid("bundle"))?,
            id: message.spiffe_id,
        })
    }

    /// The SPIFFE id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The chain in DER, leaf first.
    pub fn chain(&self) -> &[Vec<u8>] {
        &self.chain
    }

    /// The private key, PKCS#8 in DER.
    pub fn private_key(&self) -> &[u8] {
        &self.key
    }

    /// The roots of the trust domain, in DER.
    pub fn roots(&self) -> &[Vec<u8>] {
        &self.roots
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The DER sequences that follow each other in `bytes`; `None` if it is something else.
fn split(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut parts = Vec::new();
    while !bytes.is_empty() {
        let length = sequence_length(bytes)?;
        let (part, rest) = bytes.split_at_checked(length)?;
        parts.push(part.to_vec());
        bytes = rest;
    }
    Some(parts)
}

/// How many bytes the SEQUENCE at the beginning has, header included (X.690, 8.1.3).
fn sequence_length(bytes: &[u8]) -> Option<usize> {
    const SEQUENCE: u8 = 0x30;
    let (&SEQUENCE, rest) = bytes.split_first()? else {
        return None;
    };
    let (&first, rest) = rest.split_first()?;
    if first < 0x80 {
        return Some(2 + usize::from(first));
    }
    let count = usize::from(first & 0x7f);
    if count == 0 || count > 4 {
        return None;
    }
    let digits = rest.get(..count)?.iter();
    let length = digits.fold(0_usize, |length, digit| (length << 8) | usize::from(*digit));
    length.checked_add(2 + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_are_told_apart_and_nothing_else_is_taken_for_one() {
        let short = [&[0x30, 3][..], b"abc"].concat();
        let long = [&[0x30, 0x82, 1, 0][..], &[7; 256]].concat();
        let both = [&short[..], &long].concat();
        assert_eq!(split(&both), Some(vec![short, long]));
        assert_eq!(split(b""), Some(Vec::new()));
        for bad in [
            &b"\x30"[..],
            b"\x31\x00",
            b"\x30\x02a",
            b"\x30\x80",
            b"\x30\x85\xff\xff\xff\xff\xff",
            b"\x30\x84\xff\xff\xff\xff",
            b"\x30\x00a",
        ] {
            assert_eq!(split(bad), None, "{bad:?}");
        }
    }
}
