//! The page in a browser.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;
use tokio::time::timeout;

use crate::program::{PATIENCE, Stage};
use crate::require;

const WIDTH: u32 = 1100;
const HEIGHT: u32 = 760;

/// Of `src/page.rs`: what colours the page must show.
const HEADER: [u8; 3] = [0x10, 0x24, 0x3e];
const RED: [u8; 3] = [0xc0, 0x39, 0x2b];
const BLACK: [u8; 3] = [0; 3];

/// The browser that `PEER_CHROMIUM` names, or Chromium where it is installed.
#[expect(
    clippy::disallowed_methods,
    reason = "tests are configured by the environment"
)]
fn chromium(test: &str) -> Option<PathBuf> {
    if let Some(program) = env::var_os("PEER_CHROMIUM").filter(|program| !program.is_empty()) {
        return Some(program.into());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|folder| folder.join("chromium"))
        .find(|program| program.is_file());
    if found.is_none() {
        require::skip(
            test,
            "PEER_CHROMIUM names no browser and there is no chromium in PATH",
        );
    }
    found
}

/// Loads `url`; the document as it is then, and a picture of it.
async fn visit(chromium: &Path, stage: &Stage, url: &str) -> (String, Picture) {
    let picture = stage.folder().join("page.png");
    let profile = stage.folder().join("profile");
    let visit = Command::new(chromium)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--force-device-scale-factor=1",
            "--hide-scrollbars",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("--window-size={WIDTH},{HEIGHT}"))
        .arg(url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, visit).await;
    let output = output.expect("the browser in time").unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let document = String::from_utf8(output.stdout).unwrap();
    assert!(picture.is_file(), "no picture: {errors}");
    (document, Picture::read(&picture))
}

struct Picture {
    width: u32,
    height: u32,
    /// Three or four bytes each.
    pixels: Vec<u8>,
    step: usize,
}

impl Picture {
    fn read(path: &Path) -> Self {
        let file = std::io::BufReader::new(std::fs::File::open(path).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.bit_depth, png::BitDepth::Eight);
        Self {
            width: info.width,
            height: info.height,
            pixels,
            step: info.color_type.samples(),
        }
    }

    /// How many pixels have exactly this colour.
    fn count(&self, colour: [u8; 3]) -> usize {
        let pixels = self.pixels.chunks_exact(self.step);
        pixels.filter(|pixel| pixel[..3] == colour).count()
    }
}

#[tokio::test]
async fn the_page_is_shown_with_its_stars() {
    let Some(chromium) = chromium("the_page_is_shown_with_its_stars") else {
        return;
    };
    let stage = Stage::new(4);
    let mut program = stage.start_all();
    program.says(&["Bookinfo is up:"]).await;
    let url = format!("http://{}/productpage", stage.page());
    let mut shown = Vec::new();
    // Reviews are spread evenly: that one version stays away has odds of one in a million.
    for _ in 0..35 {
        let (document, picture) = visit(&chromium, &stage, &url).await;
        assert_eq!((picture.width, picture.height), (WIDTH, HEIGHT));
        assert!(document.contains("The Comedy of Errors"), "{document}");
        assert!(document.contains("PublisherA"), "{document}");
        assert!(
            document.contains("slapstick humour is refreshing"),
            "{document}"
        );
        assert!(picture.count(HEADER) > 10_000, "no header");
        let stars = document.contains("★★★★★") && document.contains("★★★★☆");
        let version = ["v1", "v2", "v3"]
            .into_iter()
            .find(|version| document.contains(&format!("<b>reviews-{version}</b>")))
            .unwrap_or_else(|| panic!("of no version: {document}"));
        assert_eq!(document.contains('★'), version != "v1", "{document}");
        assert_eq!(stars, version != "v1", "{document}");
        for (colour, of) in [(BLACK, "v2"), (RED, "v3")] {
            let count = picture.count(colour);
            assert_eq!(
                count > 100,
                version == of,
                "{count} of {colour:?} on {version}"
            );
        }
        if !shown.contains(&version) {
            shown.push(version);
        }
        if shown.len() == 3 {
            return;
        }
    }
    panic!("only {shown:?} were shown");
}
