use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// Reads an address or an address block as policies write them; an address is a block of its own.
///
/// Host bits are cleared, an IPv4-mapped IPv6 block is the IPv4 block.
///
/// # Errors
///
/// [`InvalidCidr`] for anything else.
///
/// # Examples
///
/// ```
/// use mesh_authz::matcher::parse_cidr;
///
/// assert_eq!(parse_cidr("10.1.2.3/8")?.to_string(), "10.0.0.0/8");
/// assert_eq!(parse_cidr("10.1.2.3")?.to_string(), "10.1.2.3/32");
/// assert_eq!(parse_cidr("::ffff:10.0.0.0/104")?.to_string(), "10.0.0.0/8");
/// # Ok::<(), mesh_authz::matcher::InvalidCidr>(())
/// ```
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidCidr> {
    block(text).map(canonical_net).ok_or_else(|| InvalidCidr {
        text: text.to_owned(),
    })
}

/// `IpNet`'s own parser takes leading zeros, which other readers take for octal (CVE-2021-29923).
fn block(text: &str) -> Option<IpNet> {
    let Some((address, length)) = text.split_once('/') else {
        return text.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let digits = length.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || (length.len() > 1 && length.starts_with('0')) {
        return None;
    }
    IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()
}

/// Says that a text is neither an address nor an address block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid address block {text:?}: expected an IP address or <address>/<prefix length>")]
pub struct InvalidCidr {
    text: String,
}

/// Clears host bits; an IPv4-mapped block becomes the IPv4 block.
pub(crate) fn canonical_net(net: IpNet) -> IpNet {
    let net = net.trunc();
    if let IpNet::V6(six) = net
        && let Some(four) = six.addr().to_ipv4_mapped()
        && six.prefix_len() >= MAPPED_BITS
        && let Ok(four) = Ipv4Net::new(four, six.prefix_len() - MAPPED_BITS)
    {
        return IpNet::V4(four);
    }
    net
}

/// Length of the prefix `::ffff:0:0/96`.
const MAPPED_BITS: u8 = Ipv6Addr::BITS as u8 - 32;

/// Whether the block holds the address, both read with IPv4-mapped addresses as IPv4.
pub(crate) fn contains(net: &IpNet, ip: IpAddr) -> bool {
    canonical_net(*net).contains(&ip.to_canonical())
}
