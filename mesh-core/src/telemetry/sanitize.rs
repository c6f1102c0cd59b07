//! Log values that cannot forge a line, move a terminal's cursor or fill a disk.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Longest value of an access log's field, in bytes, after escaping.
pub(super) const MAX_FIELD: usize = 1024;
/// What marks a value that was cut.
const CUT: &str = "…";

/// Escapes control characters as `\xNN` or `\u{NNNN}`, backslashes as `\\`, and cuts at [`MAX_FIELD`].
///
/// Line and paragraph separators and what turns the direction of text count as control characters:
/// viewers act on them.
pub(super) fn sanitize(value: &str) -> Cow<'_, str> {
    if value.len() <= MAX_FIELD && !value.chars().any(must_escape) {
        return Cow::Borrowed(value);
    }
    let mut clean = String::with_capacity(value.len().min(MAX_FIELD));
    // Where to cut, should the rest not fit.
    let mut room_for_mark = 0;
    for c in value.chars() {
        // A String takes whatever is written to it.
        let _ = match c {
            '\\' => clean.write_str("\\\\"),
            c if must_escape(c) && u32::from(c) <= 0xff => write!(clean, "\\x{:02x}", u32::from(c)),
            c if must_escape(c) => write!(clean, "\\u{{{:04x}}}", u32::from(c)),
            c => clean.write_char(c),
        };
        if clean.len() > MAX_FIELD {
            clean.truncate(room_for_mark);
            clean.push_str(CUT);
            break;
        }
        if clean.len() <= MAX_FIELD - CUT.len() {
            room_for_mark = clean.len();
        }
    }
    Cow::Owned(clean)
}

fn must_escape(c: char) -> bool {
    c == '\\'
        || c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
