//! What has changed in what is kept, until it is put with the rest: of a whole mesh little by little.

use std::collections::VecDeque;
use std::sync::Arc;
use std::vec;

use mesh_xds::ads::Kept;

use super::form::Content;

/// Resources that are put in at once, some 0.1 ms of work.
const BITE: usize = 64;

/// While so many wait, no more is taken from the stream.
const MOST: usize = 100_000;

/// In the order in which it came.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    changes: VecDeque<Change>,
    resources: usize,
}

#[derive(Debug)]
struct Change {
    put: vec::IntoIter<Kept>,
    /// After what is put: types and names.
    gone: vec::IntoIter<(Arc<str>, Box<str>)>,
}

impl Waiting {
    pub(super) fn push(&mut self, put: Vec<Kept>, gone: Vec<(Arc<str>, Box<str>)>) {
        self.resources += put.len() + gone.len();
        let (put, gone) = (put.into_iter(), gone.into_iter());
        self.changes.push_back(Change { put, gone });
    }

    /// Whether more may come.
    pub(super) fn has_room(&self) -> bool {
        self.resources < MOST
    }

    /// Puts some of it in; says whether there may be more.
    pub(super) fn put_some(&mut self, content: &mut Content) -> bool {
        let mut left = BITE;
        while let Some(change) = self.changes.front_mut() {
            if left == 0 {
                return true;
            }
            if let Some(one) = change.put.next() {
                content.put(one);
            } else if let Some((url, name)) = change.gone.next() {
                content.remove(url, &name);
            } else {
                self.changes.pop_front();
                continue;
            }
            self.resources -= 1;
            left -= 1;
        }
        false
    }
}
