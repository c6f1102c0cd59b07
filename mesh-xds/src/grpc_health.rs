//! gRPC's health checking protocol, as a client of it
//! ([GRPC Health Checking Protocol](https://github.com/grpc/grpc/blob/master/doc/health-checking.md)).

use std::fmt;

use crate::error::Error;
use crate::proto::grpc::health::v1::HealthCheckRequest;
use crate::proto::grpc::health::v1::health_check_response::ServingStatus;
use crate::proto::grpc::health::v1::health_client::HealthClient;
use crate::transport::Channel;

/// An answer has two bytes.
const MAX_ANSWER: usize = 64 << 10;

/// What a server says of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Serving {
    /// It is to get requests.
    Serving,
    /// It is to get none.
    NotServing,
    /// The server does not know, or says something else.
    Unknown,
}

impl Serving {
    /// Whether it is to get requests.
    pub fn is_serving(self) -> bool {
        self == Self::Serving
    }
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::Unknown => "UNKNOWN",
        })
    }
}

/// Asks a server about one of its services, the empty one being the server as a whole: one call, over a
/// connection of its own.
///
/// # Errors
///
/// The status of the call: `Unimplemented` from a server that does not speak the protocol. There is no
/// time-out in here; the connector's own error is among the sources.
///
/// # Cancel safety
///
/// Dropping the future ends the call.
pub async fn check(channel: &Channel, service: &str) -> Result<Serving, Error> {
    let message = HealthCheckRequest {
        service: service.to_owned(),
    };
    let request = channel.request(message).await?;
    let answer = HealthClient::new(channel.fresh())
        .max_decoding_message_size(MAX_ANSWER)
        .check(request)
        .await?;
    Ok(match answer.into_inner().status() {
        ServingStatus::Serving => Serving::Serving,
        ServingStatus::NotServing => Serving::NotServing,
        ServingStatus::Unknown | ServingStatus::ServiceUnknown => Serving::Unknown,
    })
}
