//! Isolation of a container, and the parts of it that the configuration opens.
//!
//! Root in the container is an unprivileged user on the host: user namespace, no new privileges, few capabilities, few
//! system calls, no devices, read-only cgroups, a private network. A key of `[container]` opens each of them, and
//! [`Config::openings`] reports which are open. Several layers forbid the same on purpose: a hole in one is no way out.

use super::config::{Config, Network};
use super::isolation::{CAPABILITIES, Cgroups, Users};

/// Capabilities that systemd-nspawn(1) leaves by default (`--capability=`); `CAP_NET_ADMIN` only with a private network.
const OF_NSPAWN: [&str; 27] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_IPC_OWNER",
    "CAP_KILL",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_ADMIN",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TTY_CONFIG",
];

/// System calls that are forbidden in addition to nspawn's own list of permitted calls. Listed by name and not by the groups
/// of systemd.exec(5), since a call that is forbidden cannot be permitted again.
const FORBIDDEN: [(&str, &[&str]); 5] = [
    (
        "@mount",
        &[
            "chroot",
            "fsconfig",
            "fsmount",
            "fsopen",
            "fspick",
            "mount",
            "mount_setattr",
            "move_mount",
            "open_tree",
            "pivot_root",
            "umount",
            "umount2",
        ],
    ),
    ("@namespaces", &["setns", "unshare"]),
    ("@debug", &["kcmp", "pidfd_getfd", "process_vm_readv", "process_vm_writev", "ptrace"]),
    // Calls that bypass path lookup, or the filter itself.
    ("@handles", &["name_to_handle_at", "open_by_handle_at"]),
    ("@uring", &["io_uring_enter", "io_uring_register", "io_uring_setup"]),
];

impl Config {
    /// Options of nspawn for the isolation; `private`: in a user namespace.
    pub(super) fn boundary(&self, private: bool) -> Vec<String> {
        let mut options = Vec::new();
        if private {
            options.push("--private-users=pick".to_owned());
            options.push("--private-users-ownership=map".to_owned());
        }
        if !self.new_privileges {
            options.push("--no-new-privileges=yes".to_owned());
        }
        let kept = |name: &&&str| !self.capabilities.iter().any(|kept| kept == **name);
        let dropped: Vec<&str> = OF_NSPAWN.iter().filter(kept).copied().collect();
        options.push(format!("--drop-capability={}", dropped.join(",")));
        let added = self.capabilities.iter().filter(|name| !OF_NSPAWN.contains(&name.as_str()));
        options.extend(added.map(|name| format!("--capability={name}")));
        let opened = |name: &str| self.system_calls.iter().any(|opened| opened == name);
        let forbidden = FORBIDDEN.iter().filter(|(group, _)| !opened(group));
        let calls: Vec<&str> =
            forbidden.flat_map(|(_, calls)| calls.iter().copied()).filter(|call| !opened(call)).collect();
        options.push(format!("--system-call-filter=~{}", calls.join(" ")));
        // Not all groups here are groups of systemd.
        let own = |name: &str| FORBIDDEN.iter().find(|(group, _)| *group == name).map(|(_, calls)| *calls);
        for name in &self.system_calls {
            let words = own(name).map_or_else(|| name.clone(), |calls| calls.join(" "));
            options.push(format!("--system-call-filter={words}"));
        }
        if self.cgroups == Cgroups::ReadOnly {
            // It replaces the writable mounts of nspawn, and shows the groups of the whole machine.
            options.push("--bind-ro=/sys/fs/cgroup".to_owned());
        }
        for node in &self.devices {
            options.push(format!("--bind={}", node.display()));
        }
        options
    }

    /// Whether the program can be denied user namespaces: the filter needs no_new_privs, or CAP_SYS_ADMIN.
    pub(super) fn forbids_user_namespaces(&self) -> bool {
        let opened = self.system_calls.iter().any(|name| name == "@namespaces" || name == "unshare");
        !opened && !self.new_privileges
    }

    /// The openings of the configuration, one sentence each; empty if everything is closed. `unmapped`: the reason why users
    /// are the host's although the configuration does not ask for that.
    pub fn openings(&self, unmapped: Option<&str>) -> Vec<String> {
        let mut open = Vec::new();
        match (self.users, unmapped) {
            (Users::Host, _) => {
                open.push("users: root in the container is root of the host (users = \"host\")".to_owned());
            }
            (_, Some(why)) => open.push(format!("users: root in the container is root of the host; {why}")),
            _ => {}
        }
        match &self.network {
            Network::Private => {}
            Network::Host => {
                open.push("network: that of the host, with all that listens on its loopback".to_owned());
            }
            Network::Path(path) => open.push(format!("network: {}", path.display())),
        }
        if self.new_privileges {
            open.push(
                "privileges: set-user-ID programs work, and so do user namespaces (new_privileges)"
                    .to_owned(),
            );
        }
        let more: Vec<&str> = self
            .capabilities
            .iter()
            .map(String::as_str)
            .filter(|name| !CAPABILITIES.contains(name))
            .collect();
        let mut list = |what: &str, entries: &[String]| {
            if !entries.is_empty() {
                open.push(format!("{what}: {}", entries.join(", ")));
            }
        };
        list("capabilities", &more.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        list("system calls", &self.system_calls);
        list("devices", &self.devices.iter().map(|node| node.display().to_string()).collect::<Vec<_>>());
        list("writable paths of the host", &self.bind);
        list("readable paths of the host", &self.bind_ro);
        list("options of nspawn, not judged here", &self.options);
        if self.cgroups == Cgroups::Writable {
            open.push("cgroups: its own are writable".to_owned());
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        toml::from_str(&format!("command = [\"/app\"]\n{text}")).unwrap()
    }

    #[test]
    fn the_default_opens_nothing_and_closes_all() {
        let config = Config::new(vec!["/app".to_owned()]);
        assert_eq!(config.openings(None), Vec::<String>::new());
        let words = config.boundary(true);
        let dropped = words.iter().find_map(|word| word.strip_prefix("--drop-capability=")).unwrap();
        let dropped: Vec<&str> = dropped.split(',').collect();
        assert_eq!(dropped.len() + CAPABILITIES.len(), OF_NSPAWN.len());
        assert!(["CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_SYS_PTRACE"].iter().all(|name| dropped.contains(name)));
        assert!(!dropped.contains(&"CAP_SETUID"));
        for word in ["--private-users=pick", "--no-new-privileges=yes", "--bind-ro=/sys/fs/cgroup"] {
            assert!(words.iter().any(|one| one == word), "{word}: {words:?}");
        }
        assert!(!config.boundary(false).iter().any(|word| word.starts_with("--private-users")));
        assert_eq!(config.openings(Some("an old kernel")).len(), 1);
    }

    #[test]
    fn each_key_opens_its_own_and_says_so() {
        for (text, absent, present, said) in [
            ("new_privileges = true", "--no-new-privileges", "", "privileges: "),
            ("cgroups = \"writable\"", "--bind-ro=/sys/fs/cgroup", "", "cgroups: "),
            ("capabilities = [\"CAP_SYS_ADMIN\"]", "CAP_SYS_ADMIN", "", "capabilities: CAP_SYS_ADMIN"),
            ("capabilities = [\"CAP_BPF\"]", "", "--capability=CAP_BPF", "capabilities: CAP_BPF"),
            ("system_calls = [\"@mount\"]", "pivot_root", "", "system calls: @mount"),
            ("system_calls = [\"ptrace\"]", " ptrace", "--system-call-filter=ptrace", "system calls: ptrace"),
            ("devices = [\"/dev/ttyS0\"]", "", "--bind=/dev/ttyS0", "devices: /dev/ttyS0"),
            ("network = \"host\"", "", "", "network: that of the host"),
            ("users = \"host\"", "", "", "users: root"),
            ("bind = [\"/x:/x\"]", "", "", "writable paths of the host: /x:/x"),
            ("options = [\"--x\"]", "", "", "options of nspawn, not judged here: --x"),
        ] {
            let config = config(text);
            let words = config.boundary(true);
            let has = |part: &str| words.iter().any(|word| word.contains(part));
            // Of the two lists of calls, that of the forbidden ones prevails.
            let closing =
                words.iter().filter(|word| !word.starts_with("--system-call-filter=") || word.contains('~'));
            let closed = closing.into_iter().any(|word| word.contains(absent));
            assert!(absent.is_empty() || !closed, "{text}: {words:?}");
            assert!(present.is_empty() || has(present), "{text}: {words:?}");
            let open = config.openings(None);
            assert!(open.len() == 1 && open[0].starts_with(said), "{text}: {open:?}");
        }
    }

    #[test]
    fn names_that_would_become_other_options_are_refused() {
        for wrong in [
            "capabilities = [\"CAP_X,CAP_Y\"]",
            "capabilities = [\"all\"]",
            "system_calls = [\"~ptrace\"]",
            "system_calls = [\"a b\"]",
            "system_calls = [\"@\"]",
            "devices = [\"/etc/passwd\"]",
            "users = \"root\"",
        ] {
            let text = format!("command = [\"/app\"]\n{wrong}");
            assert!(toml::from_str::<Config>(&text).is_err(), "{wrong}");
        }
    }
}
