use std::error::Error as _;
use std::io;

use super::*;

#[test]
fn displays_one_level_and_chains_the_rest() {
    let error = Error::new(ErrorKind::TunnelRefused(StatusCode::FORBIDDEN))
        .with_detail("to 10.0.0.9:9080")
        .with_source(io::Error::other("cause"));
    assert_eq!(
        error.to_string(),
        "tunnel refused with 403 Forbidden: to 10.0.0.9:9080"
    );
    assert_eq!(error.source().unwrap().to_string(), "cause");
    assert!(error.is_denied() && error.is_connect() && !error.is_retry_safe());
    assert_eq!(error.side(), Side::Upstream);
}

#[test]
fn only_what_the_peer_cannot_have_seen_is_retried() {
    for (kind, safe) in [
        (ErrorKind::ConnectFailed, true),
        (ErrorKind::ConnectTimeout, true),
        (ErrorKind::TlsHandshake, true),
        (ErrorKind::RefusedStream, true),
        (
            ErrorKind::TunnelRefused(StatusCode::SERVICE_UNAVAILABLE),
            true,
        ),
        (ErrorKind::TunnelRefused(StatusCode::FORBIDDEN), false),
        (ErrorKind::Reset, false),
        (ErrorKind::Closed, false),
        (ErrorKind::RequestTimeout, false),
        (ErrorKind::Overloaded, false),
        (ErrorKind::Denied, false),
    ] {
        assert_eq!(Error::new(kind).is_retry_safe(), safe, "{kind:?}");
    }
    assert!(
        Error::new(ErrorKind::Reset)
            .with_retry_safe(true)
            .is_retry_safe()
    );
}

#[test]
fn survives_a_trip_through_an_io_trait() {
    let error = Error::new(ErrorKind::NoHealthyUpstream).with_detail("ratings");
    let io = io::Error::from(error);
    assert_eq!(io.kind(), io::ErrorKind::ConnectionRefused);
    assert_eq!(Error::from(io).kind(), ErrorKind::NoHealthyUpstream);
    let plain = io::Error::from(io::ErrorKind::ConnectionReset);
    assert_eq!(Error::from(plain).kind(), ErrorKind::Reset);
}

#[test]
fn every_reply_is_one_that_envoy_would_give() {
    // HTTP status to gRPC status as Envoy maps it; the time-out alone differs (gRPC's own 4).
    let kinds = [
        ErrorKind::Config,
        ErrorKind::NotReady,
        ErrorKind::NoRecord,
        ErrorKind::Bind,
        ErrorKind::Identity,
        ErrorKind::BadRequest,
        ErrorKind::Unauthenticated,
        ErrorKind::Denied,
        ErrorKind::NoHealthyUpstream,
        ErrorKind::UnknownHost,
        ErrorKind::HostLookup,
        ErrorKind::UnknownWaypoint,
        ErrorKind::UnsupportedNetwork,
        ErrorKind::ConnectFailed,
        ErrorKind::ConnectTimeout,
        ErrorKind::TlsHandshake,
        ErrorKind::TunnelRefused(StatusCode::FORBIDDEN),
        ErrorKind::RefusedStream,
        ErrorKind::Reset,
        ErrorKind::Closed,
        ErrorKind::Overloaded,
        ErrorKind::Draining,
        ErrorKind::RequestTimeout,
        ErrorKind::Io,
        ErrorKind::Internal,
    ];
    for kind in kinds {
        let reply = kind.reply();
        let expected = match reply.status().as_u16() {
            400 => 13,
            401 => 16,
            403 => 7,
            502 | 503 => 14,
            504 => 4,
            500 => 2,
            other => panic!("{kind:?} answers {other}"),
        };
        assert_eq!(reply.grpc_status(), expected, "{kind:?}");
        assert!(!reply.details().is_empty());
        // A failure of the upstream's is always flagged, one of the client's never.
        assert_eq!(
            reply.flag().is_some(),
            kind.side() == Side::Upstream
                || matches!(
                    kind,
                    ErrorKind::UnknownHost
                        | ErrorKind::UnknownWaypoint
                        | ErrorKind::UnsupportedNetwork
                        | ErrorKind::Overloaded
                ),
            "{kind:?}"
        );
    }
}

/// As a library does that wraps a connector's error.
#[derive(Debug, thiserror::Error)]
#[error("outer")]
struct Outer(#[source] BoxError);

#[test]
fn reads_the_cause_out_of_other_libraries_errors() {
    let ours = Error::new(ErrorKind::ConnectFailed).with_detail("10.0.0.9:15008");
    let boxed: BoxError = Outer(Outer(ours.into()).into()).into();
    let error = Error::from(boxed);
    assert_eq!(error.kind(), ErrorKind::ConnectFailed);
    assert!(error.is_retry_safe());
    assert_eq!(error.source().unwrap().to_string(), "outer");

    // Also where it travels inside an I/O error.
    let io = io::Error::from(Error::new(ErrorKind::Reset).with_retry_safe(true));
    let error = Error::from(BoxError::from(Outer(io.into())));
    assert_eq!(
        (error.kind(), error.is_retry_safe()),
        (ErrorKind::Reset, true)
    );

    let io = io::Error::from(io::ErrorKind::ConnectionReset);
    let error = Error::from(BoxError::from(Outer(io.into())));
    assert_eq!(
        (error.kind(), error.is_retry_safe()),
        (ErrorKind::Reset, false)
    );

    // The text is not read.
    let error = Error::from(BoxError::from("connection refused"));
    assert_eq!(
        (error.kind(), error.is_retry_safe()),
        (ErrorKind::Io, false)
    );
}

#[cfg(feature = "http")]
#[test]
fn a_refused_stream_is_known_by_its_code() {
    for (reason, expected) in [
        (h2::Reason::REFUSED_STREAM, ErrorKind::RefusedStream),
        (h2::Reason::INTERNAL_ERROR, ErrorKind::Reset),
        (h2::Reason::CANCEL, ErrorKind::Reset),
    ] {
        let error = Error::from(BoxError::from(Outer(h2::Error::from(reason).into())));
        assert_eq!(error.kind(), expected);
    }
}

#[test]
fn a_chain_that_is_a_loop_ends() {
    /// Its own cause, and says something else each time.
    #[derive(Debug, Default)]
    struct Loop(std::sync::atomic::AtomicU32);

    impl fmt::Display for Loop {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let turn = self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            write!(f, "turn {turn}.")
        }
    }

    impl std::error::Error for Loop {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(self)
        }
    }

    let error = Error::new(ErrorKind::Io).with_source(Loop::default());
    let text = format!("{error:?}");
    assert!(text.starts_with("I/O error: turn 0.: turn 1.: "), "{text}");
    assert!(text.ends_with(": turn 15."), "{text}");
}

#[test]
fn what_a_tunnel_says_is_not_said_twice() {
    let refused = mesh_hbone::Error::dial(io::ErrorKind::ConnectionRefused.into());
    let error = Error::from(refused).with_detail("10.0.0.9:15008");
    assert_eq!(
        format!("{error:?}"),
        "connecting failed: 10.0.0.9:15008: connection refused"
    );
    let late = io::Error::new(io::ErrorKind::TimedOut, "no answer within 5s");
    let error = Error::from(mesh_hbone::Error::dial(late)).with_detail("10.0.0.9:15008");
    assert_eq!(
        format!("{error:?}"),
        "connecting timed out: 10.0.0.9:15008: no answer within 5s"
    );
    // Nor by who prints causes by himself.
    assert_eq!(error.source().unwrap().to_string(), "no answer within 5s");
    assert!(error.source().unwrap().source().is_none());
    let through = Error::from(BoxError::from(io::Error::from(error)));
    assert_eq!(through.kind(), ErrorKind::ConnectTimeout);
    let text = format!("{through:?}");
    assert_eq!(text.matches("timed out").count(), 1, "{text}");
}
