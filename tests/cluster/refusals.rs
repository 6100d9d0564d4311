//! Invalid conditions: each is reported, nothing changes, and the running services continue.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "helpers of tests are tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::etcd::{Certificates, Etcd};
use crate::harness::server::{Bench, run};
use crate::lab::{Lab, Node};

/// Why a node accepts no upgrade.
fn blocked(node: &Node) -> String {
    node.get("/v2/upgrade/blocked")["blocked_reason"].as_str().unwrap().to_owned()
}

#[test]
fn who_does_not_belong() {
    let Some(mut lab) = Lab::new(2) else { return };
    let v2 = lab.bench.text("v2.qimg");
    // Two nodes cannot have a rolling reboot, and the reason is shown.
    let (status, answer) = lab.node(1).prepare(&v2, false, true);
    assert!(status == 409 && answer["description"].as_str().unwrap().contains("quorum"), "{answer}");
    // Requests that one member must not execute alone.
    let target = json!({"install_path": v2, "target": "UPGRADE_TARGET_PREPARE"}).to_string();
    let (status, text) = lab.node(1).try_call("PUT", "/v1/upgrade/settings", &target).unwrap();
    assert!(status == 409 && text.contains("UPGRADE_ERROR_CLUSTER_MEMBER"), "{text}");
    for (path, code) in
        [("reboot/2", "UPGRADE_ERROR_CLUSTER_MEMBER"), ("halt/2", "UPGRADE_ERROR_ELSEWHERE_NODE")]
    {
        let (_, answer) = lab.node(1).call(&format!("/v1/shutdown/{path}"), &Value::Null);
        assert_eq!(answer["error_class"], code, "{path}");
    }
    assert_eq!(lab.node(1).call("/v1/shutdown/container-restart/9", &Value::Null).0, 404);
    // A password would be stored in etcd.
    let (status, answer) = lab.node(1).prepare("https://user:word@example.org/v2.qimg", false, false);
    let told = answer["description"].as_str().unwrap();
    assert!(status == 400 && told.contains("etcd would show") && !told.contains("word@"), "{answer}");
    // A second machine with the number of another one.
    lab.add(3, 2, "", None);
    let third = lab.node(3);
    third.until("it sees etcd", |node| {
        node.try_get("/v1/qstage/cluster").is_some_and(|s| s["connected"] == true)
    });
    let output = third.qstage(&["cluster", "join"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(5) && said.contains("another machine already"), "{said}");
    let (_, answer) = third.call("/v1/qstage/cluster/join", &Value::Null);
    assert_eq!(answer["error_class"], "UPGRADE_ERROR_MEMBERSHIP");
    assert_eq!(third.get("/v2/upgrade/blocked")["is_blocked"], json!(false), "it serves alone");
    third.until("it is told", |node| {
        let problem = node.get("/v1/qstage/cluster")["problem"].as_str().unwrap().to_owned();
        problem.contains("set another 'node'") && problem.contains("or another 'prefix' for another cluster")
    });
    assert_eq!(third.get("/v1/node/state")["state"], "UNCONFIGURED");
    // It is upgraded alone.
    assert_eq!(third.prepare(&v2, false, false).0, 202);
    third.until("it is prepared", |node| node.state() == "PREPARED");
    assert_eq!(lab.node(1).state(), "IDLE");
    assert_eq!(third.post("/v1/qstage/cancel", &Value::Null), 200);
    lab.node(3).power(false);
    // A copy of a member, with the same number and the same partition GUIDs.
    lab.add_copy(4, 2, 2);
    lab.node(2).until("it is told", |node| blocked(node).contains("another machine is node 2 too"));
    assert_eq!(lab.node(2).prepare(&v2, false, false).1["error_class"], "UPGRADE_ERROR_MEMBERSHIP");
    lab.node(4).power(false);
    lab.etcd.says(&["del", "/lab/alive/2"]);
    lab.node(2).until("it takes part again", |node| blocked(node).is_empty());
    // A machine with another release.
    lab.add(5, 5, "", None);
    let fifth = lab.node(5);
    fifth.until("it sees etcd", |node| {
        node.try_get("/v1/qstage/cluster").is_some_and(|s| s["connected"] == true)
    });
    assert_eq!(fifth.get("/v1/node/state")["state"], "UNCONFIGURED");
    assert_eq!(fifth.prepare(&v2, true, false).0, 202, "alone it may be upgraded");
    fifth.until("it runs that", |node| {
        node.try_get("/v1/version").is_some_and(|v| v["revision_id"] == "Demo 2.0")
    });
    let output = fifth.qstage(&["cluster", "join"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("this node runs Demo 2.0, node 1 of the cluster Demo 1.0; install that"), "{said}");
    assert!(said.contains("or set another 'prefix' in [cluster] if it belongs to another cluster"), "{said}");
    // The cluster whose prefix they have is not disturbed.
    assert_eq!(lab.node(1).prepare(&v2, false, false).0, 202);
    lab.node(2).until("prepared", |node| node.state() == "PREPARED");
    assert_eq!(lab.node(1).post("/v1/qstage/cancel", &Value::Null), 200);
    // Garbage in a key is reported, and nothing changes.
    lab.etcd.says(&["put", "/lab/reboot", "{}"]);
    lab.node(1).until("it is told", |node| {
        node.get("/v2/upgrade/blocked")["blocked_reason"].as_str().unwrap().contains("etcd key 'reboot'")
    });
    let (status, answer) = lab.node(2).prepare(&v2, false, false);
    assert_eq!((status, &answer["error_class"]), (409, &json!("UPGRADE_ERROR_CLUSTER_DATA")));
    // A node that cannot read the state, as one with an older qstage, is none that the others should wait for.
    lab.node(1)
        .until("they give up their leases", |_| lab.etcd.says(&["get", "--prefix", "/lab/alive"]).is_empty());
    assert_eq!(lab.node(1).state(), "IDLE");
    lab.etcd.says(&["del", "/lab/reboot"]);
    lab.node(1).until("it is whole again", |node| node.get("/v2/upgrade/blocked")["is_blocked"] == false);
    // A member leaves, and is a single node again.
    assert!(lab.node(2).qstage(&["cluster", "leave"]).status.success());
    lab.node(2).until("it has left", |node| node.get("/v1/node/state")["state"] == "UNCONFIGURED");
    assert_eq!(lab.node(1).get("/v1/cluster/nodes/").as_array().unwrap().len(), 1);
}

/// A member with an older qstage, and one of another product, as they publish themselves.
#[test]
fn nodes_that_differ() {
    let Some(lab) = Lab::new(1) else { return };
    let (v2, node) = (lab.bench.text("v2.qimg"), lab.node(1));
    // As text: a boot ID is larger than the numbers of a JSON library.
    let refused = |changes: &[(&str, &str)]| {
        let mut alive = lab.etcd.says(&["get", "--print-value-only", "/lab/alive/1"]);
        for (field, other) in changes {
            assert!(alive.contains(field), "{alive}");
            alive = alive.replace(field, other);
        }
        lab.etcd.says(&["put", "/lab/members/3", r#"{"uuid":"x","address":"https://x"}"#]);
        lab.etcd.says(&["put", "/lab/alive/3", alive.trim()]);
        let (status, answer) = node.prepare(&v2, false, false);
        assert_eq!((status, node.state().as_str(), node.version().as_str()), (409, "IDLE", "Demo 1.0"));
        let told = answer["description"].as_str().unwrap().to_owned();
        node.until("it is shown", |node| blocked(node) == told);
        told
    };
    let older = refused(&[(r#""protocol":1,"#, ""), (r#""product":"Demo","#, "")]);
    assert!(older.contains("node 3 has an older qstage"), "{older}");
    let alive = lab.etcd.says(&["get", "--print-value-only", "/lab/alive/1"]);
    let digest = alive.split(r#""runs":""#).nth(1).unwrap().split('"').next().unwrap();
    let product = refused(&[("Demo", "Other"), (digest, &"0".repeat(64))]);
    assert_eq!(product, "node 3 runs Other 1.0, the cluster Demo 1.0");
    lab.etcd.says(&["del", "/lab/members/3"]);
    node.until("it is whole again", |node| blocked(node).is_empty());
}

/// A certificate that etcd does not accept, and an authority that is not that of etcd.
#[test]
fn wrong_certificates_of_a_node() {
    let Some(etcd) = Etcd::start(true) else { return };
    let bench = Bench::new(None);
    let foreign = bench.path("foreign");
    fs::create_dir(&foreign).unwrap();
    Certificates::new(&foreign);
    // Copies of its own, of which some are replaced.
    let (right, paths) =
        (etcd.path(""), ["ca.pem", "node.pem", "node.key"].map(|name| (name, bench.path(name))));
    let install = |wrong: &[&str]| {
        for (name, path) in &paths {
            let from = if wrong.contains(name) { &foreign } else { &right };
            fs::copy(from.join(name), path).unwrap();
        }
    };
    install(&[]);
    let [ca, cert, key] = paths.each_ref().map(|(_, path)| path);
    let access = format!("ca = {ca:?}\ncert = {cert:?}\nkey = {key:?}\n");
    // The service has a certificate of its own.
    let (own, absent) = (bench.path("own.pem"), bench.path("absent.pem"));
    fs::copy(foreign.join("node.pem"), &own).unwrap();
    fs::create_dir(bench.path("node1")).unwrap();
    let text = format!("certificate = {own:?}\nkey = {:?}\n", foreign.join("node.key"));
    fs::write(bench.path("node1/service.toml"), text).unwrap();
    let mut lab = Lab::on(etcd, bench, 1, &access, None);
    let (node, v2) = (lab.node(1), lab.bench.text("v2.qimg"));
    let slots = |node: &Node| node.get("/v1/qstage/slots");
    let before = slots(node);
    let restarted = || {
        node.power(false);
        node.until("it is down", |node| node.try_get("/v1/version").is_none());
        node.power(true);
        node.until("it answers", |node| node.try_get("/v1/version").is_some());
    };
    for (wrong, cause) in [
        (&["node.pem", "node.key"][..], "certificate of this node"),
        (&["ca.pem"], "the authority of its certificate is not among those of 'ca'"),
    ] {
        install(wrong);
        restarted();
        node.until("the cause is named", |node| blocked(node).contains(cause));
        let (status, answer) = node.prepare(&v2, false, false);
        assert!(status == 503 && answer["description"].as_str().unwrap().contains(cause), "{answer}");
        assert_eq!((node.state().as_str(), node.version().as_str()), ("IDLE", "Demo 1.0"));
        assert_eq!(slots(node), before);
    }
    // A certificate of the service that is installed after its start is known to the other nodes.
    install(&[]);
    let is_known = || lab.etcd.says(&["get", "--print-value-only", "/lab/members/1"]).contains("BEGIN CERT");
    node.until("its certificate is known", |_| is_known());
    fs::rename(&own, &absent).unwrap();
    restarted();
    node.until("it is whole again", |node| blocked(node).is_empty());
    node.until("it has none", |_| !is_known());
    fs::rename(&absent, &own).unwrap();
    node.until("its certificate is known again", |_| is_known());
    are_renewed(&mut lab, (&own, &foreign.join("node.key")), [ca, cert, key]);
}

/// Certificate and key of the service, and then those for etcd, are replaced, one file after the other: they are used without a
/// restart, as soon as they fit each other.
fn are_renewed(lab: &mut Lab, service: (&Path, &Path), [ca, cert, key]: [&PathBuf; 3]) {
    let dir = lab.bench.path("renewed");
    fs::create_dir(&dir).unwrap();
    let new = Certificates::new(&dir);
    let boots = lab.node(1).boots();
    let replace = |from: &Path, to: &Path| {
        let beside = to.with_extension("new");
        fs::copy(from, &beside).unwrap();
        fs::rename(beside, to).unwrap();
    };
    let serves = |certificate: &str| {
        let address = lab.node(1).address();
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", address.trim_start_matches("https://")]).stdin(Stdio::null());
        String::from_utf8_lossy(&client.output().unwrap().stdout).contains(certificate.trim())
    };
    let logs = |text: &str| fs::read_to_string(lab.node(1).path("log")).unwrap().contains(text);
    let (before, after) = (fs::read_to_string(service.0).unwrap(), fs::read_to_string(&new.cert).unwrap());
    lab.node(1).until("it serves", |_| serves(&before));
    replace(&new.cert, service.0);
    lab.node(1).until("there is no key for the new one", |_| {
        serves(&before) && logs("the new certificate cannot be used")
    });
    replace(&new.key, service.1);
    lab.node(1).until("it serves the new one", |_| serves(&after));
    let line = after.lines().nth(3).unwrap();
    lab.node(1).until("the other nodes know it", |_| {
        lab.etcd.says(&["get", "--print-value-only", "/lab/members/1"]).contains(line)
    });
    // For etcd.
    replace(&new.cert, cert);
    lab.node(1).until("it is noticed", |_| logs("the new certificates for etcd cannot be used"));
    replace(&new.ca, ca);
    replace(&new.key, key);
    lab.etcd.certified_by(new);
    lab.node(1).until("it is whole again", |node| {
        blocked(node).is_empty() && node.get("/v1/qstage/cluster")["connected"] == true
    });
    assert_eq!(lab.node(1).boots(), boots);
}

/// Each node checks the signature and the ordered digest itself: what another one has found valid does not count.
#[test]
fn a_node_that_finds_another_bundle_or_trusts_others() {
    let Some(lab) = Lab::new(2) else { return };
    let private = lab.bench.path("private");
    fs::create_dir(&private).unwrap();
    let bundle = private.join("v2.qimg");
    fs::copy(lab.bench.path("v2.qimg"), &bundle).unwrap();
    let (node, second) = (lab.node(1), lab.node(2));
    let restarted = || {
        second.power(false);
        second.until("it is down", |node| node.try_get("/v1/version").is_none());
        second.power(true);
        second.until("it answers", |node| node.try_get("/v1/version").is_some());
        node.until("all are well", |node| blocked(node).is_empty());
    };
    let refused = |reason: &str| {
        restarted();
        assert_eq!(node.prepare(bundle.to_str().unwrap(), true, false).0, 202);
        for each in [node, second] {
            each.until("it has failed", |node| node.state() == "IDLE");
            let told = each.get("/v3/upgrade/status")["error_info"].as_str().unwrap().to_owned();
            assert!(told.starts_with("node 2: ") && told.contains(reason), "{told}");
            each.until("nothing is left of it", |node| {
                let slots = node.get("/v1/qstage/slots");
                slots["slots"].as_array().unwrap().iter().all(|slot| slot["state"] != "prepared")
            });
            assert_eq!(each.version(), "Demo 1.0");
        }
    };
    // At the same path it has another release, with a valid signature.
    let instead = second.path("instead");
    fs::create_dir(&instead).unwrap();
    fs::copy(lab.bench.path("v3.qimg"), instead.join("v2.qimg")).unwrap();
    fs::write(second.path("hidden"), private.to_str().unwrap()).unwrap();
    refused("v2.qimg is not the 2.0 that was ordered");
    // The right bundle, but it trusts others than its signer.
    fs::remove_file(second.path("hidden")).unwrap();
    let key = lab.bench.path("foreign");
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
    let public = fs::read_to_string(lab.bench.path("foreign.pub")).unwrap();
    fs::write(lab.bench.path("others"), format!("r@example.org namespaces=\"qimg\" {public}")).unwrap();
    let config = fs::read_to_string(second.path("config")).unwrap();
    let others = config.replace(&lab.bench.text("signers"), &lab.bench.text("others"));
    assert_ne!(others, config);
    fs::write(second.path("config"), others).unwrap();
    refused("signature");
}

#[test]
fn an_etcd_without_quorum() {
    let Some(etcd) = Etcd::three() else { return };
    let mut lab = Lab::on(etcd, Bench::new(None), 1, "", None);
    let v2 = lab.bench.text("v2.qimg");
    lab.etcd.stop_others();
    let (status, answer) = lab.node(1).prepare(&v2, false, false);
    let told = answer["description"].as_str().unwrap();
    assert!(status == 503 && told.contains("its members have no quorum"), "{answer}");
    lab.node(1).until("it is noticed", |node| blocked(node).contains("its members have no quorum"));
    assert_eq!((lab.node(1).state().as_str(), lab.node(1).version().as_str()), ("IDLE", "Demo 1.0"));
    // Every request that only reads has an answer from the last known state.
    let document = lab.node(1).get("/v1/qstage/openapi.json");
    let reads = document["paths"].as_object().unwrap().iter().filter(|(_, verbs)| verbs["get"].is_object());
    let mut asked = 0;
    for (path, _) in reads {
        // The stream of events never ends; others are for an object that does not exist here.
        if path.ends_with("/events") || path.contains('{') {
            continue;
        }
        let (status, text) = lab.node(1).try_call("GET", path, "").unwrap();
        assert_eq!(status, 200, "GET {path}: {text}");
        asked += 1;
    }
    assert!(asked > 15, "{asked}");
    lab.etcd.again();
    lab.node(1).until("it is whole again", |node| blocked(node).is_empty());
}

#[test]
fn an_etcd_that_is_full_or_has_forgotten() {
    let Some(mut lab) = Lab::new(1) else { return };
    let v2 = lab.bench.text("v2.qimg");
    lab.etcd.stop();
    lab.etcd.quota = Some(16 << 10);
    lab.etcd.again();
    lab.node(1).until("it answers again", |node| blocked(node).is_empty());
    let (status, answer) = lab.node(1).prepare(&v2, false, false);
    assert!(status == 503 && answer["description"].as_str().unwrap().contains("is full"), "{answer}");
    assert_eq!(lab.node(1).state(), "IDLE");
    lab.etcd.stop();
    lab.etcd.quota = None;
    lab.etcd.again();
    lab.etcd.says(&["alarm", "disarm"]);
    // A snapshot from before the upgrade that is in progress.
    let snapshot = lab.etcd.path("snapshot");
    lab.etcd.says(&["snapshot", "save", snapshot.to_str().unwrap()]);
    lab.node(1).until("it is taken", |node| node.prepare(&v2, false, false).0 == 202);
    lab.node(1).until("prepared", |node| node.state() == "PREPARED");
    lab.etcd.restore(&snapshot);
    lab.node(1).until("it is told", |node| blocked(node).contains("restore of a snapshot"));
    let (status, answer) = lab.node(1).call("/v1/qstage/cancel", &Value::Null);
    assert_eq!((status, &answer["error_class"]), (409, &json!("UPGRADE_ERROR_CLUSTER_RESTORED")));
    std::thread::sleep(std::time::Duration::from_secs(1));
    let is_staged = |node: &Node| {
        let slots = node.get("/v1/qstage/slots");
        slots["slots"].as_array().unwrap().iter().any(|slot| slot["state"] == "prepared")
    };
    assert!(lab.node(1).state() == "PREPARED" && is_staged(lab.node(1)), "nothing moves");
    // A restart of the service accepts the state.
    lab.node(1).power(false);
    lab.node(1).until("it is down", |node| node.try_get("/v1/version").is_none());
    lab.node(1).power(true);
    lab.node(1)
        .until("the bundle without an order is discarded", |node| node.state() == "IDLE" && !is_staged(node));
}
