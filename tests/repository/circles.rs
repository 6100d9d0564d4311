//! Which module of `src/` imports which, and that no two of them need each other: what goes in circles can only be read, moved
//! or tested as one.
//!
//! A module may use those that it contains, and they may use it: from outside, a folder is one thing. So what a
//! module says of its own children is no import here. Every other path that begins with `crate`, `super` or `self` is one,
//! to the deepest module that it names; what a module re-exports is its own.

use std::collections::{BTreeMap, BTreeSet};

use super::architecture::sources;

type Module = Vec<String>;

/// Pairs that import each other, and why they stay; a module has the name of its path below `src/`.
const KNOWN: &[(&str, &str, &str)] = &[];

/// The module of a file below `src/`.
fn module(path: &str) -> Module {
    let name = path.trim_end_matches(".rs").trim_end_matches("/mod");
    name.split('/').filter(|part| *part != "lib").map(str::to_owned).collect()
}

/// The paths of a `use` declaration, its braces spread out.
fn spread(tree: &str) -> Vec<String> {
    let Some((before, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![path.split_whitespace().collect()];
    };
    let (inner, _) = rest.rsplit_once('}').unwrap_or((rest, ""));
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for c in inner.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (c, depth) {
            (',', 0) => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(c),
        }
    }
    let named = parts.iter().filter(|part| !part.trim().is_empty());
    named.flat_map(|part| spread(&format!("{}{}", before.trim(), part.trim()))).collect()
}

/// All paths that the code names: those of its `use` declarations, and those within it.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = code;
    let mut inline = String::new();
    let begins = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
    while let Some(at) = rest.find("use ") {
        inline += &rest[..at];
        let after = &rest[at + 4..];
        match after.find(';') {
            Some(end) if begins(&rest[..at]) => {
                found.extend(spread(&after[..end]));
                rest = &after[end..];
            }
            _ => rest = after,
        }
    }
    inline += rest;
    for root in ["crate::", "super::", "self::"] {
        for (at, _) in inline.match_indices(root) {
            let path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            if begins(&inline[..at]) && !inline[..at].ends_with(':') {
                let end = inline[at..].find(|c| !path(c)).map_or(inline.len(), |len| at + len);
                found.push(inline[at..end].to_owned());
            }
        }
    }
    found
}

/// The module that a path of `from` leads to; `None` where it is `from` itself, one of its children, or not ours.
fn target(from: &Module, path: &str, all: &BTreeSet<Module>) -> Option<Module> {
    let mut words = path.split("::").peekable();
    let mut base = match words.next()? {
        "crate" => Module::new(),
        "self" => from.clone(),
        "super" => {
            let mut base = from.clone();
            base.pop();
            while words.next_if_eq(&"super").is_some() {
                base.pop();
            }
            base
        }
        _ => return None,
    };
    for word in words {
        base.push(word.to_owned());
        if !all.contains(&base) {
            base.pop();
            break;
        }
    }
    (!base.is_empty() && !base.starts_with(from)).then_some(base)
}

type Imports = BTreeMap<Module, BTreeSet<Module>>;

fn imports<'s>(sources: impl Iterator<Item = (&'s str, &'s str)>) -> Imports {
    let sources: Vec<(Module, &str)> =
        sources.filter(|(path, _)| *path != "main.rs").map(|(path, code)| (module(path), code)).collect();
    let all: BTreeSet<Module> = sources.iter().map(|(module, _)| module.clone()).collect();
    let of = |(from, code): &(Module, &str)| {
        let targets = paths(code).iter().filter_map(|path| target(from, path, &all)).collect();
        (from.clone(), targets)
    };
    sources.iter().map(of).collect()
}

/// All that a module needs, directly or not.
fn reaches<'i>(from: &'i Module, imports: &'i Imports) -> BTreeSet<&'i Module> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&Module> = imports.get(from).into_iter().flatten().collect();
    while let Some(module) = open.pop() {
        if seen.insert(module) {
            open.extend(imports.get(module).into_iter().flatten());
        }
    }
    seen
}

/// The pairs of modules that need each other, directly or by way of others.
fn circles(imports: &Imports) -> BTreeSet<(String, String)> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> =
        imports.keys().map(|from| (from, reaches(from, imports))).collect();
    let mut found = BTreeSet::new();
    for (from, to) in &reached {
        let back = |other: &&&Module| {
            **other > *from && reached.get(**other).is_some_and(|back| back.contains(from))
        };
        found.extend(to.iter().filter(back).map(|other| (from.join("/"), other.join("/"))));
    }
    found
}

#[test]
fn no_two_modules_need_each_other() {
    let sources = sources();
    let imports = imports(sources.iter().map(|source| (source.path.as_str(), source.code.as_str())));
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 500, "the imports are not found any more");
    let found = circles(&imports);
    let known: BTreeSet<(String, String)> =
        KNOWN.iter().map(|(a, b, _)| ((*a).to_owned(), (*b).to_owned())).collect();
    let (new, gone): (Vec<_>, Vec<_>) =
        (found.difference(&known).collect(), known.difference(&found).collect());
    assert!(new.is_empty(), "these need each other: {new:#?}");
    assert!(gone.is_empty(), "these need each other no more: {gone:#?}");
    assert!(KNOWN.iter().all(|(.., why)| !why.is_empty()));
}

/// The finder itself: every spelling of an import, ways over a third module, and what is none.
#[test]
fn the_finder_of_circles_finds_them() {
    let of = |files: &[(&'static str, &'static str)]| -> Vec<String> {
        let found = circles(&imports(files.iter().copied()));
        found.into_iter().map(|(a, b)| format!("{a} {b}")).collect()
    };
    let b = ("b.rs", "use crate::a::Y;");
    assert_eq!(of(&[("a.rs", "use crate::b::X;"), b]), ["a b"]);
    assert_eq!(of(&[("a.rs", "use super::b::{self, X as Z};"), b]), ["a b"]);
    assert_eq!(of(&[("a.rs", "use crate::{\n    c,\n    b::{X, d::E},\n};"), b, ("c.rs", "")]), ["a b"]);
    assert_eq!(of(&[("a.rs", "fn f() { crate::b::x() }"), b]), ["a b"]);
    assert_eq!(of(&[("a.rs", "use crate::c::X;"), b, ("c.rs", "use crate::b::X;")]), ["a b", "a c", "b c"]);
    assert_eq!(of(&[("a.rs", "use other::b::X; fn f() { nota::crate_b::x() }"), b]), [""; 0]);
    let inside = [
        ("a/mod.rs", "use b::X; use self::c::Y; use crate::a::b::Z;"),
        ("a/b.rs", "use super::Q;"),
        ("a/c.rs", "use super::Q;"),
    ];
    assert_eq!(of(&inside), [""; 0], "a folder is one thing");
    assert_eq!(
        of(&[("a/b.rs", "use super::c::X;"), ("a/c.rs", "use crate::a::b::Y;"), ("a/mod.rs", "")]),
        ["a/b a/c"]
    );
}
