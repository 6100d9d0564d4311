//! A manual page of section 1: what clap's definition has, and the sections that it cannot have: exit status, environment,
//! files, examples. Examples are parsed by a test, so that none outlives its option.

use std::io;

use clap::Command;
use clap_mangen::Man;
use roff::{Roff, bold, italic, roman};

use super::environment;
use crate::error::Class;

/// Examples of a verb: its words, and for each example a command line and its purpose.
type Examples = (&'static str, &'static [(&'static str, &'static str)]);

/// Examples by verb; the empty words are the program itself.
pub(super) const EXAMPLES: &[Examples] = &[
    (
        "",
        &[
            ("qstage plan x.qimg", "Shows what an upgrade would do, and what forbids it."),
            ("qstage prepare x.qimg && qstage commit && reboot", "Upgrades the platform."),
            ("qstage mark-good", "Ends the trial when the new slot runs well."),
        ],
    ),
    (
        "bench",
        &[
            ("qstage bench", "Measures on a scratch file in the working directory."),
            (
                "qstage bench --size 4G --scratch /srv --json",
                "With an image of 4 GiB on another file system.",
            ),
        ],
    ),
    ("cancel", &[("qstage cancel", "Discards what was prepared and not started.")]),
    (
        "cluster",
        &[
            ("qstage cluster join", "Makes this node a member."),
            ("qstage cluster status", "Shows the nodes and what each of them runs."),
        ],
    ),
    (
        "cluster-abandon",
        &[(
            "qstage cluster pause && qstage cluster abandon",
            "Ends a rolling upgrade, and returns to the previous release.",
        )],
    ),
    (
        "cluster-join",
        &[("qstage cluster join", "Makes this node a member; the first one creates the cluster.")],
    ),
    (
        "cluster-leave",
        &[
            ("qstage cluster leave", "Ends the membership of this node."),
            ("qstage cluster leave 3", "Removes node 3, which is gone for good."),
        ],
    ),
    (
        "cluster-pause",
        &[("qstage cluster pause", "Lets the nodes that restart finish, and restarts no other one.")],
    ),
    ("cluster-resume", &[("qstage cluster resume", "Continues, and tries the node that failed once more.")]),
    (
        "cluster-status",
        &[
            ("qstage cluster status", "Shows the nodes and what each of them runs."),
            ("qstage cluster status --json", "The same for programs."),
        ],
    ),
    (
        "cluster-take-back",
        &[(
            "qstage cluster take-back 3 && qstage cluster resume",
            "Lets the other nodes continue, after node 3 was found to be switched off.",
        )],
    ),
    (
        "commit",
        &[
            ("qstage commit --dry-run", "Prints the writes of the switch."),
            ("qstage commit && reboot", "Switches, and starts the new slot on trial."),
        ],
    ),
    ("completions", &[("qstage completions bash > /etc/bash_completion.d/qstage", "For all users of bash.")]),
    (
        "container",
        &[
            ("qstage container status", "Shows what runs, its health and what it may reach."),
            ("qstage container start --dry-run", "Prints what a start would do."),
        ],
    ),
    ("container-restart", &[("qstage container restart", "Starts the same slot again.")]),
    ("container-start", &[("qstage container start", "Starts the selected slot, as at a boot.")]),
    ("container-stop", &[("qstage container stop --dry-run", "Shows which processes would be stopped.")]),
    (
        "container-status",
        &[("qstage container status", "Shows what runs, its health and what it may reach.")],
    ),
    ("delta", &[("qstage delta v1.qimg v2.qimg -o v2.from-v1.qdelta", "For machines that run v1.")]),
    (
        "doctor",
        &[
            ("qstage doctor", "Checks this machine; the exit code is 9 if something has to be done."),
            ("qstage doctor --bundle support.tar", "Makes an archive for support, without secrets."),
            ("qstage doctor --disk disk.img --trust allowed_signers", "Checks a disk image."),
        ],
    ),
    (
        "explain",
        &[
            ("qstage explain ON_TRIAL", "Explains an error code."),
            ("qstage explain 5", "Lists the codes with an exit code."),
        ],
    ),
    (
        "firmware",
        &[
            ("qstage firmware list --slot a", "Shows the blobs of slot a."),
            ("qstage firmware extract --slot b bios.bin -o bios.bin", "Writes one of slot b into a file."),
        ],
    ),
    (
        "firmware-extract",
        &[("qstage firmware extract --slot b bios.bin -o bios.bin", "Writes a blob of slot b into a file.")],
    ),
    (
        "firmware-list",
        &[("qstage firmware list --slot a --json", "Names, sizes and digests of the blobs of slot a.")],
    ),
    ("health", &[("qstage health --timeout 60", "Runs the checks, each for a minute at most.")]),
    ("history", &[("qstage history --json", "The log of all changes as JSON.")]),
    (
        "init",
        &[
            (
                "qstage init disk.img --slot-size 2G --software-size 512M --bundle x.qimg",
                "Makes a disk image with a release in slot a.",
            ),
            (
                "qstage init /dev/sdX --keep-table --bundle x.qimg --slot both",
                "Installs into both slots of an existing table.",
            ),
        ],
    ),
    (
        "inspect",
        &[("qstage inspect x.qimg --trust allowed_signers", "Shows the content, and checks the signature.")],
    ),
    (
        "man",
        &[
            ("qstage man > qstage.1", "The page of the program."),
            ("qstage man /usr/local/share/man/man1", "The pages of all verbs."),
        ],
    ),
    ("mark-good", &[("qstage health && qstage mark-good", "Ends the trial if all checks pass.")]),
    (
        "pack",
        &[
            (
                "qstage pack --product gateway --version 1.4 --platform root.img --software app.img --key key -o x.qimg",
                "A bundle with platform and software.",
            ),
            (
                "qstage pack --product gateway --version 1.4.1 --needs-platform 1.4 --software app.img --key key -o y.qimg",
                "Software alone, for machines with platform 1.4.",
            ),
        ],
    ),
    (
        "plan",
        &[("qstage plan https://releases.example.org/x.qimg --json", "Reads the front of the bundle only.")],
    ),
    (
        "prepare",
        &[
            ("qstage prepare x.qimg", "From a file."),
            (
                "qstage prepare https://releases.example.org/x.qimg --max-rate 20M",
                "From a web server, at 20 MiB/s at most.",
            ),
            ("ssh build cat x.qimg | qstage prepare -", "From a pipe."),
        ],
    ),
    ("repair", &[("qstage repair --from backup --dry-run", "Shows what would be written.")]),
    ("roll-back", &[("qstage roll-back && reboot", "Returns to the other slot.")]),
    (
        "select",
        &[("qstage select --json", "Selects as qstage-select in an initramfs does, and counts a try.")],
    ),
    ("serve", &[("qstage serve --listen 0.0.0.0:8000", "Serves the network; changes need a token.")]),
    (
        "sign",
        &[
            ("qstage sign x.qimg --key new-key", "Adds the signature of a second key."),
            ("qstage sign x.qimg --signature manifest.json.sig", "Adds one that ssh-keygen made elsewhere."),
        ],
    ),
    ("slots", &[("qstage slots", "Shows what each slot holds, what runs and what boots next.")]),
    ("status", &[("qstage status --human", "The state of the upgrade for people.")]),
    (
        "token",
        &[
            ("(umask 077; qstage token new ops > token)", "Makes a token for the service."),
            ("qstage token revoke ops", "Ends its use."),
        ],
    ),
    ("token-list", &[("qstage token list --json", "Names and privileges, without the tokens.")]),
    (
        "token-new",
        &[(
            "(umask 077; qstage token new ops > token)",
            "Keeps the token in a file that only its owner reads.",
        )],
    ),
    ("token-revoke", &[("qstage token revoke ops", "From the next request on the token is refused.")]),
    ("upgrade", &[("qstage upgrade /upgrade/x.qimg --commit", "Through the service of this machine.")]),
    (
        "verify",
        &[
            ("qstage verify x.qimg", "Checks every byte of a bundle."),
            ("qstage verify --slot a", "Checks what is installed in slot a."),
        ],
    ),
    ("watch", &[("qstage watch", "Follows an upgrade of the service until it ends.")]),
];

/// Files of the program.
const FILES: [(&str, &str); 8] = [
    ("/etc/qstage/config.toml", "Configuration, see qstage.toml(5)."),
    ("/etc/qstage/allowed_signers", "Keys that may sign bundles, see ssh-keygen(1)."),
    ("/etc/qstage/health.d", "Health checks that end a trial."),
    ("/etc/qstage/tokens", "Hashes of the tokens of the service."),
    ("/run/qstage/service.sock", "Socket of the service."),
    ("/run/qstage-select.log", "Output of the selector at this boot."),
    ("/upgrade", "Bundles that callers of the service may name."),
    ("/var/lib/qstage", "Journal and certificate; it may be lost at any time."),
];

/// Environment variables, by the option that they are the default of.
const VARIABLES: [(&str, &str); 6] = [
    (environment::CONFIG, "--config"),
    (environment::DISK, "--disk"),
    (environment::STATE_DIR, "--state-dir"),
    (environment::TRUST, "--trust"),
    (environment::SERVICE, "--service"),
    (environment::TOKEN_FILE, "--token-file"),
];

/// The page of a verb, or of the program. `name`: its words joined by `-`, without "qstage".
///
/// # Errors
/// Those of the writer.
pub(super) fn render(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let is_program = name.is_empty();
    let title = if is_program { "qstage".to_owned() } else { format!("qstage-{name}") };
    let mut page = Vec::new();
    let man = Man::new(command.clone()).title(title).source(concat!("qstage ", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut more = Roff::new();
    exit_status(&mut more);
    if is_program {
        list(
            &mut more,
            "ENVIRONMENT",
            VARIABLES.map(|(name, option)| (name, format!("Default of {option}."))),
        );
        list(&mut more, "FILES", FILES.map(|(path, about)| (path, about.to_owned())));
    } else {
        more.control("SH", ["FILES"]).text([roman("See "), bold("qstage"), roman("(1).")]);
    }
    if let Some((_, examples)) = EXAMPLES.iter().find(|(verb, _)| *verb == name) {
        more.control("SH", ["EXAMPLES"]);
        for (line, about) in *examples {
            more.control("TP", []).text([bold(*line)]).text([roman(*about)]);
        }
    }
    more.control("SH", ["SEE ALSO"]);
    let others: &[&str] =
        if is_program { &["qstage.toml(5)", "ssh-keygen(1)"] } else { &["qstage(1)", "qstage.toml(5)"] };
    more.text([italic(others.join(", "))]);
    more.to_writer(&mut page)?;
    Ok(page)
}

fn list<const N: usize>(page: &mut Roff, heading: &str, entries: [(&str, String); N]) {
    page.control("SH", [heading]);
    for (name, about) in entries {
        page.control("TP", []).text([bold(name)]).text([roman(about)]);
    }
}

fn exit_status(page: &mut Roff) {
    page.control("SH", ["EXIT STATUS"]);
    page.control("TP", []).text([bold("0")]).text([roman("Done.")]);
    for class in Class::ALL {
        let about = format!("{}: {}.", class.word(), class.meaning());
        page.control("TP", []).text([bold(class.exit_code().to_string())]).text([roman(about)]);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::super::verb::Cli;
    use super::*;

    /// The command lines of a shell line that run this program.
    fn own(line: &str) -> Vec<Vec<String>> {
        let line = line.trim_start_matches('(').trim_end_matches(')');
        let commands = line.split(['|', ';']).flat_map(|part| part.split("&&"));
        commands
            .map(|command| {
                let words = command.split('>').next().unwrap_or_default().split_whitespace();
                words.map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|words| words.first().is_some_and(|word| word == "qstage"))
            .collect()
    }

    #[test]
    fn every_example_is_a_command_line() {
        for (verb, examples) in EXAMPLES {
            for (line, about) in *examples {
                let commands = own(line);
                assert!(!commands.is_empty() && about.ends_with('.'), "{verb}: {line}");
                for words in commands {
                    let parsed = Cli::command().try_get_matches_from(&words);
                    assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
                }
            }
        }
    }

    #[test]
    fn every_example_belongs_to_a_verb_and_every_verb_has_one() {
        fn names(command: &Command, path: &str, all: &mut Vec<String>) {
            for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
                let name = format!("{path}{}", verb.get_name());
                names(verb, &format!("{name}-"), all);
                all.push(name);
            }
        }
        let mut all = vec![String::new()];
        names(&Cli::command(), "", &mut all);
        for (verb, _) in EXAMPLES {
            assert!(all.iter().any(|name| name == verb), "{verb}");
        }
        for name in &all {
            assert!(EXAMPLES.iter().any(|(verb, _)| verb == name), "'{name}' has no example");
        }
    }
}
