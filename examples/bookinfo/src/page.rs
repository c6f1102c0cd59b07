//! The product page, as Bookinfo's readers know it.

use serde_json::Value;

const STYLE: &str = "
body{font-family:system-ui,sans-serif;margin:0;background:#f7f8fa;color:#1c2733}
header{background:#10243e;color:#fff;padding:14px 32px;font-size:20px}
main{max-width:960px;margin:0 auto;padding:24px}
h1{color:#1d5fbf;margin:8px 0 4px}
.grid{display:grid;grid-template-columns:1fr 1fr;gap:32px}
dl{display:grid;grid-template-columns:auto 1fr;gap:4px 16px} dt{color:#667} dd{margin:0}
blockquote{margin:0 0 16px;padding:12px 16px;background:#fff;border-left:4px solid #1d5fbf;border-radius:4px}
blockquote p{margin:0 0 8px} @media(max-width:700px){.grid{grid-template-columns:1fr}}
cite{color:#667;display:block;margin-top:6px} .stars{font-size:20px;letter-spacing:2px}
.error{background:#fde8e8;border-left-color:#c0392b} footer{color:#667;font-size:13px;margin-top:24px}";

const SUMMARY: &str = "The Comedy of Errors is one of William Shakespeare's early plays. It is his shortest and one of \
his most farcical comedies, with a major part of the humour coming from slapstick and mistaken identity, in addition \
to puns and word play.";

/// Text that only the page has: what a wiretap must not see.
pub(crate) const SECRETS: [&str; 3] = [
    "slapstick humour is refreshing",
    "PublisherA",
    "absolutely hilarious",
];

/// A service's answer, or what to tell the reader instead.
pub(crate) type Part = Result<Value, String>;

pub(crate) fn render(details: &Part, reviews: &Part) -> String {
    let details = match details {
        Ok(details) => render_details(details),
        Err(error) => render_error("details", error),
    };
    let reviews = match reviews {
        Ok(reviews) => render_reviews(reviews),
        Err(error) => render_error("reviews", error),
    };
    format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Simple Bookstore App</title>\
         <style>{STYLE}</style></head><body><header>BookInfo Sample</header><main>\
         <h1>The Comedy of Errors</h1><p>{SUMMARY}</p>\
         <div class=\"grid\"><section id=\"details\"><h2>Book Details</h2>{details}</section>\
         <section id=\"reviews\"><h2>Book Reviews</h2>{reviews}</section></div></main></body></html>"
    )
}

fn render_details(details: &Value) -> String {
    let rows: String = [
        ("Type", "type"),
        ("Pages", "pages"),
        ("Publisher", "publisher"),
        ("Language", "language"),
        ("ISBN-10", "ISBN-10"),
        ("ISBN-13", "ISBN-13"),
    ]
    .into_iter()
    .map(|(label, key)| {
        let value = match &details[key] {
            Value::String(text) => escape(text),
            other => escape(&other.to_string()),
        };
        format!("<dt>{label}</dt><dd>{value}</dd>")
    })
    .collect();
    format!("<dl>{rows}</dl>")
}

fn render_reviews(reviews: &Value) -> String {
    let mut html = String::new();
    for review in reviews["reviews"].as_array().into_iter().flatten() {
        let text = escape(review["text"].as_str().unwrap_or_default());
        let reviewer = escape(review["reviewer"].as_str().unwrap_or_default());
        html += &format!("<blockquote><p>{text}</p><cite>{reviewer}</cite>");
        html += &render_rating(&review["rating"]);
        html += "</blockquote>";
    }
    let served_by = escape(reviews["podname"].as_str().unwrap_or("unknown"));
    html + &format!("<footer>Reviews served by: <b>{served_by}</b></footer>")
}

fn render_rating(rating: &Value) -> String {
    if let Some(error) = rating["error"].as_str() {
        return format!("<p><em>{}</em></p>", escape(error));
    }
    let Some(stars) = rating["stars"].as_u64() else {
        return String::new();
    };
    let stars = stars.min(5) as usize;
    let colour = if rating["color"] == "red" {
        "#c0392b"
    } else {
        "#000"
    };
    let (full, empty) = ("★".repeat(stars), "☆".repeat(5 - stars));
    format!(
        "<span class=\"stars\" style=\"color:{colour}\" title=\"{stars} of 5\">{full}{empty}</span>"
    )
}

fn render_error(service: &str, error: &str) -> String {
    format!(
        "<blockquote class=\"error\"><p>Error fetching product {service}!</p><cite>{}</cite></blockquote>",
        escape(error)
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
