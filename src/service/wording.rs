//! Messages in the terms of the API. The engine names verbs and flags of the command line as the remedy; a caller over REST
//! gets the corresponding calls.

/// The term of the command line, and the corresponding call.
const WORDS: [(&str, &str); 19] = [
    ("'qstage prepare'", "POST /v2/upgrade/prepare"),
    ("'qstage commit'", "POST /v2/upgrade/commit"),
    ("'qstage cancel'", "POST /v1/qstage/cancel"),
    ("'qstage roll-back'", "POST /v1/qstage/roll-back"),
    ("'qstage mark-good --slot a' (or b)", "POST /v1/qstage/mark-good with a slot"),
    ("'qstage mark-good --slot'", "POST /v1/qstage/mark-good with a slot"),
    ("'qstage mark-good'", "POST /v1/qstage/mark-good"),
    ("'qstage slots'", "GET /v1/qstage/slots"),
    ("'qstage cluster status'", "GET /v1/qstage/cluster"),
    ("'qstage cluster leave'", "POST /v1/qstage/cluster/leave"),
    ("'qstage cluster join'", "POST /v1/qstage/cluster/join"),
    ("'qstage container status'", "GET /v1/qstage/status"),
    ("; --allow-downgrade overrides", "; override_compatibility_check=true overrides"),
    ("; --allow-epoch-rollback overrides", "; only root on the machine itself can override"),
    ("try it again with --retry", "try it again by POST /v2/upgrade/prepare?retry=true"),
    (
        "(--max-download, or 'max_download' in [network])",
        "('max_download' in [network] of its configuration)",
    ),
    ("(a URL: --no-delta)", "(a URL: 'deltas = false' in [network] of its configuration)"),
    ("(--input-timeout, or 'input_timeout' in the configuration)", "('input_timeout' in its configuration)"),
    ("or --efivars DIR", "or 'efivars' in its configuration"),
];

/// The message with calls of the API instead of verbs and flags.
pub(super) fn by_api(message: &str) -> String {
    WORDS.iter().fold(message.to_owned(), |text, (word, call)| text.replace(word, call))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Terms that stay, and why: no request could express them.
    const KEPT: [(&str, &str); 21] = [
        ("--attributes", "a flag of sgdisk"),
        ("--mbrtogpt", "a flag of sgdisk"),
        ("--sector-size", "how the service was started"),
        ("'qstage repair --from backup'", "an operator has to inspect the disk first"),
        ("(--bundle)", "a prepare on the machine itself"),
        ("--assume-unused", "how the service was started"),
        ("--partition-guid", "a flag of sgdisk"),
        ("--booted", "how the service was started"),
        ("--disk", "how the service was started"),
        ("--efivars DIR", "how the service was started"),
        (
            "'qstage init {disk} --keep-table --bundle FILE'",
            "nothing boots: it takes an operator at the machine",
        ),
        ("--force", "init"),
        ("--trial kexec", "a commit on the machine itself"),
        ("--load-backup", "a flag of sgdisk"),
        ("--change-name", "a flag of sgdisk"),
        ("--show", "a flag of losetup"),
        ("--repeat", "bench"),
        ("'qstage init'", "no service without a disk that is laid out"),
        ("'qstage sign'", "where bundles are made"),
        ("--service", "a client that does not reach the service"),
        ("'qstage token new'", "who has no token cannot make one by a request"),
    ];

    /// Every message, by the texts that it is made of.
    #[test]
    fn no_message_sends_a_client_to_the_command_line() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut texts = Vec::new();
        // Not `explain`: it is printed by the command line alone.
        for file in ["engine/switch.rs", "error/list.rs", "error/mod.rs", "error/remedy.rs"] {
            texts.push(std::fs::read_to_string(root.join(file)).unwrap());
        }
        let (mut seen, mut left) = (0, Vec::new());
        for line in texts.iter().flat_map(|text| text.lines()) {
            if line.trim_start().starts_with("//") || line.contains("#[") {
                continue;
            }
            let command = |line: &str| line.matches("'qstage ").count() + line.matches(" --").count();
            let before = command(line);
            let mut after = by_api(line);
            seen += usize::from(before > command(&after));
            for (kept, _) in KEPT {
                after = after.replace(kept, "");
            }
            if after.contains("'qstage ") || after.contains(" --") || after.contains("(--") {
                left.push(after.trim().to_owned());
            }
        }
        assert!(seen > 8, "only {seen} messages name a verb: they are not found any more");
        assert!(left.is_empty(), "{left:#?}");
        assert_eq!(
            by_api("older; --allow-downgrade overrides"),
            "older; override_compatibility_check=true overrides"
        );
    }
}
