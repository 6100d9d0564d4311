//! Every code that is shown can be looked up, as it was shown.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests are tests")]

use std::process::{Command, Output};

use qstage::Error;
use qstage::error::Class;

fn qstage(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qstage")).args(args).output().unwrap()
}

fn text(args: &[&str]) -> String {
    let output = qstage(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_a_message_ends_with_is_explained() {
    let failed = qstage(&["slots", "--disk", "/nonexistent/disk"]);
    let message = String::from_utf8(failed.stderr).unwrap();
    let code = message.trim().rsplit(' ').next().unwrap();
    let told = text(&["explain", code]);
    assert!(told.starts_with("UPGRADE_ERROR_OPEN\n"), "{told}");
    assert!(told.contains("class    io, exit code 7: reading or writing failed"), "{told}");
    let json: serde_json::Value = serde_json::from_str(&text(&["explain", "on-trial", "--json"])).unwrap();
    assert_eq!((&json["code"], &json["exit_code"]), (&"UPGRADE_ERROR_ON_TRIAL".into(), &5.into()));
    assert!(json["message"].as_str().unwrap().starts_with("on trial: {partitions}"), "{json}");
}

#[test]
fn all_codes_are_listed_and_each_is_in_the_manual() {
    let all: Vec<serde_json::Value> = serde_json::from_str(&text(&["explain", "--json"])).unwrap();
    let manual = include_str!("../../src/manual/errors.md");
    assert_eq!(all.len(), qstage::Error::ALL.len());
    for one in all {
        let code = one["code"].as_str().unwrap();
        assert!(manual.contains(&format!("`{code}`")), "{code}");
    }
    let refused = text(&["explain", "5"]);
    assert!(refused.contains("UPGRADE_ERROR_DOWNGRADE ") && !refused.contains("UPGRADE_ERROR_CONFIG "));
}

/// The codes INTERNAL and INTERRUPTED are named as their classes: for both the table of the class was shown.
#[test]
fn a_whole_code_is_explained_and_not_its_class() {
    let classes = Class::ALL.map(Class::word);
    for &(code, _) in Error::ALL {
        let short = code.strip_prefix("UPGRADE_ERROR_").unwrap();
        let bracketed = format!("[{code}]");
        for asked in [code, &bracketed, &code.to_lowercase(), short] {
            if asked == short && classes.contains(&&*short.to_lowercase()) {
                continue;
            }
            let found = qstage::error::explain(asked);
            assert_eq!(found.iter().map(|one| one.code).collect::<Vec<_>>(), [code], "{asked}");
        }
    }
    for class in [Class::Internal, Class::Interrupted] {
        let code = format!("UPGRADE_ERROR_{}", class.word().to_uppercase());
        let told = text(&["explain", &code]);
        assert!(told.starts_with(&format!("{code}\nmeaning")), "{told}");
    }
    assert!(text(&["explain", "interrupted"]).contains("CODE"), "a class is a table");
}

#[test]
fn a_code_that_is_none_is_a_mistake_of_the_command_line() {
    let failed = qstage(&["explain", "ON_TRAIL"]);
    assert_eq!(failed.status.code(), Some(2));
    let message = String::from_utf8(failed.stderr).unwrap();
    assert!(message.contains("did you mean ON_TRIAL?"), "{message}");
}
