//! Rust source as the ratchets see it: without comments, string contents and test modules.

/// The code with comments and the contents of string and character literals blanked out; line breaks stay.
pub fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let rest = |at: usize| &bytes[at.min(bytes.len())..];
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if rest(at).starts_with(b"//") => line_end(bytes, at),
            b'/' if rest(at).starts_with(b"/*") => block_comment_end(bytes, at),
            b'r' | b'b' if !preceded_by_word(bytes, at) && raw_hashes(rest(at)).is_some() => {
                raw_string_end(bytes, at)
            }
            b'"' => string_end(bytes, at),
            b'\'' => char_end(bytes, at),
            byte => {
                out.push(if byte.is_ascii() { char::from(byte) } else { ' ' });
                at += 1;
                continue;
            }
        };
        for byte in &bytes[at..end] {
            let lifetime = *byte == b'\'' && end == at + 1;
            out.push(if *byte == b'\n' || lifetime { char::from(*byte) } else { ' ' });
        }
        at = end;
    }
    out
}

/// `code_only` without the items under `#[cfg(test)]`.
pub fn shipped_code(text: &str) -> String {
    let mut code = code_only(text);
    while let Some(start) = code.find("#[cfg(test)]") {
        let body = &code[start..];
        let open = body.find('{').unwrap_or(body.len());
        let plain = body.find(';').unwrap_or(body.len());
        // A `mod tests;` or a `use` ends at its semicolon, anything with a body at the matching brace.
        let end = if plain < open { plain + 1 } else { open + matching_brace(&body[open..]) };
        code.replace_range(start..start + end, "");
    }
    code
}

/// How often a word stands alone in the code.
pub fn count_word(code: &str, word: &str) -> usize {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .filter(|(at, _)| {
            let before = code[..*at].chars().next_back();
            let after = code[at + word.len()..].chars().next();
            !before.is_some_and(is_word) && !after.is_some_and(is_word)
        })
        .count()
}

fn preceded_by_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n)
}

fn block_comment_end(bytes: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

/// For `r"`, `r#"`, `br##"`, ...: the number of `#`.
fn raw_hashes(bytes: &[u8]) -> Option<usize> {
    let bytes = bytes.strip_prefix(b"b").unwrap_or(bytes).strip_prefix(b"r")?;
    let hashes = bytes.iter().take_while(|b| **b == b'#').count();
    (bytes.get(hashes) == Some(&b'"')).then_some(hashes)
}

fn raw_string_end(bytes: &[u8], at: usize) -> usize {
    let hashes = raw_hashes(&bytes[at..]).unwrap_or(0);
    let open = at + bytes[at..].iter().position(|b| *b == b'"').unwrap_or(0) + 1;
    let mut close = vec![b'"'];
    close.resize(hashes + 1, b'#');
    let found = bytes[open..].windows(close.len()).position(|part| part == close);
    found.map_or(bytes.len(), |n| open + n + close.len())
}

fn string_end(bytes: &[u8], at: usize) -> usize {
    let mut next = at + 1;
    while next < bytes.len() {
        match bytes[next] {
            b'\\' => next += 2,
            b'"' => return next + 1,
            _ => next += 1,
        }
    }
    bytes.len()
}

/// The end of a character literal, or just past the quote when it begins a lifetime.
fn char_end(bytes: &[u8], at: usize) -> usize {
    if bytes.get(at + 1) == Some(&b'\\') {
        // `'\''`, `'\\'`, `'\u{1f}'`: the escaped byte itself is never the end.
        let close = bytes.get(at + 3..).and_then(|rest| rest.iter().position(|b| *b == b'\''));
        return close.map_or(bytes.len(), |n| at + 4 + n);
    }
    // One character of up to four bytes, then the quote.
    let close = (2..=5).find(|n| bytes.get(at + n) == Some(&b'\''));
    match close {
        Some(n) if n == 2 || !bytes[at + 1].is_ascii() => at + n + 1,
        _ => at + 1,
    }
}

fn matching_brace(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                if depth == 0 {
                    return at + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_hide_nothing_and_show_nothing() {
        let text = "a(); // unsafe\n/* unsafe /* nested */ unsafe */ b(\"unsafe \\\" unsafe\", r#\"unsafe \" x\"#);\n\
                    let c: &'static str = f('\"', '\\'', 'x'); unsafe { g('é') }";
        let code = code_only(text);
        assert_eq!(count_word(&code, "unsafe"), 1, "{code}");
        assert!(code.contains("a();") && code.contains("b(") && code.contains("g("), "{code}");
        assert_eq!(code.lines().count(), text.lines().count());
    }

    #[test]
    fn test_modules_do_not_count() {
        let text = "fn a() { x.unwrap() }\n#[cfg(test)]\nmod tests { fn b() { if c { y.unwrap() } } }\n#[cfg(test)]\nmod more;\nfn d() { z.unwrap() }";
        assert_eq!(shipped_code(text).matches(".unwrap()").count(), 2);
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(count_word("unsafe_op unsafe {unsafe} notunsafe", "unsafe"), 2);
    }
}
