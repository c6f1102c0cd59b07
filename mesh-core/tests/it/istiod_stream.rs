//! Streams of a real istiod as they were recorded: read from their bytes, message by message.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use mesh_core::xds::decode::{Decoder, ResourceType};
use mesh_core::xds::file::{Loader, Settings};
use mesh_core::xds::model::{ResourceName, Update};
use serde_json::Value;

/// What one response changes.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) step: String,
    pub(crate) updates: Vec<Update>,
    pub(crate) removed: Vec<ResourceName>,
}

/// The responses of a recorded delta stream, in order.
pub(crate) fn messages(client: &Path) -> Vec<Message> {
    let stream = fs::read_to_string(client.join("stream.jsonl")).unwrap();
    let lines = stream
        .lines()
        .map(|line| -> Value { serde_json::from_str(line).unwrap() });
    let server = lines.filter(|line| line["from"] == "server");
    let message = |line: Value| {
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let bytes = fs::read(client.join(text("file") + ".pb")).unwrap();
        let mut message = read(&bytes);
        message.step = text("step");
        message
    };
    server.map(message).collect()
}

/// A `DeltaDiscoveryResponse`.
fn read(bytes: &[u8]) -> Message {
    let response = fields(bytes);
    let kind = response.iter().find(|(number, _)| *number == 4).unwrap().1;
    let kind = ResourceType::from_url(text(kind)).unwrap();
    let mut message = Message {
        step: String::new(),
        updates: Vec::new(),
        removed: Vec::new(),
    };
    for (number, value) in response {
        match number {
            2 => {
                let (mut name, mut body) = ("", &[][..]);
                for (number, value) in fields(value) {
                    match number {
                        2 => {
                            body = fields(value)
                                .iter()
                                .find(|(number, _)| *number == 2)
                                .unwrap()
                                .1;
                        }
                        3 => name = text(value),
                        _ => {}
                    }
                }
                let update = Decoder::new().decode(kind, name, body);
                let update = update.unwrap_or_else(|error| panic!("{name}: {error}"));
                message.updates.push(update.unwrap());
            }
            6 => message.removed.extend(kind.removed(text(value))),
            _ => {}
        }
    }
    message
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The fields of a message whose values have a length, by number: all that discovery has here.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        assert_eq!(key & 7, 2, "a field with a length");
        let length = usize::try_from(varint(&mut bytes)).unwrap();
        let (value, rest) = bytes.split_at(length);
        fields.push((key >> 3, value));
        bytes = rest;
    }
    fields
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (first, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The manifests of a recording, applied one after the other: each step with what changes.
pub(crate) struct Manifests {
    steps: std::vec::IntoIter<(String, String)>,
    documents: BTreeMap<String, String>,
    loader: Loader,
}

impl Manifests {
    pub(crate) fn new(folder: &Path) -> Self {
        let mut steps: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| !path.ends_with("mesh.yaml"))
            .map(|path| {
                let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        // The numbered ones sort before "base".
        steps.sort_by_key(|(name, _)| (name != "base", name.clone()));
        Self {
            steps: steps.into_iter(),
            documents: BTreeMap::new(),
            loader: Loader::new(Settings::default()),
        }
    }

    /// `kubectl apply` or `delete` of a file to the documents that stand.
    fn change(&mut self, step: &str, manifest: &str) {
        for document in manifest.split("\n---\n") {
            let field = |start: &str| {
                let line = document.lines().find_map(|line| line.strip_prefix(start));
                line.unwrap_or_default().to_owned()
            };
            let key = [field("kind: "), field("  namespace: "), field("  name: ")].join("/");
            if step.ends_with(".delete") {
                assert!(self.documents.remove(&key).is_some(), "{step}: no {key}");
            } else {
                self.documents.insert(key, document.to_owned());
            }
        }
    }
}

impl Iterator for Manifests {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        let (step, manifest) = self.steps.next()?;
        self.change(&step, &manifest);
        let text: Vec<_> = self.documents.values().cloned().collect();
        let text = text.join("\n---\n").into();
        let loaded = self.loader.load(vec![("mesh.yaml".into(), text)]);
        Some(Message {
            step,
            updates: loaded.batch().updates().to_vec(),
            removed: loaded.batch().removed().to_vec(),
        })
    }
}
