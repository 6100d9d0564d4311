//! Examples of each verb, for its manual page. A test parses them, so that none outlives its option.

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
