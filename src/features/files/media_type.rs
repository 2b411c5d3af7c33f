//! What content is, by its first bytes: the client's word for it counts for nothing.

/// How many bytes decide.
pub const HEAD: usize = 8 * 1024;

const UNKNOWN: &str = "application/octet-stream";

/// The media type of content that begins so.
pub fn of(head: &[u8]) -> &'static str {
    let head = &head[..head.len().min(HEAD)];
    let found = infer::get(head).map(|found| found.mime_type());
    let Some(text) = text(head) else { return found.unwrap_or(UNKNOWN) };
    match found {
        // To `infer`, an SVG is no more than XML, or nothing.
        None | Some("text/xml") if text.contains("<svg") => "image/svg+xml",
        Some(found) => found,
        None if text.is_empty() => UNKNOWN,
        None => "text/plain",
    }
}

/// As which type content is handed out. What a browser would run as a page is bytes to it.
pub fn presented(media_type: &str) -> &str {
    match media_type {
        "text/plain" => "text/plain; charset=utf-8",
        "image/svg+xml" => UNKNOWN,
        text if text.starts_with("text/") => UNKNOWN,
        other => other,
    }
}

/// The bytes as text, if they are text: the last character may be cut.
fn text(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{c}' | '\u{1b}');
    text.chars().all(is_text).then_some(text)
}
