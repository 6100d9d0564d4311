//! The page at `/` of a member: three real nodes, operated by headless Chromium from one of them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use serde_json::json;

use crate::harness::browser::Browser;
use crate::harness::page::{FAULTS, PLATFORM, SOFTWARE, asks, enter_token};
use crate::lab::Lab;

/// The page of this node, opened and filled.
fn open(lab: &Lab, number: usize) -> Option<Browser> {
    let browser = Browser::start()?;
    browser.open(&format!("{}/", lab.node(number).address()));
    browser.until_text("#link", "live");
    browser.until_text("#runs", "Demo 1.0 runs");
    browser.until_text("#stage", &format!("Node {number} of 3, ACTIVE, stage idle"));
    Some(browser)
}

/// Expression that is true while the row of a node has all these cells.
fn row(number: usize, cells: &[&str]) -> String {
    format!(
        "(({{ rows }}) => {}.every((cell) => [...rows[{number}].cells].some((shown) => shown.innerText.includes(cell))))\
         (document.querySelector('#nodes'))",
        json!(cells)
    )
}

fn shown(browser: &Browser, css: &str) -> bool {
    browser.run(&format!("return document.querySelector({css:?}).checkVisibility()")) == json!(true)
}

/// Clicks a button as soon as the state of the upgrade permits it.
fn click(browser: &Browser, css: &str) {
    browser.until(&format!("!document.querySelector({css:?}).disabled"));
    browser.click(css);
}

#[test]
fn without_a_token_the_page_shows_the_nodes_and_one_that_is_away() {
    let Some(lab) = Lab::new(3) else { return };
    let Some(browser) = open(&lab, 1) else { return };
    for number in 1..=3 {
        browser.until(&row(number, &[&format!("{number} node-{number}"), "online", "1.0", "good"]));
    }
    assert!(
        !shown(&browser, "#actions") && !shown(&browser, "#reboot-actions") && shown(&browser, "#read-only")
    );
    lab.node(3).power(false);
    browser.until(&row(3, &["offline", "away"]));
    // Why no upgrade may begin is shown to who has a token.
    browser.until_text("#blocked", "who has a token sees why");
    enter_token(&browser, "qq");
    browser.until_text("#blocked", "node 3 is away");
    browser.click("#forget");
    browser.until("document.querySelector('#read-only').checkVisibility()");
    // Over the reboot of others it only shows how far that is.
    lab.node(3).power(true);
    browser.until(&row(3, &["online", "good"]));
    let order = json!({"is_rolling": true, "num_nodes_to_reboot": null});
    lab.node(2).until("it is taken", |node| node.call("/v1/shutdown/reboot/start", &order).0 == 202);
    browser.until_text("#reboot", "The rolling reboot is in progress");
    assert!(!shown(&browser, "#reboot-actions"), "without a token");
    browser.until("/[123] of 3 nodes have rebooted/.test(document.querySelector('#reboot').innerText)");
    browser.until("document.querySelector('#reboot').hidden");
    for number in 1..=3 {
        browser.until(&row(number, &["online", "1.0", "good"]));
    }
    // Its own node went down too, so only requests without an answer may have failed.
    let errors = browser.console();
    assert!(errors.iter().all(|error| error.contains("ERR_")), "{errors:?}");
}

#[test]
fn with_a_token_the_page_upgrades_all_nodes() {
    // At its turn a node waits until a file is gone.
    let drain = "drain_command = [\"sh\", \"-c\", \"while test -e {DIR}/../hold; do sleep 0.1; done\"]\n";
    // Slow enough for a page to show each state of a prepare.
    let Some(lab) = Lab::with(3, drain, Some("1M")) else { return };
    std::fs::write(lab.bench.path("hold"), "").unwrap();
    let Some(browser) = open(&lab, 1) else { return };
    enter_token(&browser, "qq");
    // An upgrade of the software has no choice of the reboot, neither before the prepare nor before the commit.
    browser.enter("#path", &lab.bench.text("soft.qimg"));
    click(&browser, "#prepare");
    asks(&browser, "Prepare", "Demo 1.0", "Demo 1.5", SOFTWARE);
    assert!(!shown(&browser, "#ask-mode"));
    browser.click("#ask-yes");
    click(&browser, "#commit");
    asks(&browser, "Commit", "Demo 1.0", "1.5", SOFTWARE);
    assert!(!shown(&browser, "#ask-mode"));
    browser.click("#ask-no");
    click(&browser, "#cancel");
    asks(&browser, "Cancel the upgrade", "Demo 1.0", "1.5", SOFTWARE);
    browser.click("#ask-yes");
    browser.until_text("#state-word", "Idle");
    // That of a platform has one. More nodes at a time than the cluster can lose are refused, with the reason.
    browser.enter("#path", &lab.bench.text("v2.qimg"));
    click(&browser, "#prepare");
    asks(&browser, "Prepare", "Demo 1.0", "Demo 2.0", PLATFORM);
    assert!(shown(&browser, "#ask-mode") && !shown(&browser, "#ask-nodes"));
    browser.click("#mode-rolling");
    browser.enter("#mode-nodes", "2");
    browser.click("#ask-yes");
    browser.until_text("#answer", "2 of 3 nodes cannot reboot at a time, only 1");
    assert_eq!(lab.node(2).state(), "IDLE");
    // Each node shows how far it is.
    click(&browser, "#prepare");
    asks(&browser, "Prepare", "Demo 1.0", "Demo 2.0", PLATFORM);
    browser.click("#ask-yes");
    browser.until(&format!(
        "{} && /, [1-9][0-9]? %/.test(document.querySelector('#nodes').innerText)",
        row(2, &["prepares"])
    ));
    browser.until_text("#stage", "waits for");
    browser.until_text("#state-word", "Prepared");
    for number in 1..=3 {
        browser.until(&row(number, &["is prepared"]));
    }
    browser.until_text("#stage", "waits for a commit, or a cancel");
    // The commit has what was chosen before, and can change it.
    click(&browser, "#commit");
    asks(&browser, "Commit", "Demo 1.0", "2.0", PLATFORM);
    assert!(shown(&browser, "#ask-mode"));
    assert_eq!(browser.run("return document.querySelector('#mode-complete').checked"), json!(true));
    browser.click("#mode-rolling");
    browser.enter("#mode-nodes", "1");
    if let Some(directory) = std::env::var_os("QSTAGE_TEST_PICTURES") {
        browser.picture(&std::path::Path::new(&directory).join("cluster-dialog.png"));
    }
    browser.click("#ask-yes");
    browser.until_text("#answer", "Committing 2.0");
    lab.node(3).until("the settings are there", |node| {
        let settings = node.get("/v3/upgrade/status")["settings"].clone();
        settings["do_rolling_reboot"] == true && settings["num_nodes_to_reboot"] == 1
    });
    // One node goes down, the others wait; the reboot pauses after it, and goes on.
    browser.until_text("#reboot", "The rolling reboot is in progress");
    browser.until_text("#nodes", "waits for its turn");
    browser.until_text("#stage", "waits for node ");
    click(&browser, "#pause");
    asks(&browser, "Pause the reboot", "Demo 1.0", "2.0", PLATFORM);
    browser.until_text("#ask-facts", "0 of 3 nodes");
    browser.click("#ask-yes");
    browser.until_text("#reboot", "The rolling reboot is paused; 0 of 3 nodes have rebooted");
    std::fs::remove_file(lab.bench.path("hold")).unwrap();
    browser.until_text("#reboot", "The rolling reboot is paused; 1 of 3 nodes have rebooted");
    browser.until_text("#nodes", "has rebooted");
    browser.until_text("#stage", "waits for a resume");
    assert_eq!(browser.run("return document.querySelector('#pause').disabled"), json!(true));
    assert_eq!(browser.run(FAULTS), json!([]));
    if let Some(directory) = std::env::var_os("QSTAGE_TEST_PICTURES") {
        browser.run("document.querySelector('#cluster').scrollIntoView(); return 0");
        browser.picture(&std::path::Path::new(&directory).join("cluster.png"));
    }
    click(&browser, "#resume");
    browser.until_text("#ask-text", "The other nodes reboot in turns");
    browser.click("#ask-yes");
    // To the end, also over the reboot of the node that serves the page.
    browser.until_text("#state-word", "Idle");
    browser.until_text("#runs", "Demo 2.0 runs");
    browser.until("document.querySelector('#reboot').hidden");
    for number in 1..=3 {
        browser.until(&row(number, &["online", "2.0", "good"]));
        assert_eq!(lab.node(number).boots(), 2);
    }
    assert_eq!(lab.most_down(), 1);
}
