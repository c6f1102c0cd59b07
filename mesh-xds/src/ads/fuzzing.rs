//! What bytes of a control plane do to a session, for the fuzz targets. No part of the interface.

use std::sync::Arc;

use prost::Message;
use prost::bytes::Bytes;
use tokio::time::Instant;

use super::state::{Outgoing, Protocol, Session};
use super::{Interest, Node, Settings};
use crate::decode::{Decoder, ResourceType};
use crate::proto::envoy::service::discovery::v3::DeltaDiscoveryResponse;

/// A response of any kind is answered once, in few words, and what it brought is here.
pub fn response(data: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(Bytes::copy_from_slice(data)) else {
        return;
    };
    let types = ResourceType::ALL.into_iter();
    let settings = types.fold(Settings::new(Node::new("a")), |settings, kind| {
        settings.with_type(kind.url(), Interest::All)
    });
    let now = Instant::now();
    let Ok(mut session) = Session::new(settings, Arc::new(Decoder::new()), now) else {
        return;
    };
    assert!(session.poll_connect(now).is_some());
    session.opened();
    while session.poll_transmit().is_some() {}
    for _ in 0..2 {
        let message = Bytes::copy_from_slice(data);
        let Ok(_) = session.receive(Protocol::Delta, message) else {
            panic!("prost reads it");
        };
        session.judged([]);
        let Some(Outgoing::Delta(reply)) = session.poll_transmit() else {
            panic!("every response is answered");
        };
        assert_eq!(reply.type_url, response.type_url);
        assert_eq!(reply.response_nonce, response.nonce);
        let refusal = reply.error_detail.map(|status| status.message);
        assert!(refusal.is_none_or(|text| text.len() <= 1024));
        assert!(session.poll_transmit().is_none(), "once");
    }
}
