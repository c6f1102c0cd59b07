//! Answers as text for a person, of bounded length.

use std::fmt::{self, Write};

use super::{Explained, Fact};

/// The longest answer: 256 KiB. What a person reads is far shorter; the rest is cut off and said so.
const LONGEST: usize = 256 * 1024;

/// A text that stops growing.
struct Bounded {
    text: String,
}

impl Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        let room = LONGEST - self.text.len();
        if more.len() <= room {
            self.text.push_str(more);
            return Ok(());
        }
        let fits = (0..=room).rev().find(|at| more.is_char_boundary(*at));
        self.text.push_str(&more[..fits.unwrap_or(0)]);
        // Ends whoever writes.
        Err(fmt::Error)
    }
}

impl Explained {
    pub(in crate::admin) fn to_text(&self) -> String {
        let mut to = Bounded {
            text: String::new(),
        };
        if self.write(&mut to).is_err() {
            to.text
                .push_str("\n… and more: the answer was cut off here\n");
        }
        to.text
    }

    fn write(&self, to: &mut impl Write) -> fmt::Result {
        writeln!(to, "{}\n", self.verdict)?;
        for (name, fact) in &self.facts {
            match fact {
                Fact::Text(text) => writeln!(to, "  {name}: {text}")?,
                Fact::Number(number) => writeln!(to, "  {name}: {number}")?,
                Fact::List(list) => writeln!(to, "  {name}: {}", list.join(", "))?,
            }
        }
        writeln!(to)?;
        for step in &self.steps {
            let passes = if step.passes { "yes" } else { "no" };
            writeln!(to, "  {}: {passes}: {}", step.step, step.reason)?;
        }
        if let Some(told) = &self.told {
            write!(to, "\n{}", told.explanation())?;
        }
        Ok(())
    }
}
