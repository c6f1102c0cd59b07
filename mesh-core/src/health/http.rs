//! `GET` by hand: a probe needs the status and nothing else, and no HTTP client is part of every build.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// How much of an answer is read before its status has come.
const MAX_HEAD: usize = 16 * 1024;

/// The header fields of the request, in order: ours, unless they were given, and what else was given.
pub(super) fn fields<'a>(
    authority: &'a str,
    headers: &'a [(String, String)],
) -> Vec<(&'a str, &'a str)> {
    let or_given = |name: &'static str, own: &'a str| {
        let mut headers = headers.iter();
        let found = headers.find(|(given, _)| given.eq_ignore_ascii_case(name));
        (name, found.map_or(own, |(_, value)| value))
    };
    let mut fields = vec![
        or_given("host", authority),
        or_given("user-agent", "istio-probe/1.0"),
        or_given("accept", "*/*"),
    ];
    for (name, value) in headers {
        let ours = ["host", "user-agent", "accept", "connection"];
        if !ours.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            fields.push((name, value));
        }
    }
    fields.push(("connection", "close"));
    fields
}

/// The request.
fn request(authority: &str, path: &str, headers: &[(String, String)]) -> String {
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in fields(authority, headers) {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    text
}

/// What the bytes of an answer say so far.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// Too few.
    More,
    Status(u16),
    NotHttp,
}

fn read(bytes: &[u8]) -> Answer {
    let mut rest = bytes;
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            return Answer::More;
        };
        let Some(status) = status(&rest[..end]) else {
            return Answer::NotHttp;
        };
        if status >= 200 {
            return Answer::Status(status);
        }
        // An interim answer; the real one follows its headers.
        let Some(end) = rest.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Answer::More;
        };
        rest = &rest[end + 4..];
    }
}

/// `HTTP/1.1 200 OK`.
fn status(line: &[u8]) -> Option<u16> {
    let line = str::from_utf8(line).ok()?;
    let mut words = line.splitn(3, ' ');
    words.next()?.strip_prefix("HTTP/1.")?;
    let code = words.next().filter(|code| code.len() == 3)?;
    code.parse().ok().filter(|code| *code >= 100)
}

/// Asks, and says what came.
pub(super) async fn get<Io: AsyncRead + AsyncWrite + Unpin>(
    mut io: Io,
    authority: &str,
    path: &str,
    headers: &[(String, String)],
) -> Result<u16, String> {
    let broken = |error: std::io::Error| error.to_string();
    let request = request(authority, path, headers);
    io.write_all(request.as_bytes()).await.map_err(broken)?;
    io.flush().await.map_err(broken)?;
    let mut head = Vec::with_capacity(1024);
    loop {
        let read_now = (&mut io)
            .take((MAX_HEAD - head.len()) as u64)
            .read_buf(&mut head)
            .await
            .map_err(broken)?;
        match read(&head) {
            Answer::Status(status) => return Ok(status),
            Answer::NotHttp => return Err("the answer is not HTTP/1.1".to_owned()),
            Answer::More if read_now == 0 && head.len() < MAX_HEAD => {
                return Err("closed without an answer".to_owned());
            }
            Answer::More if read_now == 0 => {
                return Err(format!("no status within {MAX_HEAD} bytes"));
            }
            Answer::More => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_its_status() {
        assert_eq!(read(b"HTTP/1.1 200 OK\r\n"), Answer::Status(200));
        assert_eq!(read(b"HTTP/1.0 404\r\n\r\n"), Answer::Status(404));
        assert_eq!(read(b"HTTP/1.1 20"), Answer::More);
        let interim = b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 503 No\r\n";
        assert_eq!(read(interim), Answer::Status(503));
        assert_eq!(read(&interim[..40]), Answer::More);
        for wrong in [
            "SSH-2.0-x\r\n",
            "HTTP/1.1\r\n",
            "HTTP/1.1 +20 x\r\n",
            "HTTP/1.1 2000\r\n",
        ] {
            assert_eq!(read(wrong.as_bytes()), Answer::NotHttp, "{wrong}");
        }
    }

    #[test]
    fn a_host_header_is_the_authority() {
        let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let plain = request("10.0.0.1:80", "/a?b", &[]);
        assert!(plain.starts_with(
            "GET /a?b HTTP/1.1\r\nhost: 10.0.0.1:80\r\nuser-agent: istio-probe/1.0\r\n"
        ));
        let given = [
            header("Host", "forum"),
            header("X-A", "1"),
            header("Connection", "keep-alive"),
            header("Accept", "text/plain"),
        ];
        let text = request("10.0.0.1:80", "/", &given);
        assert!(
            text.contains("\r\nhost: forum\r\n") && text.contains("\r\nX-A: 1\r\n"),
            "{text}"
        );
        assert!(
            text.contains("\r\naccept: text/plain\r\n") && !text.contains("*/*"),
            "{text}"
        );
        assert_eq!(text.to_ascii_lowercase().matches("accept:").count(), 1);
        assert!(
            !text.contains("10.0.0.1") && !text.contains("keep-alive"),
            "{text}"
        );
    }
}
