//! Type names that occur more than once in the source. A reader who searches for a type should find one; where two modules
//! share a name there is a reason, and users write the module before it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;

use super::architecture;

/// Names that several visible types have: how many, and why each keeps it.
const SHARED_NAMES: &[(&str, usize, &str)] = &[
    ("Config", 2, "the configuration of a module is called so in each: the file, and a container"),
    ("Phase", 2, "of the progress of a step and of an upgrade; the latter is a wire name of the v3 status"),
    ("Step", 2, "of a plan of writes and of the turn of a node: the smallest part of each"),
    ("View", 2, "all that decisions are based on, of a cluster and of a machine"),
];

#[test]
fn a_type_name_occurs_once_or_has_a_reason() {
    let mut defined: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for source in architecture::sources() {
        for name in source.code.lines().filter_map(visible_type) {
            defined.entry(name.to_owned()).or_default().push(format!("src/{}", source.path));
        }
    }
    assert!(defined.len() > 300, "the types are not found any more");
    defined.retain(|_, places| places.len() > 1);
    let unlisted: Vec<String> = defined
        .iter()
        .filter(|(name, places)| {
            let listed = SHARED_NAMES.iter().find(|(listed, ..)| listed == name);
            listed.is_none_or(|(_, count, _)| *count != places.len())
        })
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(unlisted.is_empty(), "choose another name, or list it\n{}", unlisted.join("\n"));
    for (name, _, why) in SHARED_NAMES {
        assert!(!why.is_empty() && defined.contains_key(*name), "{name} occurs once now; remove it here");
    }
}

/// The name of the type that a line defines, if it is visible outside of its file.
fn visible_type(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("pub")?;
    let rest =
        rest.strip_prefix('(').map_or(Some(rest), |rest| rest.split_once(')').map(|(_, rest)| rest))?;
    let (kind, rest) = rest.strip_prefix(' ')?.split_once(' ')?;
    let kinds = ["struct", "enum", "union", "trait", "type"];
    kinds.contains(&kind).then(|| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default())
}

/// The check itself: what counts as visible.
#[test]
fn the_reader_of_types_reads() {
    assert_eq!(visible_type("pub(crate) struct Access<'a> {"), Some("Access"));
    assert_eq!(visible_type("pub type Change = (Key, u8);"), Some("Change"));
    assert_eq!(visible_type("struct Private;"), None);
    assert_eq!(visible_type("pub fn f() {}"), None);
}
