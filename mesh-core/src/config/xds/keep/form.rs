//! The file's form: a mark, a version, what it is of, the resources, and a sum over all of it. Numbers are
//! big-endian; texts have their length before them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mesh_xds::ads::Kept;
use rpds::HashTrieMapSync;

const MARK: &[u8] = b"mesh discovery snapshot\n";

/// Of another version nothing is known: whoever wrote it knows better.
const VERSION: u32 = 1;

/// No more types are asked for.
const MAX_TYPES: u32 = 16;

/// What is kept. Cloning copies none of the resources.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Content {
    pub(super) whose: String,
    pub(super) addresses: Vec<IpAddr>,
    /// To the second.
    pub(super) saved: SystemTime,
    /// By type and name.
    pub(super) resources: HashTrieMapSync<(Arc<str>, Box<str>), Arc<Kept>>,
}

impl Content {
    pub(super) fn put(&mut self, one: Kept) {
        let key = (Arc::clone(one.type_url()), one.name().into());
        self.resources.insert_mut(key, Arc::new(one));
    }

    pub(super) fn remove(&mut self, url: Arc<str>, name: &str) {
        self.resources.remove_mut(&(url, name.into()));
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut types: BTreeMap<&str, u32> = BTreeMap::new();
        for one in self.resources.values() {
            types.insert(one.type_url(), 0);
        }
        for (index, number) in (0..).zip(types.values_mut()) {
            *number = index;
        }
        let mut out = Vec::new();
        out.extend(MARK);
        number(&mut out, VERSION);
        text(&mut out, &self.whose);
        let addresses: Vec<_> = self.addresses.iter().map(IpAddr::to_string).collect();
        text(&mut out, &addresses.join(","));
        let saved = self.saved.duration_since(UNIX_EPOCH).unwrap_or_default();
        out.extend(saved.as_secs().to_be_bytes());
        number(&mut out, types.len() as u32);
        for url in types.keys() {
            text(&mut out, url);
        }
        number(&mut out, self.resources.size() as u32);
        for one in self.resources.values() {
            number(&mut out, types[&**one.type_url()]);
            text(&mut out, one.name());
            text(&mut out, one.version());
            bytes(&mut out, one.value());
        }
        let sum = sum(&out);
        out.extend(sum.to_be_bytes());
        out
    }

    /// Whose a file is that begins with this; `None` if it is not such a file, or that is not in it.
    pub(super) fn whose(head: &[u8]) -> Option<&str> {
        let mut rest = head.strip_prefix(MARK)?;
        (take_number(&mut rest)? == VERSION).then_some(())?;
        take_text(&mut rest)
    }

    /// # Errors
    ///
    /// It is not such a file, or damaged.
    pub(super) fn decode(file: &[u8]) -> Result<Self, &'static str> {
        const DAMAGED: &str = "it is damaged: remove it";
        if !file.starts_with(MARK) {
            return Err("expected a kept configuration: it is something else");
        }
        let mut rest = &file[MARK.len()..];
        if take_number(&mut rest).ok_or(DAMAGED)? != VERSION {
            return Err("it is of another version of this library");
        }
        let (body, end) = file.split_last_chunk::<8>().ok_or(DAMAGED)?;
        if u64::from_be_bytes(*end) != sum(body) {
            return Err(DAMAGED);
        }
        rest = rest.get(..rest.len() - end.len()).ok_or(DAMAGED)?;
        read(&mut rest).filter(|_| rest.is_empty()).ok_or(DAMAGED)
    }
}

fn read(rest: &mut &[u8]) -> Option<Content> {
    let whose = take_text(rest)?.to_owned();
    let addresses = take_text(rest)?;
    let addresses = addresses.split(',').filter(|text| !text.is_empty());
    let addresses = addresses.map(|text| text.parse().ok());
    let addresses = addresses.collect::<Option<_>>()?;
    let (seconds, after) = rest.split_first_chunk::<8>()?;
    *rest = after;
    let saved = UNIX_EPOCH.checked_add(Duration::from_secs(u64::from_be_bytes(*seconds)))?;
    let count = take_number(rest).filter(|count| *count <= MAX_TYPES)?;
    let types = (0..count).map(|_| take_text(rest).map(Arc::from));
    let types = types.collect::<Option<Vec<Arc<str>>>>()?;
    let mut content = Content {
        whose,
        addresses,
        saved,
        resources: HashTrieMapSync::new_sync(),
    };
    for _ in 0..take_number(rest)? {
        let url = types.get(take_number(rest)? as usize)?;
        let (name, version, value) = (take_text(rest)?, take_text(rest)?, take_bytes(rest)?);
        content.put(Kept::new(Arc::clone(url), name, version, value));
    }
    Some(content)
}

fn number(out: &mut Vec<u8>, number: u32) {
    out.extend(number.to_be_bytes());
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    // None is longer: a resource has at most some MiB.
    number(out, bytes.len() as u32);
    out.extend(bytes);
}

fn text(out: &mut Vec<u8>, text: &str) {
    bytes(out, text.as_bytes());
}

fn take_number(rest: &mut &[u8]) -> Option<u32> {
    let (number, after) = rest.split_first_chunk::<4>()?;
    *rest = after;
    Some(u32::from_be_bytes(*number))
}

fn take_bytes<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_number(rest)? as usize;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(bytes)
}

fn take_text<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    str::from_utf8(take_bytes(rest)?).ok()
}

/// FNV-1a: it finds what a disk or a crash has done. Who may write the file is the file system's affair.
fn sum(bytes: &[u8]) -> u64 {
    let step = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
}
