//! A headless Chromium, driven by its chromedriver over the WebDriver protocol (W3C), which is JSON over plain HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::clock::HANG;
use super::load;
use super::ports::free_port;

/// Name under which an element is sent (WebDriver, 12.2).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The browser with one tab; the drop ends it.
pub(crate) struct Browser {
    driver: Child,
    port: u16,
    session: String,
    /// Profile and cache.
    _home: tempfile::TempDir,
}

impl Browser {
    /// `None` prints SKIPPED, and is a failure in CI.
    pub(crate) fn start() -> Option<Self> {
        let found = |name: &str| Path::new("/usr/bin").join(name).exists();
        if !found("chromium") || !found("chromedriver") {
            assert!(std::env::var_os("CI").is_none(), "CI has a browser");
            eprintln!("SKIPPED: needs chromium and chromium-driver, see scripts/test");
            return None;
        }
        let home = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let mut command = load::bound("chromedriver");
        command.arg(format!("--port={port}")).env("HOME", home.path()).env("TMPDIR", home.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // A group of its own, so that the processes of the browser end with it.
        let driver = command.process_group(0).spawn().unwrap();
        let mut browser = Self { driver, port, session: String::new(), _home: home };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < HANG, "chromedriver does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            "--window-size=1000,900",
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let session = browser.request("POST", "/session", &wanted);
        browser.session = session["sessionId"].as_str().unwrap_or_else(|| panic!("{session}")).to_owned();
        Some(browser)
    }

    fn try_request(&self, method: &str, path: &str, body: &Value) -> std::io::Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        )?;
        let mut answer = BufReader::new(stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            answer.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut text = vec![0; length];
        answer.read_exact(&mut text)?;
        let mut value: Value = serde_json::from_slice(&text).unwrap();
        Ok(value["value"].take())
    }

    fn request(&self, method: &str, path: &str, body: &Value) -> Value {
        let value = self.try_request(method, path, body).unwrap();
        assert!(value["error"].is_null(), "{method} {path}: {}: {}", value["error"], value["message"]);
        value
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.request("POST", &format!("/session/{}/{path}", self.session), body)
    }

    pub(crate) fn open(&self, url: &str) {
        self.command("url", &json!({"url": url}));
    }

    /// The result of a function body in the page.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({"script": script, "args": []}))
    }

    /// The visible text of an element, as a user reads it.
    pub(crate) fn text(&self, css: &str) -> String {
        let script =
            format!("const found = document.querySelector({css:?}); return found ? found.innerText : '';");
        self.run(&script).as_str().unwrap().to_owned()
    }

    /// Waits until an expression in the page is true.
    pub(crate) fn until(&self, expression: &str) {
        let begun = Instant::now();
        while self.run(&format!("return Boolean({expression})")) != json!(true) {
            let page = || self.text("body");
            assert!(begun.elapsed() < HANG, "not within {HANG:?}: {expression}\n{}", page());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until an element shows a text.
    pub(crate) fn until_text(&self, css: &str, part: &str) {
        self.until(&format!("document.querySelector({css:?})?.innerText.includes({part:?})"));
    }

    fn element(&self, css: &str) -> String {
        let found = self.command("element", &json!({"using": "css selector", "value": css}));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// Clicks where a user could: an element that is hidden, or covered by another one, is a failure.
    pub(crate) fn click(&self, css: &str) {
        self.command(&format!("element/{}/click", self.element(css)), &json!({}));
    }

    /// Types into an element; what it held goes.
    pub(crate) fn enter(&self, css: &str, text: &str) {
        let element = self.element(css);
        self.command(&format!("element/{element}/clear"), &json!({}));
        self.command(&format!("element/{element}/value"), &json!({"text": text}));
    }

    /// Presses keys one after another, wherever the focus is; `shift` is held meanwhile.
    pub(crate) fn keys(&self, keys: &[&str], shift: bool) {
        let key = |kind: &str, value: &str| json!({"type": kind, "value": value});
        let mut actions = Vec::new();
        actions.extend(shift.then(|| key("keyDown", "\u{e008}")));
        actions.extend(keys.iter().flat_map(|value| [key("keyDown", value), key("keyUp", value)]));
        actions.extend(shift.then(|| key("keyUp", "\u{e008}")));
        self.command("actions", &json!({"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}));
    }

    /// A command of the DevTools protocol.
    pub(crate) fn devtools(&self, command: &str, parameters: &Value) {
        self.command("goog/cdp/execute", &json!({"cmd": command, "params": parameters}));
    }

    /// The messages of the console since the last call: errors of scripts, refused requests, breaches of the policy.
    pub(crate) fn console(&self) -> Vec<String> {
        let log = self.command("se/log", &json!({"type": "browser"}));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }

    /// Stores a picture of what the window shows.
    pub(crate) fn picture(&self, file: &Path) {
        let encoded = self.request("GET", &format!("/session/{}/screenshot", self.session), &Value::Null);
        std::fs::write(file, Base64::decode_vec(encoded.as_str().unwrap()).unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser itself has a session of its own: only the driver can end it in order.
        let _ = self.try_request("DELETE", &format!("/session/{}", self.session), &Value::Null);
        let _ = killpg(Pid::from_raw(self.driver.id() as i32), Signal::SIGKILL);
        let _ = self.driver.wait();
    }
}
