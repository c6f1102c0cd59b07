//! Address blocks at their edges, against arithmetic on plain integers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mesh_authz::matcher::parse_cidr;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attributes, PolicySet};
use proptest::prelude::*;

use crate::generate::config;

/// Whether a policy for the block denies the address: the way that every decision takes.
fn denies(block: &str, ip: IpAddr) -> bool {
    let rule = Rule::new(Expr::Is(Matcher::SourceIp(parse_cidr(block).unwrap())));
    let policy = Policy::new(PolicyName::new("ns", "p"), Action::Deny, vec![rule]);
    let set = PolicySet::new([policy.into()]);
    let attributes = Attributes::new((ip, 1).into(), ([10, 0, 0, 1], 80).into());
    !set.evaluate(&attributes).is_allowed()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn edges() {
    for (block, inside, outside) in [
        (
            "0.0.0.0/0",
            vec!["0.0.0.0", "255.255.255.255", "::ffff:1.2.3.4"],
            vec!["::", "::1", "2001:db8::1"],
        ),
        ("::/0", vec!["::", "2001:db8::1", "ffff::"], vec![]),
        (
            "10.0.0.0/8",
            vec!["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
            vec!["9.255.255.255", "11.0.0.0", "::10.1.2.3"],
        ),
        (
            "10.1.2.3/8",
            vec!["10.0.0.0", "10.255.255.255"],
            vec!["11.0.0.0"],
        ),
        (
            "10.1.2.3/31",
            vec!["10.1.2.2", "10.1.2.3"],
            vec!["10.1.2.1", "10.1.2.4"],
        ),
        (
            "10.1.2.3/32",
            vec!["10.1.2.3", "::ffff:10.1.2.3"],
            vec!["10.1.2.2", "10.1.2.4"],
        ),
        ("10.1.2.3", vec!["10.1.2.3"], vec!["10.1.2.2"]),
        (
            "128.0.0.0/1",
            vec!["128.0.0.0", "255.255.255.255"],
            vec!["127.255.255.255"],
        ),
        (
            "255.255.255.255/32",
            vec!["255.255.255.255"],
            vec!["255.255.255.254", "0.0.0.0"],
        ),
        (
            "::ffff:10.0.0.0/104",
            vec!["10.0.0.1", "::ffff:10.0.0.1"],
            vec!["11.0.0.0", "::10.0.0.1"],
        ),
        ("::ffff:10.1.2.3/128", vec!["10.1.2.3"], vec!["10.1.2.4"]),
        ("::ffff:10.1.2.3", vec!["10.1.2.3"], vec!["10.1.2.4"]),
        (
            "::ffff:0.0.0.0/96",
            vec!["0.0.0.0", "255.255.255.255"],
            vec!["::", "::fffe:1.2.3.4"],
        ),
        (
            "2001:db8::/32",
            vec!["2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"],
            vec!["2001:db7:ffff::", "2001:db9::"],
        ),
        (
            "2001:db8::1/127",
            vec!["2001:db8::", "2001:db8::1"],
            vec!["2001:db8::2"],
        ),
        ("2001:DB8::1/128", vec!["2001:db8::1"], vec!["2001:db8::2"]),
        (
            "fe80::/10",
            vec!["fe80::1", "febf:ffff::"],
            vec!["fec0::", "fe7f:ffff::"],
        ),
        ("::1", vec!["::1"], vec!["::", "0.0.0.1", "127.0.0.1"]),
        ("::/128", vec!["::"], vec!["::1", "0.0.0.0"]),
    ] {
        for address in inside {
            assert!(denies(block, ip(address)), "{address} in {block}");
        }
        for address in outside {
            assert!(!denies(block, ip(address)), "{address} not in {block}");
        }
    }
}

/// What one reader takes for one address and another for another is refused.
#[test]
fn refused() {
    for text in [
        "",
        "/",
        "/8",
        "10",
        "10.0",
        "10.0.0",
        "10.0.0.0.0",
        "10.0.0.0/",
        "10.0.0.0/33",
        "10.0.0.0/-1",
        "10.0.0.0/+8",
        "10.0.0.0/08",
        "10.0.0.0/8/8",
        "10.0.0.0/255.0.0.0",
        "10.0.0.0 /8",
        "10.0.0.0/ 8",
        " 10.0.0.0/8",
        "10.0.0.0/8 ",
        "010.0.0.0/8",
        "10.0.0.00/8",
        "0x0a.0.0.0/8",
        "10.0.0.256",
        "10.0.0.-1",
        "10.0.0.0/8x",
        "10.0.0.0/1e1",
        "10.0.0.0\0/8",
        "10.*.*.*",
        "10.0.0.0-10.0.0.9",
        "::/129",
        "::/-1",
        "::/0128",
        ":::",
        "1:2:3:4:5:6:7",
        "1:2:3:4:5:6:7:8:9",
        "12345::",
        "::g",
        "[::1]",
        "[::1]/128",
        "::1%eth0",
        "fe80::1%1/64",
        "::ffff:10.0.0.256",
        "::ffff:010.0.0.1",
        "::10.0.0",
        "example.com",
        "example.com/8",
        "\u{ff11}.1.1.1",
        "*",
    ] {
        assert!(
            parse_cidr(text).is_err(),
            "{text:?} is {}",
            parse_cidr(text).unwrap()
        );
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn four(address in any::<u32>(), prefix in 0_u32..=32, other in any::<u32>(), near in any::<bool>()) {
        // Half of the others differ in a single bit, close to the edge.
        let other = if near { address ^ 1_u32.checked_shl(32 - prefix).unwrap_or(1) } else { other };
        let block = format!("{}/{prefix}", Ipv4Addr::from(address));
        let inside = prefix == 0 || (address ^ other) >> (32 - prefix) == 0;
        let other = Ipv4Addr::from(other);
        prop_assert_eq!(denies(&block, other.into()), inside);
        prop_assert_eq!(denies(&block, other.to_ipv6_mapped().into()), inside);
        let mapped = format!("{}/{}", Ipv4Addr::from(address).to_ipv6_mapped(), prefix + 96);
        prop_assert_eq!(denies(&mapped, other.into()), inside);
    }

    #[test]
    fn six(address in any::<u128>(), prefix in 0_u32..=128, other in any::<u128>(), near in any::<bool>()) {
        let other = if near { address ^ 1_u128.checked_shl(128 - prefix).unwrap_or(1) } else { other };
        let block = format!("{}/{prefix}", Ipv6Addr::from(address));
        let inside = prefix == 0 || (address ^ other) >> (128 - prefix) == 0;
        prop_assert_eq!(denies(&block, Ipv6Addr::from(other).into()), inside);
    }
}
