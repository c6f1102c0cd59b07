//! rustls until both sides have finished: records in, records out, no I/O.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, CommonState, Error, PeerMisbehaved, ServerConfig};
use rustls_pki_types::ServerName;
use std::fmt;
use std::sync::Arc;

use super::outgoing::Outgoing;
use super::records::{Keys, Records};
use crate::FrameBuf;

/// A handshake of either side.
///
/// It is given one record at a time, so that it never sees what comes after its last one.
pub(super) enum Handshake {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
}

/// What one look at the connection came to.
enum Step {
    Again,
    Wait,
    Closed,
}

/// How a handshake goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// It wants the next record.
    Going,
    Finished,
    /// The peer closed.
    Closed,
}

impl Handshake {
    pub(super) fn client(config: ClientConfig, name: ServerName<'static>) -> Result<Self, Error> {
        let tls = UnbufferedClientConnection::new(exporting(config), name)?;
        Ok(Self::Client(Box::new(tls)))
    }

    pub(super) fn server(mut config: ServerConfig) -> Result<Self, Error> {
        config.enable_secret_extraction = true;
        let tls = UnbufferedServerConnection::new(Arc::new(config))?;
        Ok(Self::Server(Box::new(tls)))
    }

    /// What is known of the connection.
    pub(super) fn common(&self) -> &CommonState {
        match self {
            Self::Client(tls) => tls,
            Self::Server(tls) => tls,
        }
    }

    /// Takes whole records from the front of `incoming`: those that are not whole yet as a message
    /// stay in front of the next. Says how many bytes it is done with.
    ///
    /// # Errors
    ///
    /// What ends the handshake; the alert that tells the peer is then in `outgoing`.
    pub(super) fn advance(
        &mut self,
        incoming: &mut [u8],
        outgoing: &mut Outgoing,
    ) -> Result<(usize, Progress), Error> {
        let mut consumed = 0;
        loop {
            let rest = &mut incoming[consumed..];
            let (discard, step) = match self {
                Self::Client(tls) => step(tls.process_tls_records(rest), outgoing),
                Self::Server(tls) => step(tls.process_tls_records(rest), outgoing),
            };
            consumed += discard;
            match step {
                Ok(Step::Again) => {}
                Ok(Step::Closed) => return Ok((consumed, Progress::Closed)),
                Ok(Step::Wait) if self.common().is_handshaking() => {
                    return Ok((consumed, Progress::Going));
                }
                Ok(Step::Wait) => return Ok((consumed, Progress::Finished)),
                Err(error) => {
                    self.take_alert(outgoing);
                    return Err(error);
                }
            }
        }
    }

    /// Takes what rustls still has to say after an error: often an alert, and what it had said before.
    ///
    /// Asked when it has nothing, rustls would look for the records that it was given before.
    fn take_alert(&mut self, outgoing: &mut Outgoing) {
        while self.common().wants_write() {
            let (_, step) = match self {
                Self::Client(tls) => step(tls.process_tls_records(&mut []), outgoing),
                Self::Server(tls) => step(tls.process_tls_records(&mut []), outgoing),
            };
            if !matches!(step, Ok(Step::Again)) {
                return;
            }
        }
    }

    /// Goes over to application data.
    pub(super) fn finish(self) -> Result<Records, Error> {
        match self {
            Self::Client(tls) => {
                let (secrets, kernel) = tls.dangerous_into_kernel_connection()?;
                Records::new(secrets, Keys::Client(Box::new(kernel)))
            }
            Self::Server(tls) => {
                let (secrets, kernel) = tls.dangerous_into_kernel_connection()?;
                Records::new(secrets, Keys::Server(Box::new(kernel)))
            }
        }
    }
}

fn exporting(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn step<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    outgoing: &mut Outgoing,
) -> (usize, Result<Step, Error>) {
    let step = status.state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let size = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
                _ => 0,
            };
            let mut bytes = vec![0; size];
            data.encode(&mut bytes)
                .map_err(|error| Error::General(error.to_string()))?;
            outgoing.push(FrameBuf::of(bytes));
            Ok(Step::Again)
        }
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::PeerClosed | ConnectionState::Closed => Ok(Step::Closed),
        ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => Ok(Step::Wait),
        // Nobody may say anything before both have finished: there is no early data.
        _ => Err(PeerMisbehaved::TooMuchEarlyDataReceived.into()),
    });
    (status.discard, step)
}

impl fmt::Debug for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake").finish_non_exhaustive()
    }
}
