//! Clients whose header blocks are wrong, or bombs.

use mesh_hbone::config::Config;

use super::wire::*;
use super::{Application, Server, settle};

const METHOD: (&str, &str) = (":method", "CONNECT");
const AUTHORITY: (&str, &str) = (":authority", "10.0.0.7:80");

/// What came back for one header block.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    /// The stream was reset: malformed (RFC 9113 section 8.1.1).
    Malformed,
    /// The connection was closed.
    Closed,
    /// 400, and nobody saw it.
    Refused,
    /// 431: more than we take.
    TooLarge,
    /// A tunnel.
    Tunnel,
}

/// The status in a header block of our server, which writes it indexed or as a literal with an
/// indexed name.
fn answer_of(block: &[u8]) -> Answer {
    match block[0] {
        0x88 => Answer::Tunnel,
        0x8c => Answer::Refused,
        _ => Answer::TooLarge,
    }
}

async fn ask(fields: &[(&str, &str)]) -> (Answer, usize) {
    let what = format!("{fields:?}");
    let mut server = Server::new(Config::default(), Application::Stalls).await;
    server.raw.send(&headers(1, 0, &block(fields))).await;
    let answer = loop {
        let frame = server.raw.next().await.unwrap_or_else(|| panic!("{what}"));
        if frame.kind == GOAWAY {
            return (Answer::Closed, server.asked());
        }
        if frame.stream == 1 {
            break match frame.kind {
                RST_STREAM => {
                    assert_eq!(frame.code(), PROTOCOL_ERROR, "{what}");
                    Answer::Malformed
                }
                HEADERS => answer_of(&frame.payload),
                kind => panic!("{what}: {kind}"),
            };
        }
    };
    let asked = server.asked();
    // The connection goes on for who behaves: one stream's headers are its own affair.
    server.raw.send(&connect(3)).await;
    let frame = server.raw.until_on(HEADERS, 3).await;
    assert_eq!(answer_of(&frame.payload), Answer::Tunnel, "{what}");
    server.ends().await.unwrap();
    (answer, asked)
}

/// RFC 9113 sections 8.2, 8.3 and 8.5: what may be in a CONNECT. No tunnel comes of anything else.
#[tokio::test(start_paused = true)]
async fn headers_that_make_no_connect() {
    use Answer::{Closed, Malformed, Refused, Tunnel};
    let with = |more: &[(&'static str, &'static str)]| [&[METHOD, AUTHORITY], more].concat();
    let only = |fields: &[(&'static str, &'static str)]| fields.to_vec();
    let rows = [
        (with(&[]), Tunnel),
        (with(&[("baggage", "a=b"), ("x-odd", "\u{e4}")]), Tunnel),
        // Pseudo-header fields.
        (with(&[(":path", "/")]), Malformed),
        (with(&[(":scheme", "https")]), Malformed),
        (with(&[(":scheme", "https"), (":path", "/")]), Malformed),
        (with(&[(":protocol", "connect-tcp")]), Malformed),
        (with(&[(":status", "200")]), Malformed),
        (with(&[(":unknown", "x")]), Closed),
        (with(&[METHOD]), Malformed),
        (with(&[AUTHORITY]), Malformed),
        (only(&[METHOD]), Refused),
        (only(&[AUTHORITY]), Malformed),
        (only(&[]), Malformed),
        (only(&[("x", "y")]), Malformed),
        (only(&[("x", "y"), METHOD, AUTHORITY]), Malformed),
        (only(&[METHOD, ("x", "y"), AUTHORITY]), Malformed),
        (only(&[(":method", ""), AUTHORITY]), Closed),
        (only(&[(":method", "connect"), AUTHORITY]), Malformed),
        (only(&[(":method", "CONNECT "), AUTHORITY]), Closed),
        (only(&[(":method", "GET"), AUTHORITY]), Malformed),
        // Field names and values.
        (with(&[("X-Upper", "x")]), Closed),
        (with(&[("", "x")]), Closed),
        (with(&[("sp ace", "x")]), Closed),
        (with(&[("col:on", "x")]), Closed),
        (with(&[("nul\0", "x")]), Closed),
        (with(&[("x", "a\0b")]), Closed),
        (with(&[("x", "a\r\nb: c")]), Closed),
        (with(&[("x", "a\nb")]), Closed),
        // Fields of one connection (section 8.2.2).
        (with(&[("connection", "close")]), Malformed),
        (with(&[("transfer-encoding", "chunked")]), Malformed),
        (with(&[("upgrade", "websocket")]), Malformed),
        (with(&[("keep-alive", "x")]), Malformed),
        (with(&[("proxy-connection", "x")]), Malformed),
        (with(&[("te", "gzip")]), Malformed),
        (with(&[("te", "trailers")]), Tunnel),
        // The body of a tunnel has no length.
        (with(&[("content-length", "abc")]), Malformed),
        (
            with(&[("content-length", "1"), ("content-length", "2")]),
            Malformed,
        ),
    ];
    let mut wrong = Vec::new();
    for (fields, expected) in rows {
        let (answer, asked) = ask(&fields).await;
        if (answer, asked) != (expected, usize::from(expected == Tunnel)) {
            wrong.push(format!("{fields:?}: {answer:?}, {asked}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// CVE-2024-32475 and SSRF by odd authorities: none of these opens a tunnel.
#[tokio::test(start_paused = true)]
async fn authorities_that_lead_nowhere() {
    let long = format!("{}:80", "a".repeat(10_000));
    let label = format!("{}:80", "a".repeat(64));
    let long_name = format!("{}a:80", "a.".repeat(127));
    let mut wrong = Vec::new();
    for authority in [
        "",
        ":",
        ":80",
        "10.0.0.7",
        "10.0.0.7:",
        "10.0.0.7:0",
        "10.0.0.7:00080000",
        "10.0.0.7:65536",
        "10.0.0.7:+80",
        "10.0.0.7:-1",
        "10.0.0.7:8 0",
        " 10.0.0.7:80",
        "10.0.0.7:80 ",
        "user@10.0.0.7:80",
        "user:pass@10.0.0.7:80",
        "http://10.0.0.7:80",
        "10.0.0.7:80/",
        "10.0.0.7:80?x",
        "10.0.0.7:80#x",
        "10.0.0.7:80,10.0.0.8:80",
        "10.0.0.7:80:80",
        "010.0.0.7:80",
        "10.0.0.07:80",
        "0x0a.0.0.7:80",
        "167772167:80",
        "10.7:80",
        "10.0.0.256:80",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[::1:80",
        "::1]:80",
        "[::1%25eth0]:80",
        "[fe80::1%eth0]:80",
        "[10.0.0.7]:80",
        "[::ffff:10.0.0.300]:80",
        "[v1.x]:80",
        "*:80",
        "*.example:80",
        "a..b:80",
        ".a:80",
        "a_\u{e4}:80",
        "a%2eb:80",
        "a\\b:80",
        "a\0:80",
        "a\r\n:80",
        &long,
        &label,
        &long_name,
    ] {
        let (answer, asked) = ask(&[METHOD, (":authority", authority)]).await;
        if asked != 0 || !matches!(answer, Answer::Malformed | Answer::Refused) {
            wrong.push(format!("{authority:?}: {answer:?}, {asked}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// S-06, S-07, CVE-2019-15226, CVE-2026-47774: what is larger when decoded than we take is answered 431, or ends the
/// connection when it is far larger.
#[tokio::test(start_paused = true)]
async fn hpack_bombs() {
    // One entry of nearly the whole table, then the same again and again for one byte each.
    let bomb = |count: usize| {
        let mut fields = connect_block();
        fields.extend(literal(0x40, "x", &"y".repeat(4000)));
        for _ in 0..count {
            fields.extend(indexed(FIRST_DYNAMIC));
        }
        fields
    };
    let mut server = Server::new(Config::default(), Application::Stalls).await;
    server.raw.send(&headers(1, 0, &bomb(10))).await;
    assert_eq!(
        answer_of(&server.raw.until_on(HEADERS, 1).await.payload),
        Answer::Tunnel
    );
    server.raw.send(&headers(3, 0, &bomb(30))).await;
    assert_eq!(
        answer_of(&server.raw.until_on(HEADERS, 3).await.payload),
        Answer::TooLarge
    );
    server.raw.send(&connect(5)).await;
    server.raw.until_on(HEADERS, 5).await;
    assert_eq!(server.asked(), 2);
    server.raw.send(&headers(7, 0, &bomb(10_000))).await;
    server.closes("a bomb", ENHANCE_YOUR_CALM).await;

    // Many tiny fields count with 32 bytes each (RFC 9113 section 6.5.2).
    let mut server = Server::echoing().await;
    let mut fields = connect_block();
    for _ in 0..12_000 {
        // accept-charset with no value, from the static table
        fields.extend(indexed(15));
    }
    server.raw.send(&headers(1, 0, &fields)).await;
    settle().await;
    assert_eq!(server.asked(), 0);
    server.closes("tiny fields", ENHANCE_YOUR_CALM).await;
}

/// S-07, CVE-2019-15226: so many header fields, of one name or of many, and no more. h2 has decoded them by then, at most one for
/// each 32 bytes of the list that we take.
#[tokio::test(start_paused = true)]
async fn fields_are_counted() {
    type Fields = fn(usize) -> Vec<u8>;
    let rows: [(&str, Fields); 2] = [
        ("names", |count| {
            let names = (0..count).flat_map(|name| literal(0x00, &format!("x{name}"), ""));
            names.collect()
        }),
        ("values of a name", |count| indexed(15).repeat(count)),
    ];
    for (what, fields) in rows {
        let mut server = Server::echoing().await;
        let rows = [
            (128, Answer::Tunnel),
            (129, Answer::TooLarge),
            // With 48 bytes each at most, all are taken and then counted.
            (1300, Answer::TooLarge),
            (128, Answer::Tunnel),
        ];
        for ((count, expected), stream) in rows.into_iter().zip((1..).step_by(2)) {
            let block = [connect_block(), fields(count)].concat();
            server.raw.send(&headers(stream, 0, &block)).await;
            let answer = server.raw.until_on(HEADERS, stream).await;
            assert_eq!(answer_of(&answer.payload), expected, "{count} {what}");
        }
        assert_eq!(server.asked(), 2, "{what}");
        server.goes_on(what, 101).await;
    }
    // The setting is the bound, whatever it is.
    let config = Config::default().max_header_fields(0);
    let mut server = Server::new(config, Application::Stalls).await;
    server.raw.send(&connect(1)).await;
    assert_eq!(
        answer_of(&server.raw.until_on(HEADERS, 1).await.payload),
        Answer::Tunnel
    );
    server
        .raw
        .send(&headers(3, 0, &[connect_block(), indexed(15)].concat()))
        .await;
    assert_eq!(
        answer_of(&server.raw.until_on(HEADERS, 3).await.payload),
        Answer::TooLarge
    );
}

/// Header blocks that cannot be decoded end the connection: its tables are no longer the client's.
#[tokio::test(start_paused = true)]
async fn hpack_that_cannot_be_decoded() {
    let rows: Vec<(&str, Vec<u8>)> = vec![
        ("index 0", vec![0x80]),
        ("an index beyond the tables", indexed(FIRST_DYNAMIC)),
        ("a name beyond the tables", vec![0x7f, 0x7f, 1, b'x']),
        (
            "an index that overflows",
            vec![
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
            ],
        ),
        (
            "a length that overflows",
            vec![
                0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f,
            ],
        ),
        ("a string that is cut", vec![0x00, 0x05, b'x']),
        (
            "Huffman with EOS",
            vec![0x00, 0x84, 0xff, 0xff, 0xff, 0xff, 0x01, b'x'],
        ),
        (
            "Huffman padded with zeros",
            vec![0x00, 0x81, 0x00, 0x01, b'x'],
        ),
        (
            "Huffman padded with a byte",
            vec![0x00, 0x82, 0x1f, 0xff, 0x01, b'x'],
        ),
        ("a table larger than ours", table_size(4097)),
        ("a table of 2^31", table_size(1 << 31)),
        (
            "a new size after a field",
            [connect_block(), table_size(0)].concat(),
        ),
    ];
    let mut wrong = Vec::new();
    for (what, block) in rows {
        let mut server = Server::echoing().await;
        server.raw.send(&headers(1, 0, &block)).await;
        settle().await;
        assert_eq!(server.asked(), 0, "{what}");
        let mut last = None;
        while let Ok(frame) = server.raw.frames.try_recv() {
            last = (frame.kind == GOAWAY).then(|| frame.code()).or(last);
        }
        if !matches!(last, Some(COMPRESSION_ERROR | PROTOCOL_ERROR)) {
            wrong.push(format!("{what}: {last:?}"));
        }
        server.ends().await.unwrap_err();
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Sizes that change the table without end stay what they are: a few bytes of work each.
#[tokio::test(start_paused = true)]
async fn hpack_size_updates_without_end() {
    let mut server = Server::echoing().await;
    let mut fields = Vec::new();
    for _ in 0..2_000 {
        fields.extend(table_size(0));
        fields.extend(table_size(4096));
    }
    fields.extend(connect_block());
    server.raw.send(&headers(1, 0, &fields)).await;
    server.goes_on("size updates", 3).await;
}
