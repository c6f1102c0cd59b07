//! TLS 1.3 after the handshake ([RFC 8446 section
//! 5](https://www.rfc-editor.org/rfc/rfc8446#section-5)): records are decrypted where they were read.
//!
//! rustls keeps the secrets, derives their successors and does the cryptography; here is what is left
//! to whom it hands its keys: sequence numbers, when keys change, and what records other than data say.
//! rustls' own connection copies each record twice on its way in.

use std::fmt;
use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::quic::PacketKey;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    HandshakeType, InvalidMessage, PeerMisbehaved, ProtocolVersion, Tls13CipherSuite,
};

use super::credentials::RECORD;
use super::outgoing::Outgoing;
use crate::FrameBuf;
use crate::frame_buf::RECORD_HEADER as HEADER;

/// A record's payload at most (RFC 8446, 5.2).
const MAX_CIPHERTEXT: usize = RECORD + 256;

/// The largest record with its header.
pub(super) const MAX_RECORD: usize = HEADER + MAX_CIPHERTEXT;

/// A message after the handshake at most; tickets are the largest.
const MAX_MESSAGE: usize = 0xffff;

/// KeyUpdates that are borne between two records of data, and `user_canceled` alerts in all, as rustls
/// bears them.
const MAX_KEY_UPDATES: u8 = 32;
const MAX_WARNINGS: u8 = 4;

/// Records without content in a row, as rustls bears them.
const MAX_EMPTY: u8 = 32;

const MESSAGE_HEADER: usize = 4;

/// Who derives the keys of the next epoch.
pub(super) enum Keys {
    Client(Box<KernelConnection<ClientConnectionData>>),
    Server(Box<KernelConnection<ServerConnectionData>>),
}

/// How records are encrypted.
enum Sealer {
    /// Where they are. QUIC's packets and TLS 1.3's records have the same nonces (RFC 9001 section 5.3,
    /// RFC 8446 section 5.3), and rustls has a call in place for the former only.
    InPlace(Box<dyn PacketKey>),
    /// Into memory of their own, where a provider has no QUIC.
    Copying(Box<dyn MessageEncrypter>),
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Data, at this place of the record.
    Data(Range<usize>),
    /// Something of TLS' own.
    Nothing,
    /// The peer's close_notify: no more follows.
    Closed,
}

/// The record layer of one connection.
pub(super) struct Records {
    keys: Keys,
    suite: &'static Tls13CipherSuite,
    opener: Box<dyn MessageDecrypter>,
    opened: u64,
    sealer: Sealer,
    /// The next sequence number. In place nothing else keeps a nonce from coming twice.
    sealed: u64,
    /// Records that may be sealed with one key.
    limit: u64,
    /// A message of the handshake protocol that is not whole.
    fragments: Vec<u8>,
    key_updates: u8,
    warnings: u8,
    empty: u8,
    /// The last thing that may be said was said.
    ended: bool,
}

/// How many bytes the record at the front of `bytes` has in all, once that can be told.
pub(super) fn record_len(bytes: &[u8]) -> Result<Option<usize>, Error> {
    let [kind, major, _, high, low, ..] = *bytes else {
        return Ok(None);
    };
    if !matches!(kind, 20..=24) {
        return Err(InvalidMessage::InvalidContentType.into());
    }
    if major != 3 {
        return Err(InvalidMessage::UnknownProtocolVersion.into());
    }
    match usize::from(u16::from_be_bytes([high, low])) {
        0 if kind != 23 => Err(InvalidMessage::InvalidEmptyPayload.into()),
        length if length > MAX_CIPHERTEXT => Err(InvalidMessage::MessageTooLarge.into()),
        length => Ok(Some(HEADER + length)),
    }
}

impl Records {
    pub(super) fn new(secrets: ExtractedSecrets, keys: Keys) -> Result<Self, Error> {
        let suite = match &keys {
            Keys::Client(kernel) => kernel.negotiated_cipher_suite(),
            Keys::Server(kernel) => kernel.negotiated_cipher_suite(),
        };
        let suite = suite.tls13().ok_or(Error::HandshakeNotComplete)?;
        let ((sealed, tx), (opened, rx)) = (secrets.tx, secrets.rx);
        // Neither side says anything before the handshake is done. (A sealer that copies is aws-lc's for
        // TLS, which takes the first sequence number that it sees for zero.)
        if sealed != 0 {
            return Err(Error::General("records were sealed before".to_owned()));
        }
        Ok(Self {
            keys,
            suite,
            opener: opener(suite, rx)?,
            opened,
            sealer: sealer(suite, tx)?,
            sealed,
            limit: suite.common.confidentiality_limit,
            fragments: Vec::new(),
            key_updates: 0,
            warnings: 0,
            empty: 0,
            ended: false,
        })
    }

    /// Decrypts a whole `record` in place. What it makes TLS say goes to `outgoing`.
    ///
    /// # Errors
    ///
    /// What ends the connection; [`fail`](Self::fail) tells the peer.
    pub(super) fn open(
        &mut self,
        record: &mut [u8],
        outgoing: &mut Outgoing,
    ) -> Result<Opened, Error> {
        let (begin, end) = (record.as_ptr().addr(), record.len());
        let (header, payload) = record.split_at_mut(HEADER);
        // All that is encrypted says that it is data; nothing else comes after the handshake.
        if header[0] != 23 {
            return Err(match header[0] {
                20 => PeerMisbehaved::IllegalMiddleboxChangeCipherSpec.into(),
                _ => Error::DecryptError,
            });
        }
        let opaque = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            payload,
        );
        let plain = self.opener.decrypt(opaque, self.opened)?;
        self.opened += 1;
        if plain.typ != ContentType::Handshake && !self.fragments.is_empty() {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        if plain.payload.is_empty() {
            self.empty += 1;
            if plain.typ != ContentType::ApplicationData {
                return Err(InvalidMessage::InvalidEmptyPayload.into());
            }
            if self.empty > MAX_EMPTY {
                return Err(PeerMisbehaved::TooManyEmptyFragments.into());
            }
            return Ok(Opened::Nothing);
        }
        self.empty = 0;
        match plain.typ {
            ContentType::ApplicationData => {
                self.key_updates = 0;
                // It is decrypted where it was, by every provider that we know.
                let start = plain.payload.as_ptr().addr().checked_sub(begin);
                let data = start.map(|start| start..start + plain.payload.len());
                match data.filter(|data| data.end <= end) {
                    Some(data) => Ok(Opened::Data(data)),
                    None => Err(Error::General("expected decryption in place".to_owned())),
                }
            }
            ContentType::Alert => self.alert(plain.payload),
            ContentType::Handshake => {
                self.fragments.extend_from_slice(plain.payload);
                self.messages(outgoing)?;
                Ok(Opened::Nothing)
            }
            _ => Err(InvalidMessage::InvalidContentType.into()),
        }
    }

    fn alert(&mut self, alert: &[u8]) -> Result<Opened, Error> {
        // The level says nothing in TLS 1.3 (RFC 8446, 6).
        let [_, description] = *alert else {
            return Err(match alert.len() {
                0 | 1 => InvalidMessage::MissingData("AlertMessagePayload"),
                _ => InvalidMessage::TrailingData("AlertMessagePayload"),
            }
            .into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(Opened::Closed),
            AlertDescription::UserCanceled if self.warnings < MAX_WARNINGS => {
                self.warnings += 1;
                Ok(Opened::Nothing)
            }
            AlertDescription::UserCanceled => {
                Err(PeerMisbehaved::TooManyWarningAlertsReceived.into())
            }
            fatal => Err(Error::AlertReceived(fatal)),
        }
    }

    /// Takes the messages that are whole.
    fn messages(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        let mut taken = 0;
        while let [kind, high, mid, low, rest @ ..] = &self.fragments[taken..] {
            let length = u32::from_be_bytes([0, *high, *mid, *low]) as usize;
            if length > MAX_MESSAGE {
                return Err(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            let Some((body, after)) = rest.split_at_checked(length) else {
                break;
            };
            match (HandshakeType::from(*kind), &mut self.keys) {
                (HandshakeType::KeyUpdate, _) => {
                    let requested = match body {
                        [0] => false,
                        [1] => true,
                        _ => return Err(InvalidMessage::InvalidKeyUpdate.into()),
                    };
                    // What follows would be of two epochs (RFC 8446, 5.1).
                    if !after.is_empty() {
                        return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
                    }
                    taken += MESSAGE_HEADER + length;
                    self.key_updated(requested, outgoing)?;
                    break;
                }
                // Nothing is resumed, but what is wrong with a ticket is an error all the same.
                (HandshakeType::NewSessionTicket, Keys::Client(kernel)) => {
                    kernel.handle_new_session_ticket(body)?;
                }
                (got_type, _) => {
                    return Err(Error::InappropriateHandshakeMessage {
                        expect_types: vec![HandshakeType::KeyUpdate],
                        got_type,
                    });
                }
            }
            taken += MESSAGE_HEADER + length;
        }
        if taken == self.fragments.len() {
            self.fragments = Vec::new();
        } else {
            self.fragments.drain(..taken);
        }
        Ok(())
    }

    fn key_updated(&mut self, requested: bool, outgoing: &mut Outgoing) -> Result<(), Error> {
        self.key_updates += 1;
        if self.key_updates > MAX_KEY_UPDATES {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        let (opened, secrets) = match &mut self.keys {
            Keys::Client(kernel) => kernel.update_rx_secret()?,
            Keys::Server(kernel) => kernel.update_rx_secret()?,
        };
        self.opener = opener(self.suite, secrets)?;
        self.opened = opened;
        // One answer is enough for all that is asked before it leaves (RFC 8446, 4.6.3), and a peer
        // that does not read makes us keep no more.
        if requested && !self.ended && !outgoing.has_answer() {
            self.update_key(outgoing)?;
            outgoing.mark_answer();
        }
        Ok(())
    }

    /// Seals with the next key from now on, and says so before.
    fn update_key(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        // Type, length, update_not_requested.
        let message = [u8::from(HandshakeType::KeyUpdate), 0, 0, 1, 0];
        let message = OutboundChunks::Single(&message);
        self.seal_record(ContentType::Handshake, message, outgoing)?;
        let (sealed, secrets) = match &mut self.keys {
            Keys::Client(kernel) => kernel.update_tx_secret()?,
            Keys::Server(kernel) => kernel.update_tx_secret()?,
        };
        self.sealer = sealer(self.suite, secrets)?;
        self.sealed = sealed;
        Ok(())
    }

    /// Encrypts data, in records as large as may be.
    pub(super) fn seal(
        &mut self,
        data: OutboundChunks<'_>,
        outgoing: &mut Outgoing,
    ) -> Result<(), Error> {
        let mut rest = data;
        while !rest.is_empty() {
            self.keep_limit(outgoing)?;
            let (record, after) = rest.split_at(RECORD);
            self.seal_record(ContentType::ApplicationData, record, outgoing)?;
            rest = after;
        }
        Ok(())
    }

    /// Encrypts data in the buffer that it comes in.
    pub(super) fn seal_frame(
        &mut self,
        frame: FrameBuf,
        outgoing: &mut Outgoing,
    ) -> Result<(), Error> {
        let fits = frame.has_front() && (1..=RECORD).contains(&frame.len());
        if !fits || matches!(self.sealer, Sealer::Copying(_)) {
            return self.seal(OutboundChunks::Single(frame.bytes()), outgoing);
        }
        self.keep_limit(outgoing)?;
        self.seal_in_place(ContentType::ApplicationData, frame, outgoing)
    }

    /// Takes the next key before this one has sealed too much.
    fn keep_limit(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        // With room for the last words, which are of no use to who attacks the cipher.
        if self.sealed + 2 >= self.limit {
            self.update_key(outgoing)?;
        }
        Ok(())
    }

    /// Says that no more follows, unless the last thing was said.
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) -> Result<(), Error> {
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        self.seal_alert(AlertDescription::CloseNotify, outgoing)
    }

    /// Says why this side ends the connection, unless the last thing was said or the peer has ended it.
    pub(super) fn fail(&mut self, error: &Error, outgoing: &mut Outgoing) {
        if !std::mem::replace(&mut self.ended, true)
            && let Some(alert) = alert_of(error)
        {
            let _ = self.seal_alert(alert, outgoing);
        }
    }

    fn seal_alert(
        &mut self,
        alert: AlertDescription,
        outgoing: &mut Outgoing,
    ) -> Result<(), Error> {
        let level = match alert {
            AlertDescription::CloseNotify => 1,
            _ => 2,
        };
        let message = [level, u8::from(alert)];
        let message = OutboundChunks::Single(&message);
        self.seal_record(ContentType::Alert, message, outgoing)
    }

    fn seal_record(
        &mut self,
        typ: ContentType,
        payload: OutboundChunks<'_>,
        outgoing: &mut Outgoing,
    ) -> Result<(), Error> {
        let sealer = match &mut self.sealer {
            Sealer::InPlace(_) => {
                let mut frame = FrameBuf::with_capacity(payload.len());
                payload.copy_to_vec(frame.tail());
                return self.seal_in_place(typ, frame, outgoing);
            }
            Sealer::Copying(sealer) => sealer,
        };
        let plain = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload,
        };
        let sealed = sealer.encrypt(plain, self.sealed)?;
        self.sealed += 1;
        outgoing.push(FrameBuf::of(sealed.encode()));
        Ok(())
    }

    /// Makes a record of a frame that has room for its header, and is no longer than one may be.
    fn seal_in_place(
        &mut self,
        typ: ContentType,
        mut frame: FrameBuf,
        outgoing: &mut Outgoing,
    ) -> Result<(), Error> {
        let Sealer::InPlace(key) = &self.sealer else {
            return Err(Error::EncryptError);
        };
        // The content type is the last byte of what is encrypted (RFC 8446, 5.2).
        frame.extend(&[typ.into()]);
        let length = frame.len() + key.tag_len();
        let length = u16::try_from(length).map_err(|_| Error::EncryptError)?;
        let [high, low] = length.to_be_bytes();
        let header = [ContentType::ApplicationData.into(), 3, 3, high, low];
        let tag = key.encrypt_in_place(self.sealed, &header, frame.bytes_mut())?;
        self.sealed += 1;
        frame.extend(tag.as_ref());
        frame.prepend(&header);
        outgoing.push(frame);
        Ok(())
    }
}

/// What RFC 8446, 6.2 has one say of it.
fn alert_of(error: &Error) -> Option<AlertDescription> {
    Some(match error {
        Error::AlertReceived(_) => return None,
        Error::DecryptError => AlertDescription::BadRecordMac,
        Error::PeerSentOversizedRecord | Error::InvalidMessage(InvalidMessage::MessageTooLarge) => {
            AlertDescription::RecordOverflow
        }
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::InvalidEmptyPayload
            | InvalidMessage::UnknownProtocolVersion,
        )
        | Error::InappropriateHandshakeMessage { .. }
        | Error::PeerMisbehaved(_) => AlertDescription::UnexpectedMessage,
        Error::InvalidMessage(InvalidMessage::InvalidKeyUpdate) => {
            AlertDescription::IllegalParameter
        }
        Error::InvalidMessage(_) => AlertDescription::DecodeError,
        _ => AlertDescription::InternalError,
    })
}

fn opener(
    suite: &Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    use ConnectionTrafficSecrets as Secrets;
    match secrets {
        Secrets::Aes128Gcm { key, iv } | Secrets::Aes256Gcm { key, iv } => {
            Ok(suite.aead_alg.decrypter(key, iv))
        }
        _ => Err(other_cipher()),
    }
}

fn sealer(suite: &Tls13CipherSuite, secrets: ConnectionTrafficSecrets) -> Result<Sealer, Error> {
    use ConnectionTrafficSecrets as Secrets;
    let (Secrets::Aes128Gcm { key, iv } | Secrets::Aes256Gcm { key, iv }) = secrets else {
        return Err(other_cipher());
    };
    Ok(match suite.quic {
        // What FIPS has approved for TLS is the other way only.
        Some(quic) if !suite.fips() => Sealer::InPlace(quic.packet_key(key, iv)),
        _ => Sealer::Copying(suite.aead_alg.encrypter(key, iv)),
    })
}

/// [`Provider`](super::Provider) offers AES-GCM only.
fn other_cipher() -> Error {
    Error::General("expected AES-GCM".to_owned())
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records")
            .field("opened", &self.opened)
            .field("sealed", &self.sealed)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, any(feature = "aws-lc-rs", feature = "ring")))]
mod tests;
