use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use super::super::handshake::{Handshake, Progress};
use super::super::provider::{CipherPreference, Provider};
use super::*;

fn provider() -> CryptoProvider {
    let provider = Provider::by_feature().unwrap();
    CryptoProvider::clone(&provider.prefer(CipherPreference::Aes256))
}

/// Both ends of a connection whose handshake is done.
fn pair() -> (Records, Records) {
    pair_of(provider())
}

/// With a provider that has no QUIC, so that records cannot be sealed where they are.
fn copying_pair() -> (Records, Records) {
    let mut crypto = provider();
    for suite in &mut crypto.cipher_suites {
        let Some(tls13) = suite.tls13() else { continue };
        let without = Tls13CipherSuite {
            common: rustls::crypto::CipherSuiteCommon {
                suite: tls13.common.suite,
                hash_provider: tls13.common.hash_provider,
                confidentiality_limit: tls13.common.confidentiality_limit,
            },
            hkdf_provider: tls13.hkdf_provider,
            aead_alg: tls13.aead_alg,
            quic: None,
        };
        *suite = rustls::SupportedCipherSuite::Tls13(Box::leak(Box::new(without)));
    }
    let (client, server) = pair_of(crypto);
    assert!(matches!(client.sealer, Sealer::Copying(_)));
    (client, server)
}

fn pair_of(crypto: CryptoProvider) -> (Records, Records) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let crypto = Arc::new(crypto);
    let client = ClientConfig::builder_with_provider(Arc::clone(&crypto))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut server = ServerConfig::builder_with_provider(crypto)
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.send_tls13_tickets = 0;
    let name = ServerName::try_from("a.example").unwrap();
    let mut client = Handshake::client(client, name).unwrap();
    let mut server = Handshake::server(server).unwrap();

    let (mut to_client, mut to_server) = (Vec::new(), Vec::new());
    let mut finished = [false; 2];
    while finished != [true; 2] {
        finished = [
            advance(&mut client, &mut to_client, &mut to_server),
            advance(&mut server, &mut to_server, &mut to_client),
        ];
    }
    let (mut client, mut server) = (client.finish().unwrap(), server.finish().unwrap());
    assert!(to_client.is_empty() && to_server.is_empty());
    assert_eq!(exchange(&mut client, &mut server, b"hello"), b"hello");
    (client, server)
}

/// Takes what is here, record by record; says whether the handshake is done.
fn advance(end: &mut Handshake, incoming: &mut Vec<u8>, peer: &mut Vec<u8>) -> bool {
    let mut seen = 0;
    loop {
        let mut outgoing = Outgoing::default();
        let (used, progress) = end.advance(&mut incoming[..seen], &mut outgoing).unwrap();
        incoming.drain(..used);
        seen -= used;
        peer.extend(outgoing.take());
        match record_len(&incoming[seen..]).unwrap() {
            _ if progress == Progress::Finished => return true,
            Some(length) => seen += length,
            None => return false,
        }
    }
}

fn records(bytes: &mut Vec<u8>) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(length) = record_len(bytes).unwrap() {
        records.push(bytes.drain(..length).collect());
    }
    assert!(bytes.is_empty());
    records
}

/// Opens one record; nothing may come of it but what it is.
fn say(to: &mut Records, mut record: Vec<u8>) -> Result<Opened, Error> {
    let mut outgoing = Outgoing::default();
    let opened = to.open(&mut record, &mut outgoing);
    assert!(outgoing.is_empty());
    opened
}

fn say_in_place(to: &mut Records, record: &mut [u8]) -> Opened {
    let mut outgoing = Outgoing::default();
    to.open(record, &mut outgoing).unwrap()
}

/// One record of a kind.
fn sealed(from: &mut Records, typ: ContentType, payload: &[u8]) -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    from.seal_record(typ, OutboundChunks::Single(payload), &mut outgoing)
        .unwrap();
    outgoing.take()
}

/// Moves data and everything else that it makes one end say.
fn exchange(from: &mut Records, to: &mut Records, data: &[u8]) -> Vec<u8> {
    let mut outgoing = Outgoing::default();
    from.seal(OutboundChunks::Single(data), &mut outgoing)
        .unwrap();
    let mut received = Vec::new();
    for mut record in records(&mut outgoing.take()) {
        let mut answer = Outgoing::default();
        if let Opened::Data(range) = to.open(&mut record, &mut answer).unwrap() {
            received.extend_from_slice(&record[range]);
        }
        for record in records(&mut answer.take()) {
            assert_eq!(say(from, record), Ok(Opened::Nothing));
        }
    }
    received
}

fn key_update(requested: u8) -> [u8; 5] {
    [24, 0, 0, 1, requested]
}

#[test]
fn data_of_any_size_is_opened_where_it_was() {
    for (mut client, mut server) in [pair(), copying_pair()] {
        for size in [1, 2, 100, RECORD - 1, RECORD, RECORD + 1, 3 * RECORD + 5] {
            let data: Vec<u8> = (0..size).map(|index| (index * 7 / 3) as u8).collect();
            assert_eq!(exchange(&mut client, &mut server, &data), data);
            assert_eq!(exchange(&mut server, &mut client, &data), data);
        }
    }
}

#[test]
fn a_frame_is_sealed_where_it_is_if_it_fits_a_record() {
    for (mut client, mut server) in [pair(), copying_pair()] {
        for size in [1, 100, RECORD, RECORD + 1] {
            let data: Vec<u8> = (0..size).map(|index| (index * 7 / 3) as u8).collect();
            let mut frame = FrameBuf::with_capacity(size);
            frame.extend(&data);
            // As a frame without room in front.
            for frame in [frame, FrameBuf::of(data.clone())] {
                let mut outgoing = Outgoing::default();
                client.seal_frame(frame, &mut outgoing).unwrap();
                let mut received = Vec::new();
                for mut record in records(&mut outgoing.take()) {
                    match say_in_place(&mut server, &mut record) {
                        Opened::Data(range) => received.extend_from_slice(&record[range]),
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(received, data);
            }
        }
    }
}

#[test]
fn keys_change_when_the_peer_says_so_and_when_it_asks() {
    let (mut client, mut server) = pair();
    for _ in 0..3 {
        let mut outgoing = Outgoing::default();
        client.update_key(&mut outgoing).unwrap();
        assert_eq!(say(&mut server, outgoing.take()), Ok(Opened::Nothing));
        assert_eq!(exchange(&mut client, &mut server, b"new key"), b"new key");

        let mut request = sealed(&mut server, ContentType::Handshake, &key_update(1));
        // The server's own key changes with what it said.
        let (_, secrets) = match &mut server.keys {
            Keys::Server(kernel) => kernel.update_tx_secret().unwrap(),
            Keys::Client(_) => unreachable!(),
        };
        (server.sealer, server.sealed) = (sealer(server.suite, secrets).unwrap(), 0);
        let mut answer = Outgoing::default();
        assert_eq!(client.open(&mut request, &mut answer), Ok(Opened::Nothing));
        assert_eq!(say(&mut server, answer.take()), Ok(Opened::Nothing));
        assert_eq!(exchange(&mut client, &mut server, b"there"), b"there");
        assert_eq!(exchange(&mut server, &mut client, b"back"), b"back");
    }
}

#[test]
fn a_key_is_changed_before_it_has_sealed_too_much() {
    for (mut client, mut server) in [pair(), copying_pair()] {
        client.limit = 10;
        for round in 0..50 {
            assert_eq!(exchange(&mut client, &mut server, b"a record"), b"a record");
            assert!(client.sealed < 10, "{round}");
            let mut outgoing = Outgoing::default();
            let mut frame = FrameBuf::with_capacity(4);
            frame.extend(b"data");
            client.seal_frame(frame, &mut outgoing).unwrap();
            assert!(client.sealed < 10, "{round}");
            for mut record in records(&mut outgoing.take()) {
                say_in_place(&mut server, &mut record);
            }
        }
    }
}

#[test]
fn messages_may_come_in_pieces_but_not_between_others() {
    let (mut client, mut server) = pair();
    for piece in key_update(0).chunks(2) {
        let record = sealed(&mut client, ContentType::Handshake, piece);
        assert_eq!(say(&mut server, record), Ok(Opened::Nothing));
    }
    let (_, secrets) = match &mut client.keys {
        Keys::Client(kernel) => kernel.update_tx_secret().unwrap(),
        Keys::Server(_) => unreachable!(),
    };
    (client.sealer, client.sealed) = (sealer(client.suite, secrets).unwrap(), 0);
    assert_eq!(exchange(&mut client, &mut server, b"after it"), b"after it");

    let piece = sealed(&mut client, ContentType::Handshake, &key_update(0)[..3]);
    assert_eq!(say(&mut server, piece), Ok(Opened::Nothing));
    let data = sealed(&mut client, ContentType::ApplicationData, b"between");
    assert_eq!(
        say(&mut server, data),
        Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into())
    );
}

#[test]
fn what_nobody_may_say_ends_the_connection() {
    let mut two_updates = key_update(0).to_vec();
    two_updates.extend(key_update(0));
    let huge = [24, 1, 0, 0];
    let refused: [(ContentType, &[u8], AlertDescription); 12] = [
        (
            ContentType::Handshake,
            &[],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &two_updates,
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &key_update(2),
            AlertDescription::IllegalParameter,
        ),
        (
            ContentType::Handshake,
            &[24, 0, 0, 0],
            AlertDescription::IllegalParameter,
        ),
        (ContentType::Handshake, &huge, AlertDescription::DecodeError),
        // A ClientHello, a Finished, and to a server a ticket.
        (
            ContentType::Handshake,
            &[1, 0, 0, 0],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &[20, 0, 0, 0],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Handshake,
            &[4, 0, 0, 0],
            AlertDescription::UnexpectedMessage,
        ),
        (ContentType::Alert, &[1], AlertDescription::DecodeError),
        (
            ContentType::Alert,
            &[1, 0, 0],
            AlertDescription::DecodeError,
        ),
        (
            ContentType::ChangeCipherSpec,
            &[1],
            AlertDescription::UnexpectedMessage,
        ),
        (
            ContentType::Heartbeat,
            &[1],
            AlertDescription::UnexpectedMessage,
        ),
    ];
    for (typ, payload, expected) in refused {
        let (mut client, mut server) = pair();
        let record = sealed(&mut client, typ, payload);
        let error = say(&mut server, record).unwrap_err();
        let mut outgoing = Outgoing::default();
        server.fail(&error, &mut outgoing);
        assert_eq!(
            say(&mut client, outgoing.take()),
            Err(Error::AlertReceived(expected)),
            "{typ:?} {payload:?}: {error}"
        );
    }
}

#[test]
fn alerts_mean_what_they_say_and_are_not_answered() {
    for alert in [0_u8, 10, 20, 40, 80, 90, 255] {
        let (mut client, mut server) = pair();
        let record = sealed(&mut client, ContentType::Alert, &[1, alert]);
        let said = say(&mut server, record);
        match alert {
            0 => assert_eq!(said, Ok(Opened::Closed)),
            90 => assert_eq!(said, Ok(Opened::Nothing)),
            _ => {
                let error = Error::AlertReceived(AlertDescription::from(alert));
                let mut outgoing = Outgoing::default();
                server.fail(&error, &mut outgoing);
                assert_eq!(said, Err(error));
                assert!(outgoing.is_empty());
            }
        }
    }
    let (mut client, mut server) = pair();
    for bears in [true, true, true, true, false] {
        let record = sealed(&mut client, ContentType::Alert, &[1, 90]);
        assert_eq!(say(&mut server, record).is_ok(), bears);
    }
}

#[test]
fn a_client_bears_tickets_that_are_some() {
    let (mut client, mut server) = pair();
    // Lifetime, age, nonce, ticket, no extensions.
    let body = [0, 0, 14, 16, 0, 0, 0, 1, 1, 0, 0, 3, 1, 2, 3, 0, 0];
    let mut ticket = vec![4, 0, 0, body.len() as u8];
    ticket.extend(body);
    let record = sealed(&mut server, ContentType::Handshake, &ticket);
    assert_eq!(say(&mut client, record), Ok(Opened::Nothing));
    assert_eq!(exchange(&mut server, &mut client, b"data"), b"data");

    let record = sealed(&mut server, ContentType::Handshake, &[4, 0, 0, 1, 0]);
    assert!(say(&mut client, record).is_err());
}

#[test]
fn key_updates_are_borne_only_so_many_between_data() {
    let (mut client, mut server) = pair();
    for _ in 0..2 {
        for _ in 0..MAX_KEY_UPDATES {
            let mut outgoing = Outgoing::default();
            client.update_key(&mut outgoing).unwrap();
            assert_eq!(say(&mut server, outgoing.take()), Ok(Opened::Nothing));
        }
        assert_eq!(exchange(&mut client, &mut server, b"data"), b"data");
    }
    for count in 0..=MAX_KEY_UPDATES {
        let mut outgoing = Outgoing::default();
        client.update_key(&mut outgoing).unwrap();
        let bears = say(&mut server, outgoing.take()).is_ok();
        assert_eq!(bears, count < MAX_KEY_UPDATES);
    }
}

#[test]
fn a_record_is_opened_once_in_its_place_and_unchanged() {
    let refused = Err(Error::DecryptError);
    let (mut client, mut server) = pair();
    let first = sealed(&mut client, ContentType::ApplicationData, b"first");
    let second = sealed(&mut client, ContentType::ApplicationData, b"second");
    assert_eq!(say(&mut server, second), refused);
    assert!(say(&mut server, first.clone()).is_ok());
    assert_eq!(say(&mut server, first), refused);

    let (mut client, mut server) = pair();
    let record = sealed(&mut client, ContentType::ApplicationData, b"data");
    for at in HEADER..record.len() {
        let mut changed = record.clone();
        changed[at] ^= 1;
        assert_eq!(say(&mut server, changed), refused, "byte {at}");
    }
    for length in HEADER..record.len() {
        assert_eq!(say(&mut server, record[..length].to_vec()), refused);
    }
    assert!(say(&mut server, record).is_ok());

    // What is not encrypted at all.
    let plain = [21, 3, 3, 0, 2, 1, 0].to_vec();
    assert_eq!(say(&mut server, plain), refused);
    let plain = [20, 3, 3, 0, 1, 1].to_vec();
    assert_eq!(
        say(&mut server, plain),
        Err(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec.into())
    );
}

#[test]
fn lengths_are_those_of_the_standard() {
    for (bytes, expected) in [
        (&[][..], Ok(None)),
        (&[23, 3, 3, 0x40], Ok(None)),
        (&[23, 3, 3, 0, 0], Ok(Some(5))),
        (&[22, 3, 1, 0, 1], Ok(Some(6))),
        (&[23, 3, 3, 0x41, 0], Ok(Some(MAX_RECORD))),
        (&[23, 3, 3, 0x41, 1], Err(InvalidMessage::MessageTooLarge)),
        (&[22, 3, 3, 0, 0], Err(InvalidMessage::InvalidEmptyPayload)),
        (
            &[23, 2, 3, 0, 1],
            Err(InvalidMessage::UnknownProtocolVersion),
        ),
        (&[19, 3, 3, 0, 1], Err(InvalidMessage::InvalidContentType)),
        (b"GET /", Err(InvalidMessage::InvalidContentType)),
    ] {
        assert_eq!(
            record_len(bytes),
            expected.map_err(Error::from),
            "{bytes:?}"
        );
    }
}

#[test]
fn an_answer_that_has_not_left_answers_all_that_is_asked() {
    let (mut client, mut server) = pair();
    let mut outgoing = Outgoing::default();
    let ask = |client: &mut Records, server: &mut Records, outgoing: &mut Outgoing| {
        let mut request = sealed(client, ContentType::Handshake, &key_update(1));
        let (_, secrets) = match &mut client.keys {
            Keys::Client(kernel) => kernel.update_tx_secret().unwrap(),
            Keys::Server(_) => unreachable!(),
        };
        (client.sealer, client.sealed) = (sealer(client.suite, secrets).unwrap(), 0);
        assert_eq!(server.open(&mut request, outgoing), Ok(Opened::Nothing));
    };
    for _ in 0..2 {
        for _ in 0..10 {
            ask(&mut client, &mut server, &mut outgoing);
            let data = sealed(&mut client, ContentType::ApplicationData, b"data");
            assert!(say(&mut server, data).is_ok());
        }
        let answers = records(&mut outgoing.take());
        assert_eq!(answers.len(), 1);
        for answer in answers {
            assert_eq!(say(&mut client, answer), Ok(Opened::Nothing));
        }
        assert_eq!(exchange(&mut server, &mut client, b"back"), b"back");
    }

    server.close(&mut outgoing).unwrap();
    outgoing.take();
    ask(&mut client, &mut server, &mut outgoing);
    server.close(&mut outgoing).unwrap();
    server.fail(&Error::DecryptError, &mut outgoing);
    assert!(
        outgoing.is_empty(),
        "said after the last thing that may be said"
    );
}

#[test]
fn records_without_content_are_borne_only_so_many_in_a_row() {
    let (mut client, mut server) = pair();
    for _ in 0..2 {
        for _ in 0..MAX_EMPTY {
            let record = sealed(&mut client, ContentType::ApplicationData, &[]);
            assert_eq!(say(&mut server, record), Ok(Opened::Nothing));
        }
        assert_eq!(exchange(&mut client, &mut server, b"data"), b"data");
    }
    for count in 0..=MAX_EMPTY {
        let record = sealed(&mut client, ContentType::ApplicationData, &[]);
        assert_eq!(say(&mut server, record).is_ok(), count < MAX_EMPTY);
    }

    let (mut client, mut server) = pair();
    let piece = sealed(&mut client, ContentType::Handshake, &[24]);
    assert_eq!(say(&mut server, piece), Ok(Opened::Nothing));
    let nothing = sealed(&mut client, ContentType::Handshake, &[]);
    assert!(say(&mut server, nothing).is_err());
}
