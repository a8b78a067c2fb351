//! Rust sources as sequences of words, without comments and literals.

use std::fs;
use std::path::Path;

/// A source file of the checkout.
pub(crate) struct Source {
    /// Its path from the checkout's root.
    pub(crate) path: String,
    tokens: Vec<String>,
}

impl Source {
    fn new(path: String, text: &str) -> Self {
        Self {
            path,
            tokens: tokens(text),
        }
    }

    /// Tells whether the code has this word.
    pub(crate) fn has_word(&self, word: &str) -> bool {
        self.tokens.iter().any(|token| token == word)
    }

    /// Tells whether the code names this module of its own crate, as `crate::module` or `crate::{…, module, …}`.
    pub(crate) fn names_module(&self, module: &str) -> bool {
        let after_crate = |(at, _)| &self.tokens[at + 3..];
        let starts = self
            .tokens
            .windows(3)
            .enumerate()
            .filter(|(_, window)| *window == ["crate", ":", ":"]);
        starts
            .map(after_crate)
            .any(|rest: &[String]| first_names(rest).contains(&module))
    }
}

/// Returns the names that a path can go on with: one, or each of the group in braces.
fn first_names(tokens: &[String]) -> Vec<&str> {
    if tokens.first().is_none_or(|token| token != "{") {
        return tokens.first().map(String::as_str).into_iter().collect();
    }
    let mut depth = 0;
    let mut names = Vec::new();
    for (previous, token) in tokens.iter().zip(&tokens[1..]) {
        match previous.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && (previous == "{" || previous == ",") {
            names.push(token.as_str());
        }
    }
    names
}

/// Returns all Rust files of the packages below `checkout`, in the order of their paths.
pub(crate) fn rust_sources(checkout: &Path) -> Vec<Source> {
    let mut pending: Vec<_> = ["vmm", "devices", "guest-image", "tests"]
        .map(|room| checkout.join(room))
        .into();
    let mut found = Vec::new();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory of the checkout can be listed");
            pending.extend(entries.map(|entry| {
                entry
                    .expect("a directory of the checkout can be listed")
                    .path()
            }));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("a source file can be read");
            let relative = path
                .strip_prefix(checkout)
                .expect("the walk started at the checkout");
            found.push(Source::new(relative.display().to_string(), &text));
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// Splits Rust code into words and single punctuation characters; comments and literals are left out.
fn tokens(text: &str) -> Vec<String> {
    let is_word = |character: char| character.is_alphanumeric() || character == '_';
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(length) = raw_string_length(rest) {
            length
        } else if first == '"' {
            quoted_length(rest, '"')
        } else if first == '\'' && is_character_literal(rest) {
            quoted_length(rest, '\'')
        } else if is_word(first) {
            let length = rest
                .find(|character| !is_word(character))
                .unwrap_or(rest.len());
            tokens.push(rest[..length].to_owned());
            length
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[skip..];
    }
    tokens
}

/// Returns the length of the literal that `text` starts with, both quotes included.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Returns the length of the raw string that `text` starts with, as in `r#"…"#` or `br"…"`.
fn raw_string_length(text: &str) -> Option<usize> {
    let marked = ["br", "cr", "r"]
        .iter()
        .find_map(|prefix| text.strip_prefix(prefix))?;
    let hashes = marked.len() - marked.trim_start_matches('#').len();
    let body = marked[hashes..].strip_prefix('"')?;
    let close = format!("\"{}", "#".repeat(hashes));
    let body_length = body
        .find(&close)
        .map_or(body.len(), |end| end + close.len());
    Some(text.len() - body.len() + body_length)
}

/// Tells a character literal from a lifetime.
fn is_character_literal(text: &str) -> bool {
    let mut characters = text.chars().skip(1);
    let (first, second) = (characters.next(), characters.next());
    first == Some('\\') || second == Some('\'')
}

#[test]
fn comments_and_literals_hold_no_words() {
    let source = Source::new(
        String::new(),
        "fn f<'a>() { /* unsafe */ let _ = ('\"', \"unsafe\", r#\"unsafe\"\"#, b'\\''); } // unsafe",
    );

    assert!(source.has_word("let"));
    assert!(!source.has_word("unsafe"));
}

#[test]
fn a_lifetime_hides_nothing() {
    assert!(Source::new(String::new(), "impl<'a> A<'a> { unsafe fn g() {} }").has_word("unsafe"));
}

#[test]
fn a_lint_s_name_is_another_word() {
    assert!(!Source::new(String::new(), "#![forbid(unsafe_code)]").has_word("unsafe"));
}

#[test]
fn modules_are_found_in_paths_and_in_groups() {
    let source = Source::new(
        String::new(),
        "use crate::{a::b, c::{d, e}, f}; fn g() { crate::h::i() }",
    );

    assert_eq!(
        ["a", "c", "f", "h"].map(|module| source.names_module(module)),
        [true; 4]
    );
    assert_eq!(
        ["b", "d", "e", "i"].map(|module| source.names_module(module)),
        [false; 4]
    );
}
