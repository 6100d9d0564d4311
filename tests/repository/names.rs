//! Type names that occur more than once in the source. A reader who searches for a type should find one; where two modules
//! share a name there is a reason, and users write the module before it.
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::collections::BTreeMap;

use super::architecture;

/// Names that several visible types have: how many, and why each keeps it.
const SHARED_NAMES: &[(&str, usize, &str)] = &[
    ("Access", 3, "to etcd, to a slot, to the service: each is what its module gives access to"),
    ("Answer", 2, "of an owner to its client and of a web server: private to service and source"),
    ("Base", 2, "the base of a delta, by its bytes for the maker and by its slot for the stager"),
    ("Change", 2, "of a key of etcd and of what boots: the terms of the two modules"),
    ("Config", 3, "the configuration of a module is called so in each: the file, a container, kexec"),
    ("Disk", 2, "the disk as the kernel identifies it and as the service shows it"),
    ("Event", 2, "of the JSON output and of the history: both are sequences of events"),
    ("Failed", 2, "a request and a transfer: private to service and source"),
    ("Gate", 2, "of a container before its start and of the service before its handlers"),
    ("Input", 2, "of the command line and of the state machine of an upgrade"),
    ("Kind", 2, "of a payload and of a frame in a delta; the latter is always written `delta::Kind`"),
    ("Limits", 3, "of ranges, of the service and of a transfer: each the limits of its module"),
    ("Mark", 2, "of a slot, and the file that marks a drained node: private to the service"),
    ("Node", 2, "a node of a cluster and a device node: both are the terms of their fields"),
    ("Outcome", 3, "of an upgrade on a node, of a program, of what the client watched"),
    ("Phase", 2, "of the progress of a step and of an upgrade; the latter is a wire name of the v3 status"),
    ("Plan", 2, "of writes to a table and of requests to web servers: both are lists made by pure code"),
    ("Protection", 2, "decided by the cluster, and the same as the v1 API shows it"),
    ("RebootState", 2, "decided by the cluster, and the same as the v1 API shows it"),
    ("Record", 3, "of a slot, of the journal, of the audit log: each is the record of its module"),
    ("Running", 2, "the slot of a group that runs, and a container that runs"),
    ("Settings", 2, "in force after all sources, and `settings` of the v3 status"),
    ("Snapshot", 2, "of the keys of etcd and of the service, each at one moment"),
    ("State", 3, "of a service for systemd, of mirrors and of a transfer: private except the first"),
    ("Status", 3, "the v1 status, the v3 status and that of a cluster: names of the wire"),
    ("Step", 2, "of a plan of writes and of the turn of a node: the smallest part of each"),
    ("Store", 2, "etcd or memory for a cluster, files for the service"),
    ("Upgrade", 3, "of a cluster, of a service, and as checked before it begins"),
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
