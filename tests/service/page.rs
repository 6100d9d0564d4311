//! The page at `/`, as a user of a browser has it: headless Chromium opens it and operates it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::harness::browser::Browser;
use crate::harness::page::{self, ENTER, FAULTS, PLATFORM, SOFTWARE, asks};
use crate::harness::server::{Bench, QSTAGE, Server, run};

/// A name that is a program, if a browser takes it as HTML.
const HOSTILE: &str = "<img src=x onerror=\"document.title='owned'\">";
const TAB: &str = "\u{e004}";
const ESCAPE: &str = "\u{e00c}";

/// A service with a token for writing, "secret", and software that is restarted by a command.
fn service() -> (Bench, Server) {
    service_at(None)
}

/// The same with a limit of the write rate.
fn service_at(rate: Option<&str>) -> (Bench, Server) {
    let bench = Bench::new(None);
    fs::write(bench.path("secret"), "secret").unwrap();
    let hash = run(Command::new("sha256sum").arg(bench.path("secret")));
    fs::write(bench.path("tokens"), format!("ops write {}\n", &hash[..64])).unwrap();
    let tokens = bench.path("tokens");
    bench.configure(rate, &format!("tokens = {tokens:?}\nsoftware_restart_command = [\"true\"]\n"));
    let server = bench.serve();
    (bench, server)
}

/// The page, opened and filled.
fn open(server: &Server) -> Option<Browser> {
    let browser = Browser::start()?;
    browser.open(&format!("https://localhost:{}/", server.address.rsplit(':').next().unwrap()));
    browser.until_text("#runs", "Demo 1.0 runs");
    browser.until_text("#link", "live");
    browser.until_text("#slots", "platform a");
    Some(browser)
}

/// Takes a picture, for people who changed the page: it stays if QSTAGE_TEST_PICTURES names a directory.
fn pictured(browser: &Browser, bench: &Bench, name: &str) {
    let kept =
        std::env::var_os("QSTAGE_TEST_PICTURES").map(|directory| std::path::Path::new(&directory).join(name));
    browser.picture(&kept.unwrap_or_else(|| bench.path(name)));
}

#[test]
fn without_a_token_the_page_only_shows() {
    let (bench, server) = service_at(Some("1M"));
    let Some(browser) = open(&server) else { return };
    let page = browser.text("body");
    for part in ["Idle", "Read-only", "Demo 1.0", "boots next", "software b", "you are local 127.0.0.1"] {
        assert!(page.to_lowercase().contains(&part.to_lowercase()), "no '{part}':\n{page}");
    }
    assert!(!page.contains("Prepare…") && !page.contains("Roll back…"), "{page}");
    assert_eq!(browser.run("return document.querySelector('#cluster').hidden"), json!(true));
    // What others do appears by itself.
    server.prepare(&bench.text("soft.qimg"), false);
    browser.until("(({ value }) => value >= 1 && value <= 99)(document.querySelector('#progress'))");
    let bar = "const [bar, percent] = ['#progress', '#percent'].map((css) => document.querySelector(css)); \
         return bar.checkVisibility() && percent.innerText === `${bar.value} %`";
    assert_eq!(browser.run(bar), json!(true), "the bar is shown, with its figure");
    browser.until_text("#state", "Prepared 1.5 from");
    browser.until_text("#history", "prepare");
    // An unknown token is refused, and not tried again and again.
    browser.enter("#token", "wrong");
    browser.keys(&[ENTER], false);
    browser.until_text("#link", "refused: the token is not known");
    let refusals = |browser: &Browser| browser.console().iter().filter(|line| line.contains("401")).count();
    refusals(&browser);
    // The last of those that it sent at once may come late.
    let is_quiet = || {
        std::thread::sleep(std::time::Duration::from_millis(2500));
        refusals(&browser) == 0
    };
    assert!((0..4).any(|_| is_quiet()), "it asks on");
    browser.click("#forget");
    browser.until_text("#link", "live");
    assert_eq!(browser.console(), [""; 0], "errors, or breaches of the policy");
    // A breach would have been seen.
    browser.run("document.body.setAttribute('style', 'color: red'); return 0");
    let breach = browser.console().join("\n");
    assert!(
        breach.contains("Content Security Policy") || breach.contains("content security policy"),
        "{breach}"
    );
}

/// An upgrade of the software, by keyboard, whose bundle is named by an attacker.
#[test]
fn with_a_token_the_page_upgrades_and_takes_no_name_for_a_program() {
    let (bench, server) = service();
    let name = format!("{}.qimg", HOSTILE.replace('/', ""));
    let mut pack = Command::new(QSTAGE);
    pack.args(["pack", "--level", "1", "--version", "1.5", "--product", HOSTILE, "--key"])
        .arg(bench.path("key"));
    pack.arg("--platform").arg(bench.path("p1")).arg("--software").arg(bench.path("s2"));
    run(pack.arg("-o").arg(bench.path(&name)));
    let Some(browser) = open(&server) else { return };
    page::enter_token(&browser, "ops");
    browser.enter("#path", &bench.text(&name));
    // Another product is refused: there is nothing to confirm.
    browser.keys(&[ENTER], false);
    browser.until("document.querySelector('#ask').open");
    browser.until_text("#ask-obstacles", "onerror");
    assert_eq!(browser.run("return document.querySelector('#ask-yes').disabled"), json!(true));
    browser.keys(&[ESCAPE], false);
    browser.until("!document.querySelector('#ask').open && !document.querySelector('#verify').disabled");
    browser.click("#actions summary");
    browser.click("#override");
    browser.click("#verify");
    browser.until_text("#answer", "The signature is valid: <img src=x onerror=");
    let answer = browser.text("#answer");
    assert!(answer.contains(&format!("1.5, {SOFTWARE}. Demo 1.0 runs now.")), "{answer}");
    browser.click("#prepare");
    let new = format!("{HOSTILE} 1.5");
    asks(&browser, "Prepare", "Demo 1.0", &new, SOFTWARE);
    let asked = browser.text("#ask");
    for part in
        ["Runs now", "Demo 1.0", "New", HOSTILE, "1.5", "software only, without a reboot", "to software_b"]
    {
        assert!(asked.contains(part), "no '{part}':\n{asked}");
    }
    assert!(!asked.contains("Rolling"), "software is not rebooted:\n{asked}");
    // The focus is on "Back"; the button before it confirms.
    browser.keys(&[TAB], true);
    browser.keys(&[ENTER], false);
    browser.until_text("#state", "Prepared 1.5");
    server.reach("PREPARED");
    browser.until("!document.querySelector('#commit').disabled");
    browser.click("#commit");
    asks(&browser, "Commit", "Demo 1.0", "1.5", SOFTWARE);
    let asked = browser.text("#ask");
    assert!(!asked.contains("Rolling"), "{asked}");
    assert_eq!(server.state(), "PREPARED", "not before it is confirmed");
    browser.click("#ask-yes");
    browser.until_text("#state", "Committed");
    server.reach("COMMITTED");
    browser.until_text("#runs", &format!("{HOSTILE} 1.5 runs"));
    browser.until_text("#slots", HOSTILE);
    browser.until_text("#history", "commit");
    assert_eq!(
        browser.run("return document.querySelectorAll('img, script:not([type=module])').length"),
        json!(0)
    );
    assert!(
        browser.run("return document.title").as_str().unwrap().starts_with("<img"),
        "no program of it ran"
    );
    // And back: the dialog has what the service would select.
    browser.until("!document.querySelector('#roll-back').disabled");
    browser.click("#roll-back");
    asks(&browser, "Roll back", &new, "software a: Demo 1.0", SOFTWARE);
    browser.click("#ask-yes");
    browser.until_text("#answer", "rolled back to software_a");
    browser.until_text("#runs", "Demo 1.0 runs");
    assert_eq!(browser.console(), [""; 0], "errors, or breaches of the policy");
}

/// Columns were so narrow beside a long message that "good" stood in two lines. The scripts of the page get nine nodes, messages
/// without a space, and a failed reboot; both judgements are of one moment, since the page looks at its service meanwhile.
#[test]
fn nine_nodes_and_long_messages_are_readable_on_every_screen() {
    let (bench, server) = service();
    let Some(browser) = open(&server) else { return };
    let path = "/var/lib/appliance/clients/without-a-space/".repeat(3);
    let long = format!("node 7: the hook 'drain' ended with exit status: 3: still 3 clients, see {path}");
    let settings =
        json!({"install_path": path, "target_version": "7.4.3", "upgrade_type": "SOFTWARE_AND_PLATFORM"});
    let v3 =
        json!({"state": "UPGRADE_STATE_REBOOTING", "progress": 45, "settings": settings, "error_info": long});
    let node = |id: u32| {
        let failed = id == 7;
        json!({"id": id, "node_name": format!("storage-{id}.rack-a.example.org"), "version": "7.4.3-rc.1+build.20261126",
            "node_status": if failed { "offline" } else { "online" }, "standing": if failed { "away" } else { "good" },
            "doing": "waits for its turn", "progress": null, "reason": if failed { long.as_str() } else { "" }})
    };
    let nodes: Vec<_> = (1..=9).map(node).collect();
    let cluster = json!({"node_id": 3, "state": "ACTIVE", "stage": "rebooting", "waits_for": long, "connected": false,
        "problem": long, "nodes": nodes});
    let slot = |slot: &str| {
        json!({"group": "platform", "slot": slot, "state": "good", "product": "storage-box", "version": "7.1.1",
            "unsigned": true, "booted": true, "boots_next": true, "reason": long})
    };
    let slots =
        json!({"disk": path, "table": "sound", "boot_flag": "priority", "slots": [slot("a"), slot("b")]});
    let event = json!({"time": "2026-11-26T22:13:09Z", "verb": "mark-good", "message": long,
        "code": "UPGRADE_ERROR_CONTAINER_UNHEALTHY"});
    let reboot = json!({"state": "REBOOT_PAUSED_DUE_TO_ERROR", "rolling": true, "total_node_count": 9,
        "rebooted_node_count": 6, "error_message": long});
    let own = json!({"details": long, "is_blocked": true, "blocked_reason": long});
    let script = format!(
        "return import('/page/view.js').then((view) => {{
            view.status({v3}); view.detailed({own}); view.cluster({cluster}); view.reboot({reboot});
            view.slots({slots}); view.history([{event}, {event}], true);
            for (const id of ['actions', 'reboot-actions']) document.getElementById(id).hidden = false;
            {FAULTS}
        }});"
    );
    for scheme in ["light", "dark"] {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", &feature);
        for width in [1600, 800, 641, 360] {
            let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
            browser.devtools("Emulation.setDeviceMetricsOverride", &size);
            assert_eq!(browser.run(&script), json!([]), "{scheme}, {width} px");
            pictured(&browser, &bench, &format!("long-{scheme}-{width}.png"));
        }
    }
}

/// By the Tab key alone every field and button is reached, in the order of the page, and shows that it has the focus.
#[test]
fn the_tab_key_reaches_everything() {
    let (_bench, server) = service();
    let Some(browser) = open(&server) else { return };
    page::enter_token(&browser, "ops");
    browser.run("document.activeElement.blur(); document.querySelector('.skip').focus(); return 0");
    let wanted = "return [...document.querySelectorAll('a[href], input, button, summary')]
        .filter((node) => node.checkVisibility() && !node.disabled).map((node) => node.id || node.className || node.innerText)";
    let wanted = browser.run(wanted);
    let mut reached = Vec::new();
    for _ in wanted.as_array().unwrap() {
        let now = "const node = document.activeElement; const { outlineStyle, outlineWidth } = getComputedStyle(node);
            return (outlineStyle === 'solid' && outlineWidth === '3px' ? '' : 'unseen: ') + (node.id || node.className || node.innerText)";
        reached.push(browser.run(now));
        browser.keys(&[TAB], false);
    }
    assert_eq!(json!(reached), wanted);
    assert!(reached.len() >= 6, "{reached:?}");
}

/// A platform asks how the nodes reboot, which a single machine cannot choose; a cancel discards it.
#[test]
fn a_platform_upgrade_asks_and_every_screen_can_be_read() {
    let (bench, server) = service();
    let Some(browser) = open(&server) else { return };
    page::enter_token(&browser, "ops");
    browser.enter("#path", &bench.text("v2.qimg"));
    browser.click("#prepare");
    asks(&browser, "Prepare", "Demo 1.0", "Demo 2.0", PLATFORM);
    browser.click("#ask-yes");
    browser.until_text("#state", "Prepared 2.0");
    browser.until("!document.querySelector('#commit').disabled");
    browser.click("#commit");
    asks(&browser, "Commit", "Demo 1.0", "2.0", PLATFORM);
    let asked = browser.text("#ask");
    assert!(
        asked.contains("Complete: all nodes") && asked.contains("A rolling reboot needs a cluster"),
        "{asked}"
    );
    assert_eq!(browser.run("return document.querySelector('#mode-rolling').disabled"), json!(true));
    for scheme in ["light", "dark"] {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", &feature);
        for width in [1000, 360] {
            let size = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
            browser.devtools("Emulation.setDeviceMetricsOverride", &size);
            for dialog in [true, false] {
                if !dialog {
                    browser.run("document.querySelector('#ask').close(); return 0");
                }
                let name = if dialog { "dialog" } else { "page" };
                pictured(&browser, &bench, &format!("{name}-{scheme}-{width}.png"));
                assert_eq!(browser.run(FAULTS), json!([]), "{name}, {scheme}, {width} px");
                if !dialog {
                    browser.run("document.querySelector('#ask').showModal(); return 0");
                }
            }
        }
    }
    browser.click("#ask-no");
    browser.until("!document.querySelector('#cancel').disabled");
    browser.click("#cancel");
    browser.until_text("#ask", "Discards the prepared bundle");
    asks(&browser, "Cancel the upgrade", "Demo 1.0", "2.0", PLATFORM);
    browser.click("#ask-yes");
    browser.until_text("#state", "Idle");
    assert_eq!(server.slot("platform", "b")["state"], "empty");
}

/// The page reaches a browser without a token on another machine too, but under the names of this machine only.
#[test]
fn the_page_is_given_to_every_caller_and_shows_nothing_by_itself() {
    let (_bench, server) = service();
    let curl = |args: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-sk", "--noproxy", "*", "-D", "-"]).args(args);
        run(curl.arg(format!("https://{}{path}", server.address)))
    };
    let page = curl(&[], "/");
    let head = page.split("\r\n\r\n").next().unwrap().to_lowercase();
    for line in [
        "http/1.1 200",
        "content-security-policy: default-src 'none'; script-src 'self';",
        "cache-control: no-store",
        "x-content-type-options: nosniff",
        "x-frame-options: deny",
        "content-type: text/html",
    ] {
        assert!(head.contains(line), "no '{line}':\n{head}");
    }
    assert!(!head.contains("unsafe") && !page.contains("Demo"), "{page}");
    assert!(curl(&["-H", "Authorization: Bearer wrong"], "/").starts_with("HTTP/1.1 200"));
    assert!(curl(&["-H", "Host: evil.example"], "/").starts_with("HTTP/1.1 421"));
    assert!(curl(&["-X", "POST"], "/").starts_with("HTTP/1.1 403"));
    assert!(curl(&[], "/page/none.js").starts_with("HTTP/1.1 404"));
}
