//! Contract of a store: the same checks for the double in memory, with which the model is explored, and for a real etcd, with
//! `etcdctl` as the independent check.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use qstage::cluster::etcd::{Etcd, EtcdConfig};
use qstage::cluster::memory::Memory;
use qstage::cluster::state::{NodeId, Reboot, Upgrade};
use qstage::cluster::store::{Compare, Entry, Key, Store, Txn, Value, Write};

use crate::etcd::Etcd as Server;

fn put(key: Key, value: Value, lease: Option<i64>) -> Write {
    Write::Put(key, value, lease)
}

fn leads(node: u32, lease: Option<i64>) -> Write {
    put(Key::Leader, Value::Leader(NodeId(node)), lease)
}

fn run(store: &mut dyn Store, compare: Vec<Compare>, writes: Vec<Write>) -> bool {
    store.transact(&Txn { compare, writes }).unwrap()
}

fn entry(store: &dyn Store, key: Key) -> Option<Entry> {
    store.snapshot().unwrap().get(&key).cloned()
}

/// The checks.
fn behaves(store: &mut dyn Store) {
    assert!(store.snapshot().unwrap().is_empty());
    // The first write creates the key, the next one changes it, as the revisions show.
    assert!(run(store, vec![Compare::Created(Key::Leader, 0)], vec![leads(1, None)]));
    assert!(!run(store, vec![Compare::Created(Key::Leader, 0)], vec![leads(2, None)]), "it is there");
    let first = entry(store, Key::Leader).unwrap();
    assert_eq!((&first.value, first.created), (&Value::Leader(NodeId(1)), first.modified));
    assert!(run(store, vec![Compare::Modified(Key::Leader, first.modified)], vec![leads(2, None)]));
    let second = entry(store, Key::Leader).unwrap();
    assert_eq!(second.created, first.created);
    assert!(second.modified > first.modified);
    // All writes or none, and one revision for all of them.
    let stale = vec![Compare::Modified(Key::Leader, first.modified)];
    let upgrade = || put(Key::Upgrade, Value::Upgrade(Upgrade::default()), None);
    let reboot = || put(Key::Reboot, Value::Reboot(Reboot::default()), None);
    assert!(!run(store, stale, vec![upgrade(), reboot()]));
    assert!(entry(store, Key::Upgrade).is_none() && entry(store, Key::Reboot).is_none());
    let both = vec![Compare::Created(Key::Leader, first.created), Compare::Modified(Key::Upgrade, 0)];
    assert!(run(store, both, vec![upgrade(), reboot()]));
    let of = |store: &dyn Store, key| entry(store, key).unwrap().modified;
    assert_eq!(of(store, Key::Upgrade), of(store, Key::Reboot));
    // An earlier term of a leader is over after the next election, even of the same node.
    assert!(run(store, vec![], vec![Write::Delete(Key::Leader)]));
    assert!(run(store, vec![Compare::Created(Key::Leader, 0)], vec![leads(1, None)]));
    assert!(!run(store, vec![Compare::Created(Key::Leader, first.created)], vec![upgrade()]), "fenced");
    // The end of a lease deletes its keys and no others; a key has the lease of its last change.
    let (one, two) = (store.grant(10).unwrap(), store.grant(10).unwrap());
    assert_ne!(one, two);
    assert!(run(
        store,
        vec![],
        vec![leads(3, Some(one)), put(Key::Reboot, Value::Reboot(Reboot::default()), Some(one))]
    ));
    assert!(run(store, vec![], vec![put(Key::Reboot, Value::Reboot(Reboot::default()), Some(two))]));
    assert_eq!(entry(store, Key::Leader).unwrap().lease, Some(one));
    store.revoke(one).unwrap();
    assert!(entry(store, Key::Leader).is_none() && entry(store, Key::Reboot).is_some());
    assert!(
        store.transact(&Txn { compare: vec![], writes: vec![leads(3, Some(one))] }).is_err(),
        "it is over"
    );
    assert!(entry(store, Key::Leader).is_none());
    // An empty transaction succeeds.
    assert!(run(store, vec![], vec![]));
}

#[test]
fn the_double() {
    behaves(&mut Memory::default());
}

#[test]
fn a_real_etcd() {
    let Some(server) = Server::start(false) else { return };
    let mut store = Etcd::new(&server.access("/one/")).unwrap();
    behaves(&mut store);
    // Keys of other programs are neither read nor changed.
    server.says(&["put", "/one", "x"]);
    server.says(&["put", "/one0", "x"]);
    server.says(&["put", "/one/members/01", "x"]);
    assert_eq!(store.snapshot().unwrap().len(), 2);
    // etcdctl reads the written values, and its own changes are seen.
    assert!(server.says(&["get", "--print-value-only", "/one/upgrade"]).contains("\"stage\":\"idle\""));
    server.says(&["put", "/one/leader", "7"]);
    assert_eq!(entry(&store, Key::Leader).unwrap().value, Value::Leader(NodeId(7)));
    watches(&server, &store);
    // The error for garbage names the key.
    server.says(&["put", "/one/reboot", "{"]);
    let error = store.snapshot().unwrap_err();
    assert!(
        error.code() == "UPGRADE_ERROR_CLUSTER_DATA" && error.to_string().contains("'reboot'"),
        "{error}"
    );
    // A lease that is not renewed ends.
    server.says(&["del", "/one/reboot"]);
    let lease = store.grant(1).unwrap();
    assert!(store.keep_alive(lease).unwrap());
    assert!(run(&mut store, vec![], vec![leads(1, Some(lease))]));
    store.revoke(lease).unwrap();
    assert!(!store.keep_alive(lease).unwrap());
}

fn watches(server: &Server, store: &Etcd) {
    let (_, revision) = store.read().unwrap();
    let mut watch = store.watch(revision).unwrap();
    server.says(&["put", "/one/leader", "8"]);
    server.says(&["put", "/two/leader", "8"]);
    server.says(&["del", "/one/leader"]);
    let mut changes = Vec::new();
    while changes.len() < 2 {
        changes.extend(watch.wait().unwrap().0);
    }
    assert_eq!(changes[0].0, Key::Leader);
    assert_eq!(changes[0].1.as_ref().unwrap().value, Value::Leader(NodeId(8)));
    assert_eq!(changes[1], (Key::Leader, None));
}

#[test]
fn certificates_and_users() {
    let Some(server) = Server::start(true) else { return };
    let access = server.access("/one/");
    behaves(&mut Etcd::new(&access).unwrap());
    let refused = |access: &EtcdConfig| Etcd::new(access).unwrap().snapshot().unwrap_err();
    // No client certificate, and an authority that did not sign the certificate of etcd.
    let stranger = refused(&EtcdConfig { identity: None, ..access.clone() });
    assert_eq!(stranger.code(), "UPGRADE_ERROR_CLUSTER_STORE");
    let other = EtcdConfig { ca: None, ..access.clone() };
    assert!(refused(&other).to_string().contains("certificate"), "{}", refused(&other));
    // With a user and password.
    for words in [
        "user add root:r",
        "user add node:secret",
        "role add node",
        "role grant-permission node readwrite --prefix /one/",
        "user grant-role node node",
        "user grant-role root root",
        "auth enable",
    ] {
        server.says(&words.split(' ').collect::<Vec<_>>());
    }
    assert_eq!(refused(&access).code(), "UPGRADE_ERROR_CLUSTER_STORE");
    let password = |text: &str| {
        let file = server.path("password");
        std::fs::write(&file, text).unwrap();
        EtcdConfig { user: Some(("node".to_owned(), file)), ..access.clone() }
    };
    let mut store = Etcd::new(&password("secret\n")).unwrap();
    assert!(run(&mut store, vec![], vec![leads(1, None)]));
    assert!(store.snapshot().unwrap().contains_key(&Key::Leader));
    let wrong = refused(&password("wrong"));
    assert!(wrong.to_string().contains("authentication failed"), "{wrong}");
    // Keys that the user may not access.
    let elsewhere = EtcdConfig { prefix: "/two/".to_owned(), ..password("secret") };
    assert!(refused(&elsewhere).to_string().contains("permission denied"));
}
