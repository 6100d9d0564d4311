//! Every error code has a test: a run of the command line reaches it, or a list names the reason why none does, and the test
//! that reaches it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use qstage::Error;

const WRITE_FAULTS: &str = "a_failed_sync_or_write_ends_it_and_the_disk_still_selects";
const LOST_WRITES: &str = "a_write_that_was_acknowledged_and_lost_is_found";
/// Code, why no command line brings it about on a sound machine, and the file and name of the test that does.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    (
        "CONTAINER_START",
        "takes a runtime that fails at the right moment",
        "src/container/tests.rs",
        "one_failure_anywhere_leaves_a_service",
    ),
    (
        "SWAP_BACK",
        "takes a runtime that fails twice at the right moments",
        "src/container/tests.rs",
        "one_failure_anywhere_leaves_a_service",
    ),
    (
        "CONTAINER_STOP",
        "takes a process that survives SIGKILL",
        "src/container/tests.rs",
        "a_failure_to_start_or_stop_is_reported",
    ),
    (
        "NEEDS_REBOOT",
        "commit sees it first and commits for the reboot",
        "src/container/tests.rs",
        "a_platform_upgrade_is_no_swap",
    ),
    (
        "NO_DISK",
        "a machine whose disks can be counted on is made by the test",
        "tests/cli/select.rs",
        "the_disk_is_found_by_its_partitions",
    ),
    (
        "CLUSTER_UPGRADE",
        "takes several nodes of which one fails",
        "tests/cluster/nodes.rs",
        "a_complete_upgrade_and_a_node_that_falls_back",
    ),
    (
        "CLUSTER_STORE",
        "takes an etcd that refuses or is gone",
        "tests/cluster/contract.rs",
        "certificates_and_users",
    ),
    (
        "HOOK",
        "takes a member of a cluster in its turn",
        "src/service/cluster/hooks.rs",
        "a_hook_that_fails_is_named_with_its_last_words",
    ),
    (
        "CLUSTER_DATA",
        "takes an etcd with garbage in a key",
        "tests/cluster/refusals.rs",
        "who_does_not_belong",
    ),
    (
        "CLUSTER_RESTORED",
        "takes an etcd that was restored",
        "tests/cluster/refusals.rs",
        "an_etcd_that_is_full_or_has_forgotten",
    ),
    (
        "CLUSTER_VERDICT",
        "takes a member of a cluster in an upgrade",
        "tests/cluster/nodes.rs",
        "a_complete_upgrade_and_a_node_that_falls_back",
    ),
    (
        "SERVICE_BUSY",
        "takes more requests at a time than the service has places for",
        "src/service/owner/order.rs",
        "a_request_without_a_place_is_not_an_upgrade",
    ),
    ("CLUSTER_MEMBER", "takes a member of a cluster", "tests/cluster/refusals.rs", "who_does_not_belong"),
    ("ELSEWHERE_NODE", "takes a cluster of two", "tests/cluster/refusals.rs", "who_does_not_belong"),
    ("MEMBERSHIP", "takes two machines with one number", "tests/cluster/refusals.rs", "who_does_not_belong"),
    (
        "COMMAND",
        "takes a command of the configuration that fails",
        "src/service/owner/hooks.rs",
        "a_failing_command_is_told_with_its_words",
    ),
    (
        "REMOTE",
        "a service of our own version knows all codes",
        "src/error/mod.rs",
        "a_remote_failure_keeps_its_code",
    ),
    (
        "INTERNAL",
        "a defect of the caller; whoever finds a command line for it has found a defect of ours",
        "tests/cli/errors/elsewhere.rs",
        "a_switch_that_would_move_partitions",
    ),
    (
        "UNALIGNED",
        "a table counts in sectors, so only a caller of the library can name a place between two",
        "tests/disk/local.rs",
        "a_window_lies_inside_the_disk_on_whole_sectors",
    ),
    (
        "MBR_DISK",
        "takes a disk with another kind of table",
        "tests/disk/gpt_cuts.rs",
        "what_is_no_gpt_is_told_apart_from_a_lost_one",
    ),
    (
        "TABLE_SECTOR_SIZE",
        "takes an image of a disk with other sectors",
        "tests/disk/gpt_foreign.rs",
        "tables_for_other_disks_are_refused_by_what_they_are",
    ),
    (
        "TABLE_LARGER_DISK",
        "takes an image of a larger disk",
        "tests/disk/gpt_foreign.rs",
        "tables_for_other_disks_are_refused_by_what_they_are",
    ),
    (
        "TABLE_DOUBTFUL",
        "takes a disk with a stranger's backup and no primary",
        "tests/disk/gpt_foreign.rs",
        "the_backup_of_another_disk_never_speaks",
    ),
    (
        "TABLE_IGNORED",
        "takes a table that cgpt has marked",
        "tests/disk/gpt_foreign.rs",
        "a_lone_backup_needs_evidence",
    ),
    (
        "TABLE_OCCUPIED",
        "takes a disk whose table cannot be repaired for what lies there",
        "tests/disk/gpt_foreign.rs",
        "a_backup_place_that_is_taken_is_refused",
    ),
    (
        "TABLE_UNSAFE",
        "takes a disk without room and without backup",
        "tests/disk/gpt_foreign.rs",
        "a_loader_in_the_array_survives_repair_and_every_switch",
    ),
    (
        "READ_BACK",
        "takes a disk that acknowledges a write and forgets it",
        "tests/cli/errors/elsewhere.rs",
        "a_write_that_the_disk_lost_is_found_by_reading_back",
    ),
    (
        "WRITE",
        "takes a disk that refuses a write at the right moment",
        "tests/disk/gpt_faults.rs",
        WRITE_FAULTS,
    ),
    (
        "SYNC",
        "takes a disk that refuses a flush at the right moment",
        "tests/disk/gpt_faults.rs",
        WRITE_FAULTS,
    ),
    ("GPT_VERIFY", "takes a disk that loses a write to the table", "tests/disk/gpt_faults.rs", LOST_WRITES),
];

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let (dirs, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    dirs.iter().flat_map(|dir| sources(dir)).chain(files).collect()
}

#[test]
fn every_code_is_reached_by_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: String = sources(&root.join("tests"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|ext| ext == "rs") && drives_the_program(path))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    let known: BTreeSet<&str> =
        Error::ALL.iter().map(|(code, _)| code.trim_start_matches("UPGRADE_ERROR_")).collect();
    for &(code, why, file, test) in ELSEWHERE {
        assert!(known.contains(code), "{code} is no code");
        assert!(why.len() > 20, "{code}: say why");
        let text = fs::read_to_string(root.join(file)).unwrap();
        let (_, body) =
            text.split_once(&format!("fn {test}()")).unwrap_or_else(|| panic!("{file} has no test {test}"));
        let body = body.split("\n#[test]\n").next().unwrap();
        // The variant is the code in another case.
        let variant: String = code.split('_').map(|w| w[..1].to_owned() + &w[1..].to_lowercase()).collect();
        assert!(
            body.contains(&format!("Error::{variant}")) || body.contains(&format!("UPGRADE_ERROR_{code}")),
            "{file}: {test} does not look for {code}"
        );
        assert!(!reached(&tests, code), "{code} is reached from the command line: take it from the table");
    }
    let missing: Vec<_> = known
        .iter()
        .filter(|code| !reached(&tests, code) && !ELSEWHERE.iter().any(|row| row.0 == **code))
        .collect();
    assert!(missing.is_empty(), "no test reaches {missing:?}");
}

/// Tests of the command line, and neither this table nor the tests that it names.
fn drives_the_program(path: &Path) -> bool {
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
    let text = path.to_string_lossy();
    [
        "/cli/",
        "/service/",
        "/container/",
        "/surroundings",
        "/interrupted",
        "/loop_devices",
        "/bundle/tools",
        "/server/",
        "/containers/",
    ]
    .iter()
    .any(|name| text.contains(name))
        && !["coverage.rs", "elsewhere.rs"].iter().any(|name| text.ends_with(name))
}

/// Whether a test of the command line expects the code: `.bad("CODE")`, or in a table as `"CODE"`, or in full.
fn reached(tests: &str, code: &str) -> bool {
    tests.contains(&format!("\"{code}\"")) || tests.contains(&format!("UPGRADE_ERROR_{code}\""))
}
