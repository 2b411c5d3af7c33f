//! Detects a media type from the first bytes of the content. The client's `Content-Type` is ignored.

/// How many of the first bytes are inspected.
pub const SNIFFED_BYTES: usize = 8 * 1024;

const OCTET_STREAM: &str = "application/octet-stream";

/// Returns the media type of content that begins with these bytes.
pub fn detect(head: &[u8]) -> &'static str {
    let head = &head[..head.len().min(SNIFFED_BYTES)];
    let found = infer::get(head).map(|found| found.mime_type());
    let Some(text) = text(head) else { return found.unwrap_or(OCTET_STREAM) };
    match found {
        // `infer` reports an SVG as XML or does not recognize it.
        None | Some("text/xml") if text.contains("<svg") => "image/svg+xml",
        Some(found) => found,
        None if text.is_empty() => OCTET_STREAM,
        None => "text/plain",
    }
}

/// Returns the type that content is served with. A type that a browser would run as a page becomes plain bytes.
pub fn served_as(media_type: &str) -> &str {
    match media_type {
        "text/plain" => "text/plain; charset=utf-8",
        "image/svg+xml" => OCTET_STREAM,
        text if text.starts_with("text/") => OCTET_STREAM,
        other => other,
    }
}

/// Returns the bytes as text if they are text. The last character may be incomplete.
fn text(head: &[u8]) -> Option<&str> {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(e) if e.error_len().is_none() => std::str::from_utf8(&head[..e.valid_up_to()]).ok()?,
        Err(_) => return None,
    };
    let is_text = |c: char| !c.is_control() || matches!(c, '\t' | '\n' | '\r' | '\u{c}' | '\u{1b}');
    text.chars().all(is_text).then_some(text)
}
