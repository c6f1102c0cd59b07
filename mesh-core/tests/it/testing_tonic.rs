//! A tonic server and a tonic client, with the mesh's layers between them and no socket.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use bytes::{Buf as _, BufMut as _};
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use mesh_core::authz::policy::Action;
use mesh_core::layers::PeerIdentity;
use mesh_core::testing::Caller;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tower::Service;

use crate::handler::{REVIEWS, from, policy, to};

/// Messages are plain text.
#[derive(Default)]
pub(crate) struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, item: String, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(item.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = buffer.copy_to_bytes(buffer.remaining());
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

/// What a handler of an application looks like.
struct SayHello;

impl UnaryService<String> for SayHello {
    type Response = String;
    type Future = Ready<Result<Response<String>, Status>>;

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let peer = request.extensions().get::<PeerIdentity>();
        let name = match peer.and_then(PeerIdentity::identity) {
            Some(identity) => identity.service_account().to_owned(),
            None => "nobody".to_owned(),
        };
        ready(Ok(Response::new(format!("{} {name}", request.get_ref()))))
    }
}

/// What tonic generates.
#[derive(Clone)]
struct Greeter;

impl NamedService for Greeter {
    const NAME: &'static str = "test.Greeter";
}

impl Service<http::Request<tonic::body::Body>> for Greeter {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(Text);
            Ok(grpc.unary(SayHello, request).await)
        })
    }
}

async fn say_hello(caller: Caller<tonic::service::Routes>) -> Result<String, Status> {
    let origin = http::Uri::from_static("http://greeter:50051");
    let mut client = tonic::client::Grpc::with_origin(caller.into_service(), origin);
    client.ready().await.unwrap();
    let path = PathAndQuery::from_static("/test.Greeter/SayHello");
    let answer = client.unary(Request::new("hello".to_owned()), path, Text);
    answer.await.map(Response::into_inner)
}

#[tokio::test(start_paused = true)]
async fn a_tonic_server_is_called_as_somebody() {
    let mut allowed = to(|operation| operation.paths = vec!["/test.Greeter/SayHello".into()]);
    allowed.from = from(|source| source.service_accounts = vec!["bookinfo-reviews".into()]).from;
    let caller = Caller::new(tonic::service::Routes::new(Greeter))
        .policies(policy(Action::Allow, vec![allowed]));

    let answer = say_hello(caller.clone().identity(REVIEWS)).await;
    assert_eq!(answer.unwrap(), "hello bookinfo-reviews");

    let stranger = "spiffe://cluster.local/ns/default/sa/stranger";
    for refused in [caller.clone().identity(stranger), caller] {
        let status = say_hello(refused).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), "RBAC: access denied");
    }
}
