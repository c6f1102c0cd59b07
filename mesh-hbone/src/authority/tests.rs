use std::net::SocketAddr;

use proptest::prelude::*;

use super::Authority;
use crate::ErrorKind;

fn parse(text: &str) -> Option<String> {
    text.parse::<Authority>()
        .ok()
        .map(|authority| authority.to_string())
}

#[test]
fn addresses_and_names() {
    assert_eq!(parse("10.0.0.7:9080").as_deref(), Some("10.0.0.7:9080"));
    assert_eq!(
        parse("[2001:DB8::7]:80").as_deref(),
        Some("[2001:db8::7]:80")
    );
    assert_eq!(
        parse("Reviews.Default.svc:65535").as_deref(),
        Some("reviews.default.svc:65535")
    );
    assert_eq!(parse("reviews.:80").as_deref(), Some("reviews:80"));
    assert_eq!(parse("_grpc.a-b.c1:1").as_deref(), Some("_grpc.a-b.c1:1"));
    let authority: Authority = "10.0.0.7:9080".parse().unwrap();
    assert_eq!(
        authority.socket_addr(),
        Some("10.0.0.7:9080".parse().unwrap())
    );
    assert_eq!(authority.hostname(), None);
}

#[test]
fn what_is_no_authority_names_what_was_expected() {
    for text in [
        "",
        ":",
        ":80",
        "host",
        "10.0.0.7",
        "host:",
        "host:0",
        "host:65536",
        "host:+80",
        "host:-1",
        "host: 80",
        "host:80 ",
        "host:008080",
        "user@host:80",
        "user:pw@host:80",
        "http://host:80",
        "host:80/path",
        "[::1]",
        "[::1]80",
        "::1:80",
        "[10.0.0.7]:80",
        "[fe80::1%eth0]:80",
        "[::1:80",
        "[]:80",
        "a..b:80",
        ".a:80",
        ".:80",
        "10.0.1:80",
        "256.1.1.1:80",
        "0x7f.0x1:80",
        "0X7F.0X1:80",
        "1234:80",
        "host\0:80",
        "h\u{f6}st:80",
        "ho st:80",
        "*:80",
        "h,b:80",
    ] {
        let error = text.parse::<Authority>().expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidAuthority);
        assert!(error.to_string().contains("expected"), "{error}");
    }
}

#[test]
fn long_ones_are_refused() {
    let label = "a".repeat(63);
    let fits = format!("{label}.{label}.{label}.{}:8080", "b".repeat(58));
    assert!(fits.len() <= 255 && parse(&fits).is_some());
    assert_eq!(parse(&format!("{}:80", "a".repeat(64))), None);
    let error = format!("{label}.{fits}").parse::<Authority>().unwrap_err();
    assert!(error.to_string().contains("255"), "{error}");
}

proptest! {
    #[test]
    fn socket_addresses_round_trip(address: SocketAddr) {
        prop_assume!(address.port() != 0);
        let address = SocketAddr::new(address.ip(), address.port());
        let authority: Authority = Authority::from(address).to_string().parse().unwrap();
        prop_assert_eq!(authority.socket_addr(), Some(address));
    }

    #[test]
    fn anything_that_parses_prints_what_parses_equal(text in "[a-zA-Z0-9\\.:\\[\\]@%/_-]{0,40}") {
        if let Ok(authority) = text.parse::<Authority>() {
            prop_assert_eq!(authority.to_string().parse::<Authority>().unwrap(), authority);
        }
    }
}
