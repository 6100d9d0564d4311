//! The language of source, documents and scripts: words that are not used in comments and prose. The terms of the field are in
//! the glossary of the manual (`src/manual/glossary.md`); a reader should meet one word for each of them.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use super::files::{documents, files};

/// Words that do not occur, each with better ones. Each form has an entry of its own; case does not matter.
const WORDS: &[(&str, &str)] = &[
    ("affairs", "state, data"),
    ("anybody", "any process, any user, a caller"),
    ("are had", "are obtained, are made"),
    ("asked for", "requested, required, configured"),
    ("became of", "the result of"),
    ("behind", "after, below"),
    ("calm", "waiting period"),
    ("could not help", "at least, the minimum"),
    ("courtesy", "throttling, waiting for others"),
    ("for want of", "for lack of"),
    ("give up", "abandon, stop after"),
    ("given up", "abandoned, stopped after"),
    ("gives up", "abandons, stops after"),
    ("in front of", "before"),
    ("in vain", "without success"),
    ("is had", "is obtained, is made"),
    ("nobody", "no process, no user; say what is missing"),
    ("patience", "timeout, limit"),
    ("patient", "timeout, limit"),
    ("reckon", "calculate"),
    ("reckoned", "calculated"),
    ("says of itself", "its record, its content"),
    ("so many", "the number of, N"),
    ("somebody", "a process, a user, a caller"),
    ("stranger", "untrusted"),
    ("strangers", "untrusted"),
    ("tell", "report, return, show, distinguish"),
    ("tells", "reports, returns, shows, distinguishes"),
    ("told", "reported, returned, shown, distinguished"),
    ("vouch", "authenticate, sign"),
    ("vouched", "authenticated, signed"),
    ("vouches", "authenticates, signs"),
    ("whoever", "the caller, the user, the process"),
    ("whosoever", "the caller, the user, the process"),
];

/// This file has them in its examples.
const EXEMPT: &str = "tests/repository/words.rs";

/// The comment of a line, in lower case and without markup; `None` if it has none. A `//` within a string follows other
/// characters than a blank.
fn comment_of(line: &str) -> Option<String> {
    let line = format!(" {line}");
    let comment = line.split_once(" //")?.1.trim_start_matches(['/', '!']).to_lowercase();
    Some(comment.trim().to_owned())
}

/// The listed words in the comments of a Rust file.
fn in_comments(path: &str, text: &str) -> Vec<String> {
    let comments: Vec<_> = text.lines().map(|line| comment_of(line).unwrap_or_default()).collect();
    findings(path, &comments)
}

/// The listed words in a document or shell script, in which every line counts, or in the comments of a Python script.
fn in_prose(path: &str, text: &str) -> Vec<String> {
    let prose = |line: &str| {
        let line = line.trim();
        let code = path.ends_with(".py") && !line.starts_with("\"\"\"");
        let comment = if code { line.find("# ").map_or("", |at| &line[at..]) } else { line };
        comment.trim_start_matches("# ").to_lowercase()
    };
    let lines: Vec<_> = text.lines().map(prose).collect();
    findings(path, &lines)
}

/// The listed words in lower-case lines, as `path:line: word; better: words`. A phrase may be wrapped onto the next line.
fn findings(path: &str, comments: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for (number, comment) in comments.iter().enumerate() {
        let next = comments.get(number + 1).map_or("", String::as_str);
        let wrapped = format!("{comment} {next}");
        for (word, better) in WORDS {
            let part = |c: char| c.is_alphanumeric() || c == '_';
            let begins_here = |(at, _): (usize, &str)| {
                at < comment.len()
                    && !wrapped[..at].ends_with(|c| part(c) || c == '.')
                    && !wrapped[at + word.len()..].starts_with(part)
            };
            if wrapped.match_indices(word).any(begins_here) {
                found.push(format!("{path}:{}: '{word}'; better: {better}", number + 1));
            }
        }
    }
    found
}

#[test]
fn comments_use_the_terms_of_the_field() {
    let found: Vec<String> = files()
        .iter()
        .filter(|(path, _)| path != EXEMPT)
        .flat_map(|(path, text)| in_comments(path, text))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn documents_and_scripts_use_them_too() {
    let documents = documents();
    for expected in ["README.md", "src/manual/errors.md", "fixtures/config.toml", "scripts/test", "deny.toml"]
    {
        assert!(documents.iter().any(|(path, _)| path == expected), "{expected} is not read");
    }
    let found: Vec<String> = documents.iter().flat_map(|(path, text)| in_prose(path, text)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The checks themselves: words are whole, wrapped phrases are found, strings are not comments.
#[test]
fn the_reader_of_words_reads() {
    let text = "/// It is told\nlet a = \"//told\"; // In front\n// of it, untold\nfn nobody() {}\n";
    let found = in_comments("x.rs", text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].starts_with("x.rs:1: 'told'") && found[1].starts_with("x.rs:2: 'in front of'"),
        "{found:?}"
    );
    let found = in_prose("x.md", "- Whoever is in the\n# untold.\n");
    assert_eq!(found.len(), 1, "{found:?}");
    let found = in_prose("x.sh", "# It gives\n# up.\n");
    assert_eq!(found.len(), 1, "a phrase that is wrapped: {found:?}");
}
