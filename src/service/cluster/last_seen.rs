//! `cluster.json` in the state directory: members, upgrade and reboot as this node saw them last. etcd may go down with the
//! nodes, and a node that has just started must not answer as if nothing were in progress. No cluster decision is based on it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::cluster::codec;
use crate::cluster::state::{NodeId, Stage, Upgrade};
use crate::cluster::store::{Entry, Key, Snapshot, Value};
use crate::cluster::view::View;
use crate::host::files::{private_directory, replace};

const FILE: &str = "cluster.json";

/// Whether a common decision on the release on trial is pending, by the state that was seen last: until then no program of this
/// machine may mark the release good.
pub(crate) fn awaits_verdict(state_dir: &Path, node: NodeId) -> bool {
    let Some(snapshot) = LastSeen::new(state_dir).load() else { return false };
    let View { members, upgrade, .. } = View::new(&snapshot);
    let decided = upgrade.kept
        || matches!(upgrade.stage, Stage::Idle | Stage::Preparing | Stage::Prepared | Stage::Gate);
    members.contains(&node) && !decided
}

/// The file, and its last content.
#[derive(Debug)]
pub(super) struct LastSeen {
    dir: PathBuf,
    last: Vec<u8>,
}

impl LastSeen {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), last: Vec::new() }
    }

    /// Reads the saved state; `None`: there is no readable file.
    pub(super) fn load(&self) -> Option<Snapshot> {
        let text = std::fs::read_to_string(self.dir.join(FILE)).ok()?;
        // Values are JSON in a string: a boot ID has 128 bits, which a JSON number need not support.
        let values: BTreeMap<String, String> = serde_json::from_str(&text).ok()?;
        let mut snapshot = Snapshot::new();
        for (path, value) in values {
            let key = codec::key(&path)?;
            let value = codec::decode(key, value.as_bytes()).ok()?;
            snapshot.insert(key, Entry { value, created: 0, modified: 0, lease: None });
        }
        Some(snapshot)
    }

    /// Whether a key is saved. Results of nodes are not: each would cost a flush of every node, and delay the next change.
    pub(super) const fn lasts(key: &Key) -> bool {
        matches!(key, Key::Member(_) | Key::Upgrade | Key::Reboot)
    }

    /// Saves the keys that last, if they have changed. Progress alone is not worth a flush.
    pub(super) fn keep(&mut self, snapshot: &Snapshot) {
        let values = snapshot.iter().filter(|(key, _)| Self::lasts(key)).filter_map(|(key, entry)| {
            let value = match &entry.value {
                Value::Upgrade(upgrade) => Value::Upgrade(Upgrade { progress: 0, ..upgrade.clone() }),
                value => value.clone(),
            };
            Some((codec::path(*key), codec::encode(&value).ok()?))
        });
        let values: BTreeMap<String, String> = values.collect();
        let Ok(bytes) = serde_json::to_vec_pretty(&values) else { return };
        if bytes == self.last {
            return;
        }
        let written =
            private_directory(&self.dir, false).and_then(|()| replace(&self.dir, FILE, &bytes, 0o600));
        match written {
            Ok(()) => self.last = bytes,
            // A full or read-only `/var` must not stop an upgrade.
            Err(error) => tracing::warn!("{}: the cluster's state is not kept: {error}", self.dir.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::state::{BootId, Member, Reboot};

    #[test]
    fn a_verdict_is_awaited_from_the_switch_to_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let awaits = |node, stage, kept| {
            let entry = |value| Entry { value, created: 3, modified: 4, lease: None };
            let member = Member { uuid: String::new(), address: String::new(), certificate: String::new() };
            let upgrade = Upgrade { stage, kept, ..Upgrade::default() };
            LastSeen::new(dir.path()).keep(&Snapshot::from([
                (Key::Member(NodeId(1)), entry(Value::Member(member))),
                (Key::Upgrade, entry(Value::Upgrade(upgrade))),
            ]));
            awaits_verdict(dir.path(), NodeId(node))
        };
        assert!(!awaits_verdict(dir.path(), NodeId(1)), "a single node");
        assert!(!awaits(2, Stage::Rebooting, false), "no member");
        for (stage, kept, wanted) in [
            (Stage::Prepared, false, false),
            (Stage::Swap, false, true),
            (Stage::Committed, false, true),
            (Stage::Rebooting, false, true),
            (Stage::Return, false, true),
            (Stage::Keep, true, false),
            (Stage::Idle, true, false),
        ] {
            assert_eq!(awaits(1, stage, kept), wanted, "{stage:?}");
        }
    }

    #[test]
    fn what_lasts_is_found_again_and_garbage_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(LastSeen::new(dir.path()).load(), None);
        let upgrade = |progress| Upgrade { id: 7, stage: Stage::Preparing, progress, ..Upgrade::default() };
        let entry = |value| Entry { value, created: 3, modified: 4, lease: None };
        let snapshot = |progress| {
            let leader = (Key::Leader, entry(Value::Leader(NodeId(1))));
            let reboot = Reboot { current: vec![(NodeId(1), BootId(u128::MAX))], ..Reboot::default() };
            let reboot = (Key::Reboot, entry(Value::Reboot(reboot)));
            Snapshot::from([(Key::Upgrade, entry(Value::Upgrade(upgrade(progress)))), leader, reboot])
        };
        let mut kept = LastSeen::new(dir.path());
        kept.keep(&snapshot(50));
        let found = LastSeen::new(dir.path()).load().unwrap();
        assert_eq!(found.len(), 2, "who leads is of the moment");
        assert_eq!(found[&Key::Upgrade].value, Value::Upgrade(upgrade(0)));
        let file = dir.path().join(FILE);
        std::fs::remove_file(&file).unwrap();
        kept.keep(&snapshot(60));
        assert!(!file.exists(), "progress alone writes nothing");
        for garbage in ["", "[]", "{\"upgrade\": 3}", "{\"x\": 3}"] {
            std::fs::write(&file, garbage).unwrap();
            assert_eq!(kept.load(), None, "{garbage}");
        }
    }
}
