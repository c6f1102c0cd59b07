//! What a server is told of resources that were refused.

use super::settings::MAX_NAME;

/// What a refusal says at most.
const MAX_TEXT: usize = 1024;

/// Room for how many others there are.
const ROOM_FOR_COUNT: usize = 32;

/// Names the resources that were refused, each with its reason, as long as there is room.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    text: String,
    /// How many are not in the text.
    others: usize,
    /// The first of them, for the caller.
    named: Vec<(String, String)>,
}

/// How many of a response's refused resources the caller is told.
const MAX_NAMED: usize = 64;

/// How many bytes of a reason: it may repeat what the server said.
const MAX_REASON: usize = 1024;

/// A name by which it can be remembered that it was refused: none, if it is too long for that.
pub(super) fn short(name: &str) -> &str {
    if name.len() > MAX_NAME { "" } else { name }
}

/// As much of a text as there is room for.
fn cut(text: &str, room: usize) -> &str {
    let mut ends = (0..=room.min(text.len())).rev();
    let end = ends.find(|at| text.is_char_boundary(*at));
    &text[..end.unwrap_or_default()]
}

impl Refusal {
    pub(super) fn add(&mut self, name: &str, reason: &str) {
        let room = MAX_TEXT - ROOM_FOR_COUNT;
        let reason = cut(reason, MAX_REASON);
        if self.named.len() < MAX_NAMED {
            self.named.push((short(name).to_owned(), reason.to_owned()));
        }
        let first = self.text.is_empty();
        if first {
            let text = format!("{name}: {reason}");
            cut(&text, room).clone_into(&mut self.text);
        } else if self.others == 0 && self.text.len() + name.len() + reason.len() + 4 <= room {
            self.text.push_str("; ");
            self.text.push_str(name);
            self.text.push_str(": ");
            self.text.push_str(reason);
        } else {
            self.others += 1;
        }
    }

    /// Takes out the first of what was refused, and why.
    pub(super) fn take_named(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.named)
    }

    /// `None` if nothing was refused.
    pub(super) fn into_text(self) -> Option<String> {
        match self.others {
            _ if self.text.is_empty() => None,
            0 => Some(self.text),
            others => Some(format!("{}; and {others} more", self.text)),
        }
    }
}
