//! Contract of a store: the same checks for the double in memory, with which the model is explored, and for a real etcd, with
//! `etcdctl` as the independent check.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::path::Path;
use std::process::Command;

use qstage::cluster::etcd::{Etcd, EtcdConfig};
use qstage::cluster::memory::Memory;
use qstage::cluster::state::{NodeId, Reboot, Upgrade};
use qstage::cluster::store::{Compare, Entry, Key, Store, Txn, Value, Write};

use crate::etcd::{Certificates, Etcd as Server};

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
    compacted(&server, &store);
    // A member that is gone when the node starts. No process listens at that port.
    let gone = "http://127.0.0.1:1".to_owned();
    let both = EtcdConfig { endpoints: vec![gone, server.url()], ..server.access("/one/") };
    assert_eq!(Etcd::new(&both).unwrap().snapshot().unwrap(), store.snapshot().unwrap());
    // The error for garbage names the key.
    server.says(&["put", "/one/reboot", "{"]);
    let error = store.snapshot().unwrap_err();
    assert!(
        error.code() == "UPGRADE_ERROR_CLUSTER_DATA" && error.to_string().contains("'reboot'"),
        "{error}"
    );
    server.says(&["del", "/one/reboot"]);
    for name in ["members/3", "alive/3", "upgrade", "leader", "result/0/3", "restart/3"] {
        let key = format!("/one/{name}");
        let before = server.says(&["get", "--print-value-only", &key]);
        // A stage, or a field, of a later version.
        for garbage in ["", "\u{1}", "[]", r#"{"stage":"beamed"}"#, "{}"] {
            server.says(&["put", &key, "--", garbage]);
            let Err(error) = store.snapshot() else {
                assert!(name == "upgrade" && garbage == "{}" || name == "x", "{name}: {garbage}");
                continue;
            };
            assert!(
                error.code() == "UPGRADE_ERROR_CLUSTER_DATA"
                    && error.to_string().contains(&format!("'{name}'")),
                "{error}"
            );
        }
        match before.trim() {
            "" => server.says(&["del", &key]),
            text => server.says(&["put", &key, text]),
        };
    }
    // A lease that is not renewed ends.
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

/// What a watch has missed may be compacted meanwhile: it ends with a message, and all keys are read again.
fn compacted(server: &Server, store: &Etcd) {
    let (_, missed) = store.read().unwrap();
    for leader in ["2", "3"] {
        server.says(&["put", "/one/leader", leader]);
    }
    server.says(&["compact", &server.revision().to_string()]);
    let mut watch = store.watch(missed).unwrap();
    let error = loop {
        match watch.wait() {
            Ok((changes, _)) => assert!(changes.is_empty(), "{changes:?}"),
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("the watch ended"), "{error}");
    let (snapshot, revision) = store.read().unwrap();
    assert_eq!(snapshot[&Key::Leader].value, Value::Leader(NodeId(3)));
    let mut watch = store.watch(revision).unwrap();
    server.says(&["del", "/one/leader"]);
    let mut changes = Vec::new();
    while changes.is_empty() {
        changes = watch.wait().unwrap().0;
    }
    assert_eq!(changes, [(Key::Leader, None)]);
}

/// Without `ca` the authorities of the system count. It runs itself again with those of a test as the system's.
#[test]
fn authorities_of_the_system() {
    const ENDPOINT: &str = "QSTAGE_TEST_ENDPOINT";
    let connects = |url: &str, dir: &Path| {
        let identity = Some((dir.join("node.pem"), dir.join("node.key")));
        let prefix = "/x/".to_owned();
        let access =
            EtcdConfig { endpoints: vec![url.to_owned()], identity, prefix, ..EtcdConfig::default() };
        Etcd::new(&access).unwrap().identity().map(|_| ())
    };
    if let Ok(given) = std::env::var(ENDPOINT) {
        let (url, dir) = given.split_once(' ').unwrap();
        return connects(url, Path::new(dir)).unwrap();
    }
    let Some(server) = Server::start(true) else { return };
    assert!(connects(&server.url(), &server.path("")).is_err(), "the real ones of this system");
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", "contract::authorities_of_the_system", "--nocapture"]);
    again.env(ENDPOINT, format!("{} {}", server.url(), server.path("").display()));
    let output = again.env("SSL_CERT_FILE", server.path("ca.pem")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
    assert!(stranger.to_string().contains("requires a certificate of this node"), "{stranger}");
    let other = EtcdConfig { ca: None, ..access.clone() };
    let unknown = refused(&other).to_string();
    assert!(unknown.contains("the authority of its certificate is not among those of 'ca'"), "{unknown}");
    let named =
        EtcdConfig { endpoints: vec![server.url().replace("127.0.0.1", "localhost")], ..access.clone() };
    assert!(refused(&named).to_string().contains("for another address"), "{}", refused(&named));
    // A certificate of this node from an authority that etcd does not know.
    let dir = tempfile::tempdir().unwrap();
    let foreign = Certificates::new(dir.path());
    // A key of another certificate, as in the middle of a renewal.
    let halves =
        EtcdConfig { identity: Some((foreign.cert.clone(), server.path("node.key"))), ..access.clone() };
    let error = Etcd::new(&halves).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_CONFIG");
    assert!(error.to_string().contains("it is no key for the certificate"), "{error}");
    let foreign = EtcdConfig { identity: Some((foreign.cert, foreign.key)), ..access.clone() };
    assert!(
        refused(&foreign).to_string().contains("requires a certificate of this node"),
        "{}",
        refused(&foreign)
    );
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
