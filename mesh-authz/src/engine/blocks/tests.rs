use super::Blocks;
use crate::matcher::parse_cidr;

#[test]
fn blocks() {
    let texts = [
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.0.0.0/16",
        "10.0.0.0/32",
        "10.255.255.255/32",
        "11.0.0.0/8",
        "::/0",
        "fd00::/8",
        "255.255.255.255/32",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128",
    ];
    let table = Blocks::new(texts.map(|text| (parse_cidr(text).unwrap(), text)));
    let covering = |ip: &str| {
        let mut found = Vec::new();
        let ip = ip.parse().unwrap();
        table.covering(ip, |text| found.push(*text));
        assert_eq!(table.covers(ip), !found.is_empty());
        found
    };
    assert_eq!(
        covering("10.0.0.0"),
        ["10.0.0.0/32", "10.0.0.0/16", "10.0.0.0/8", "0.0.0.0/0"]
    );
    assert_eq!(covering("10.1.0.1"), ["10.0.0.0/8", "0.0.0.0/0"]);
    assert_eq!(covering("192.0.2.1"), ["0.0.0.0/0"]);
    assert_eq!(covering("fd00::1"), ["fd00::/8", "::/0"]);
    assert_eq!(covering("255.255.255.255"), [texts[8], "0.0.0.0/0"]);
    assert_eq!(
        covering("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        [texts[9], "::/0"]
    );
    assert_eq!(table.values().count(), texts.len());
}
