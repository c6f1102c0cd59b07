use http::{HeaderMap, Method};

use super::{Attribute, Attributes, RequestAttributes};

#[test]
fn mapped_addresses_are_ipv4() {
    let attributes = Attributes::new(
        "[::ffff:10.0.0.1]:1".parse().unwrap(),
        "[::ffff:10.0.0.2]:2".parse().unwrap(),
    );
    assert_eq!(attributes.source(), "10.0.0.1:1".parse().unwrap());
    assert_eq!(attributes.destination(), "10.0.0.2:2".parse().unwrap());
    let (method, headers) = (Method::GET, HeaderMap::new());
    let request = RequestAttributes::new(&method, None, "/", &headers)
        .with_remote_ip("::ffff:10.0.0.3".parse().unwrap());
    assert_eq!(request.remote_ip(), Some("10.0.0.3".parse().unwrap()));
}

#[test]
fn what_was_not_told() {
    let address = "10.0.0.1:1".parse().unwrap();
    let attributes = Attributes::new(address, address);
    assert_eq!(attributes.identity(), Attribute::Absent);
    assert_eq!(attributes.sni(), Attribute::Unknown);
    assert!(matches!(attributes.request(), Attribute::Unknown));
    assert_eq!(Attribute::from(None::<u8>), Attribute::Absent);
    assert_eq!(Attribute::from(Some(1)), Attribute::Present(1));
}
