//! PT-06 and the index at size.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use mesh_authz::policy::{Action, Expr, Matcher, Policy, PolicyName, Rule};
use mesh_authz::{Attributes, PolicySet};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::config;
use crate::interpreter::in_block;

fn ip() -> impl Strategy<Value = IpAddr> {
    // Few bits that vary, so that blocks meet; anywhere in the address.
    let sparse =
        |bits: u32| (0..16_u32, 0..bits).prop_map(|(value, shift)| u128::from(value) << shift);
    prop_oneof![
        sparse(28).prop_map(|bits| IpAddr::from(u32::try_from(bits).unwrap().to_be_bytes())),
        any::<u32>().prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        sparse(124).prop_map(|bits| IpAddr::from(bits.to_be_bytes())),
        sparse(28).prop_map(|bits| IpAddr::from((bits | 0xffff_0000_0000).to_be_bytes())),
    ]
}

fn block() -> impl Strategy<Value = IpNet> {
    (ip(), 0..=128_u8).prop_map(|(ip, length)| {
        let longest = if ip.is_ipv4() { 32 } else { 128 };
        IpNet::new(ip, length % (longest + 1)).unwrap()
    })
}

proptest! {
    #![proptest_config(config())]

    /// Looked up as one list and as many rules, in any role: as if walked.
    #[test]
    fn blocks_as_walked(blocks in vec(block(), 1..60), addresses in vec(ip(), 40)) {
        let is = |role: fn(IpNet) -> Matcher| {
            blocks.iter().map(move |block| Expr::Is(role(*block))).collect::<Vec<_>>()
        };
        let policy = |rules: Vec<Expr>| {
            let rules = rules.into_iter().map(Rule::new).collect();
            let policy = Policy::new(PolicyName::new("a", "b"), Action::Allow, rules);
            PolicySet::new([Arc::new(policy)])
        };
        let rules = policy(is(Matcher::SourceIp));
        let list = policy(vec![Expr::Any(is(Matcher::DestinationIp))]);
        let none = policy(vec![Expr::Not(Box::new(Expr::Any(is(Matcher::SourceIp))))]);
        for ip in addresses {
            let walked = blocks.iter().position(|block| in_block(block, ip));
            let other = SocketAddr::new("192.0.2.1".parse().unwrap(), 1);
            let source = Attributes::new(SocketAddr::new(ip, 1), other);
            let destination = Attributes::new(other, SocketAddr::new(ip, 1));
            prop_assert_eq!(rules.evaluate(&source).rule(), walked);
            prop_assert_eq!(list.evaluate(&destination).is_allowed(), walked.is_some());
            prop_assert_eq!(none.evaluate(&source).is_allowed(), walked.is_none());
        }
    }
}
