//! Programs that everybody has: nghttp, curl and openssl before our server, and nghttpd behind our client.

use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use mesh_hbone::config::Config;
use mesh_hbone::tls::{self, accept};
use mesh_hbone::{Error, ErrorKind, client, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::authority::{CLIENT, SERVER, id};
use crate::envoy::{Files, Pki, soon};
use crate::envoy_accepts::{credentials, request};
use crate::require;

/// Our server for one connection, and how it ended.
async fn serve(pki: &Pki) -> (u16, JoinHandle<Result<(), Error>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let ours = credentials(&pki.issue(SERVER));
    let served = tokio::spawn(async move {
        let tls = accept(listener.accept().await.unwrap().0, &ours).await?;
        let mut connection = server::handshake(tls, &Config::default());
        match connection.accept().await {
            None => Ok(()),
            Some(Err(error)) => Err(error),
            Some(Ok(incoming)) => panic!("a request was taken for a tunnel: {incoming:?}"),
        }
    });
    (port, served)
}

/// Runs a program that this machine may lack.
async fn run(test: &str, program: &str, arguments: Vec<String>) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let ran = tokio::task::spawn_blocking(move || command.output());
    match soon(program, ran).await.unwrap() {
        Ok(output) => Some(output),
        Err(error) => {
            require::skip(test, &format!("{program}: {error}"));
            None
        }
    }
}

fn certificate(files: &Files, names: [&str; 2]) -> Vec<String> {
    let Files { chain, key, .. } = files;
    vec![
        format!("{}{}", names[0], chain.display()),
        format!("{}{}", names[1], key.display()),
    ]
}

/// What it asks for is no tunnel, and it is told so.
#[tokio::test]
async fn nghttp_and_curl_are_answered_400() {
    let pki = Pki::new();
    let files = pki.issue(CLIENT);
    for program in ["nghttp", "curl"] {
        let (port, served) = serve(&pki).await;
        let mut arguments = match program {
            "nghttp" => vec!["-v".to_owned(), "-n".to_owned()],
            _ => vec!["-sSvk".to_owned(), "--http2".to_owned()],
        };
        if program == "nghttp" {
            arguments.extend(certificate(&files, ["--cert=", "--key="]));
        } else {
            arguments.extend([
                "--cert".to_owned(),
                files.chain.display().to_string(),
                "--key".to_owned(),
                files.key.display().to_string(),
            ]);
        }
        arguments.push(format!("https://127.0.0.1:{port}/"));
        let Some(output) = run("nghttp_and_curl_are_answered_400", program, arguments).await else {
            return;
        };
        let text =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let answered = text.contains(":status: 400") || text.contains("HTTP/2 400");
        assert!(answered, "{program}: {text}");
        soon("its end", served).await.unwrap().unwrap();
    }
}

/// With one, everybody's TLS finds what it should: the chain, TLS 1.3, h2.
#[tokio::test]
async fn openssl_finds_the_chain_and_h2() {
    let pki = Pki::new();
    let files = pki.issue(CLIENT);
    let (port, served) = serve(&pki).await;
    let mut arguments: Vec<_> = ["s_client", "-alpn", "h2", "-verify_return_error"]
        .map(str::to_owned)
        .into();
    for (flag, path) in [
        ("-cert", &files.chain),
        ("-key", &files.key),
        ("-CAfile", &files.roots),
    ] {
        arguments.extend([flag.to_owned(), path.display().to_string()]);
    }
    arguments.extend(["-connect".to_owned(), format!("127.0.0.1:{port}")]);
    let test = "openssl_finds_the_chain_and_h2";
    let Some(output) = run(test, "openssl", arguments).await else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    for found in ["Verify return code: 0 (ok)", "ALPN protocol: h2", "TLSv1.3"] {
        assert!(text.contains(found), "{found}: {text}");
    }
    // It says nothing of HTTP/2, and goes.
    let _ = soon("its end", served).await.unwrap();
}

/// A server that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nghttp2's server waits for the end of a request, which a CONNECT has not got: it is given up, and nothing else is.
#[tokio::test]
async fn an_nghttpd_that_never_answers_is_given_up_and_the_connection_goes_on() {
    let pki = Pki::new();
    let files = pki.issue(SERVER);
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let started = Command::new("nghttpd")
        .args(["-V", "--address=127.0.0.1", &address.port().to_string()])
        .args([&files.key, &files.chain])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _running = match started {
        Ok(child) => Running(child),
        Err(error) => {
            let test = "an_nghttpd_that_never_answers_is_given_up_and_the_connection_goes_on";
            return require::skip(test, &format!("nghttpd: {error}"));
        }
    };
    let io = soon("nghttpd listens", async {
        loop {
            match TcpStream::connect(address).await {
                Ok(io) => return io,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    let tls = tls::connect(io, &credentials(&pki.issue(CLIENT)), &[id(SERVER)]).await;
    let config = Config::default()
        .connect_timeout(Duration::from_millis(300))
        .first_connect_timeout(Duration::from_millis(300));
    let (connection, sender) = client::handshake(tls.unwrap(), &config).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let given_up = soon("the time-out", sender.connect(request())).await;
        assert_eq!(given_up.unwrap_err().kind(), ErrorKind::Timeout);
        assert!(!sender.is_closed());
    }
}

/// Without a certificate there is nothing but a handshake that fails.
#[tokio::test]
async fn openssl_without_a_certificate_is_refused() {
    let pki = Pki::new();
    let test = "openssl_without_a_certificate_is_refused";
    for (version, files) in [("-tls1_3", None), ("-tls1_2", Some(pki.issue(CLIENT)))] {
        let (port, served) = serve(&pki).await;
        let mut arguments: Vec<_> = ["s_client", "-alpn", "h2", version]
            .map(str::to_owned)
            .into();
        arguments.extend(["-connect".to_owned(), format!("127.0.0.1:{port}")]);
        if let Some(files) = files {
            arguments.extend(["-cert".to_owned(), files.chain.display().to_string()]);
            arguments.extend(["-key".to_owned(), files.key.display().to_string()]);
        }
        let Some(_) = run(test, "openssl", arguments).await else {
            return;
        };
        let error = soon("its end", served).await.unwrap().unwrap_err();
        let expected = match version {
            "-tls1_3" => ErrorKind::NoCertificate,
            _ => ErrorKind::Tls,
        };
        assert_eq!(error.kind(), expected, "{version}: {error:?}");
    }
}
