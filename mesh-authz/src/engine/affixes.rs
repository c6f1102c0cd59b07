//! Finds all texts of a table with which a text begins, or ends.
//!
//! A tree of bytes in which nothing branches without need: what a search takes depends on the length of
//! what it looks for, and hardly on how many texts there are.

use std::ops::Range;
use std::sync::Arc;

/// A table of the beginnings, or of the ends, of texts.
pub(super) struct Affixes<V> {
    end: End,
    /// The root first; the children of a node stand together, in the order of their first bytes.
    nodes: Box<[Node<V>]>,
    /// Of each node but the root the byte that leads to it.
    first_bytes: Box<[u8]>,
    /// The bytes that follow that one, in the order of the text.
    labels: Box<[u8]>,
}

/// At which end of a text a table looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The beginning.
    Front,
    /// The end.
    Back,
}

impl End {
    /// What is left of a text that begins, or ends, with the label. Most differ in the first byte that is looked at,
    /// and many labels have no other: neither needs a comparison of slices, which is a call.
    fn strip<'a>(self, text: &'a [u8], label: &[u8]) -> Option<&'a [u8]> {
        let rest = text.len().checked_sub(label.len())?;
        let (part, rest, outer) = match self {
            Self::Front => {
                let (part, rest) = text.split_at(label.len());
                (part, rest, (part.first(), label.first()))
            }
            Self::Back => {
                let (rest, part) = text.split_at(rest);
                (part, rest, (part.last(), label.last()))
            }
        };
        let same = outer.0 == outer.1 && (label.len() <= 1 || part == label);
        same.then_some(rest)
    }
}

struct Node<V> {
    label: Range<u32>,
    children: Range<u32>,
    value: Option<V>,
}

/// From how many children on they are searched by halves.
const MANY: usize = 16;

impl<V> Affixes<V> {
    /// Makes a table; texts must differ.
    pub(super) fn new(end: End, texts: Vec<(Arc<str>, V)>) -> Self {
        let mut texts: Vec<(Vec<u8>, Option<V>)> = texts
            .into_iter()
            .map(|(text, value)| {
                let mut bytes = text.as_bytes().to_vec();
                if end == End::Back {
                    bytes.reverse();
                }
                (bytes, Some(value))
            })
            .collect();
        texts.sort_by(|(a, _), (b, _)| a.cmp(b));
        let (mut nodes, mut first_bytes, mut labels) = (Vec::new(), Vec::new(), Vec::new());
        // Makes a node for these texts, which begin alike, up to where they part.
        let mut node = |nodes: &mut Vec<Node<V>>, of: &[(Vec<u8>, Option<V>)], from: usize| {
            let [low, high] = [of.first(), of.last()].map(|text| match text {
                Some((bytes, _)) => bytes.as_slice(),
                None => &[],
            });
            // In sorted order what the outermost share, all share.
            let shared = low.iter().zip(high).take_while(|(a, b)| a == b).count();
            let start = labels.len();
            labels.extend_from_slice(&low[from..shared]);
            if end == End::Back {
                labels[start..].reverse();
            }
            nodes.push(Node {
                label: index(start)..index(labels.len()),
                children: 0..0,
                value: None,
            });
            shared
        };
        let depth = node(&mut nodes, &texts, 0);
        first_bytes.push(0);
        // Nodes whose children are to be made, with their texts, which all begin with so many bytes.
        let mut open = vec![(0, 0..texts.len(), depth)];
        while let Some((at, mut range, depth)) = open.pop() {
            if range.start < range.end && texts[range.start].0.len() == depth {
                nodes[at].value = texts[range.start].1.take();
                range.start += 1;
            }
            let first = nodes.len();
            while range.start < range.end {
                let of = &texts[range.clone()];
                let byte = of[0].0[depth];
                let run = of.iter().take_while(|(text, _)| text[depth] == byte);
                let inner = range.start..range.start + run.count();
                range.start = inner.end;
                first_bytes.push(byte);
                let shared = node(&mut nodes, &texts[inner.clone()], depth + 1);
                open.push((nodes.len() - 1, inner, shared));
            }
            nodes[at].children = index(first)..index(nodes.len());
        }
        Self {
            end,
            nodes: nodes.into_boxed_slice(),
            first_bytes: first_bytes.into_boxed_slice(),
            labels: labels.into_boxed_slice(),
        }
    }

    /// Calls `found` with the value of each text with which this one begins (or ends), the shortest first.
    pub(super) fn of(&self, text: &str, mut found: impl FnMut(&V)) {
        let mut rest = text.as_bytes();
        let mut node = &self.nodes[0];
        loop {
            let label = &self.labels[node.label.start as usize..node.label.end as usize];
            let Some(after) = self.end.strip(rest, label) else {
                return;
            };
            if let Some(value) = &node.value {
                found(value);
            }
            let next = match self.end {
                End::Front => after.split_first(),
                End::Back => after.split_last(),
            };
            let Some((byte, after)) = next else { return };
            let Some(child) = self.child(node, *byte) else {
                return;
            };
            (rest, node) = (after, child);
        }
    }

    fn child(&self, node: &Node<V>, byte: u8) -> Option<&Node<V>> {
        let (start, end) = (node.children.start as usize, node.children.end as usize);
        let bytes = &self.first_bytes[start..end];
        let at = if bytes.len() < MANY {
            bytes.iter().position(|first| *first == byte)?
        } else {
            bytes.binary_search(&byte).ok()?
        };
        Some(&self.nodes[start + at])
    }

    /// Whether there are no texts.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.len() == 1 && self.nodes[0].value.is_none()
    }
}

/// A place in a table. No source delivers four billion bytes of policies.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
