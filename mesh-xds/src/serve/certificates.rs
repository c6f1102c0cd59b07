//! The certificate service over gRPC.

use std::sync::Arc;
use std::time::Duration;

use mesh_authz::Identity;
use tonic::{Code, Request, Response, Status};

use super::auth::{Credentials, Peer, Remote};
use super::ca::Ca;
use super::discovery::authenticate;
use super::server::Shared;
use crate::error::ErrorKind;
use crate::proto::google::protobuf::value::Kind;
use crate::proto::istio::v1::auth::istio_certificate_service_server::IstioCertificateService;
use crate::proto::istio::v1::auth::{IstioCertificateRequest, IstioCertificateResponse};

pub(super) struct Certificates {
    pub(super) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let ca = self.shared.ca.as_ref();
        let ca = ca.ok_or_else(|| Status::unimplemented("no certificates are issued here"))?;
        let (headers, extensions, message) = request.into_parts();
        let mut of_connection = http::Extensions::new();
        if let Some(peer) = extensions.get::<Peer>() {
            of_connection.insert(peer.clone());
        }
        if let Some(remote) = extensions.get::<Remote>() {
            of_connection.insert(*remote);
        }
        let caller = Credentials::of(headers.as_ref(), &of_connection);
        let identity = authenticate(&self.shared, &caller).await?;
        let answer = self.sign(ca, &message, &identity);
        let answer = answer.inspect_err(|status| match status.code() {
            Code::InvalidArgument | Code::PermissionDenied => {
                let shared = &self.shared;
                shared.reject(caller.remote(), Some(&identity), status.message());
            }
            // Of this side, not of the caller.
            _ => tracing::warn!(%identity, reason = status.message(), "no certificate could be signed"),
        });
        Ok(Response::new(answer?))
    }
}

impl Certificates {
    fn sign(
        &self,
        ca: &Ca,
        message: &IstioCertificateRequest,
        caller: &Identity,
    ) -> Result<IstioCertificateResponse, Status> {
        let mut identity = caller.clone();
        let fields = message.metadata.as_ref().map(|metadata| &metadata.fields);
        if let Some(value) = fields.and_then(|fields| fields.get("ImpersonatedIdentity")) {
            let other = match &value.kind {
                Some(Kind::StringValue(text)) => text.parse(),
                _ => "".parse(),
            };
            let other = other.map_err(|error| {
                let text = format!("metadata.ImpersonatedIdentity: {error}");
                Status::invalid_argument(text)
            })?;
            if other != *caller && !self.shared.authenticator.may_speak_for(caller, &other) {
                let text = format!("{caller} may not ask for a certificate of {other}");
                return Err(Status::permission_denied(text));
            }
            identity = other;
        }
        let lifetime = u64::try_from(message.validity_duration).ok();
        let lifetime = lifetime
            .filter(|seconds| *seconds > 0)
            .map(Duration::from_secs);
        let cert_chain = ca
            .sign(&message.csr, &identity, lifetime)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidRequest => Status::invalid_argument(error.to_string()),
                ErrorKind::Unavailable => Status::unavailable(error.to_string()),
                _ => Status::internal(error.to_string()),
            })?;
        tracing::debug!(%identity, "a certificate is issued");
        Ok(IstioCertificateResponse { cert_chain })
    }
}
