use super::*;

const SAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/config.toml"));

/// The sample with its options uncommented; in the file they are comments, `#key = value`.
fn sample_uncommented() -> String {
    let is_option = |line: &str| {
        let begins = |c: char| c.is_ascii_lowercase() || c == '[';
        line.strip_prefix('#').is_some_and(|rest| rest.starts_with(begins))
    };
    SAMPLE.lines().map(|line| if is_option(line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_sample_changes_nothing_as_it_is() {
    assert_eq!(Config::parse(SAMPLE).unwrap(), Config::default());
}

/// Comments go out of date. The sample with its options uncommented must have every key, with the default as its value if
/// there is one.
#[test]
fn the_sample_shows_every_key_and_the_true_defaults() {
    let sample = sample_uncommented();
    // Without "..": a new key does not compile until it is named here.
    let Config {
        disk,
        product,
        trust,
        threshold,
        principal,
        boot_flag,
        table,
        efivars,
        efi_loader,
        tries,
        sector_size,
        prevent_late_fallback,
        state_dir,
        jobs,
        max_rate,
        min_rate,
        input_timeout,
        container,
        kexec,
        web_ca,
        web_insecure,
        network,
        service,
        reboot,
        cluster,
    } = Config::parse(&sample).unwrap();
    assert_eq!(input_timeout.map(InputTimeout), Some(InputTimeout::default()));
    assert!(efivars.is_some() && efi_loader.is_some(), "keys whose default is the machine's");
    check_container(container.unwrap(), &sample);
    assert!(disk.is_some() && product.is_some(), "keys without a default");
    assert!(
        jobs.is_some()
            && max_rate.is_some()
            && min_rate.is_some()
            && sector_size.is_some()
            && web_ca.is_some(),
        "keys whose default is automatic"
    );
    assert!(threshold == Some(NonZeroUsize::MIN) && principal.is_some(), "a default and an example");
    assert_eq!(prevent_late_fallback, Some(false));
    assert!(
        trust.is_some() && boot_flag.is_some() && table.is_some() && tries.is_some() && state_dir.is_some()
    );
    let ServiceConfig {
        listen,
        socket,
        certificate,
        key,
        tokens,
        image_paths,
        image_urls,
        hosts,
        reboot_command,
        halt_command,
        software_restart_command,
        reboot_timeout,
        waiting_period,
    } = service;
    let places = ServiceConfig { image_paths, ..ServiceConfig::default() };
    assert_eq!(places.allowed(), ServiceConfig::default().allowed());
    assert!(!image_urls.is_empty() && !hosts.is_empty(), "examples");
    assert!(reboot_timeout.is_some() && waiting_period.is_some());
    let times = ServiceConfig { reboot_timeout, waiting_period, ..ServiceConfig::default() };
    assert_eq!(times.limits(), ServiceConfig::default().limits());
    assert!(socket.is_some() && certificate.is_some() && key.is_some() && tokens.is_some());
    assert!(reboot_command.is_some() && halt_command.is_some() && software_restart_command.is_some());
    check_cluster(&cluster.unwrap());
    assert_ne!(network, NetworkConfig::default(), "examples; network.rs compares each key");
    let lock = reboot.lock("").unwrap().unwrap();
    let least = RebootConfig { fleet_lock: reboot.fleet_lock.clone(), ..RebootConfig::default() };
    assert_eq!(least.lock(&lock.id).unwrap(), Some(lock), "the defaults");
    assert_eq!(least.lock("").unwrap_err().code(), "UPGRADE_ERROR_ARGUMENT", "it has no name");
    let strange = RebootConfig { fleet_lock: Some("lock:3333".to_owned()), ..RebootConfig::default() };
    assert_eq!(strange.lock("x").unwrap_err().code(), "UPGRADE_ERROR_ARGUMENT");
    let kexec::KexecConfig { command_line, .. } = kexec.clone();
    assert!(command_line.is_some(), "an example");
    assert_eq!(kexec::KexecConfig { command_line: None, ..kexec }, kexec::KexecConfig::default());
    let shown = Config { trust, boot_flag, table, tries, state_dir, web_insecure, ..Config::default() };
    assert!(web_insecure.is_some());
    assert_eq!(shown.into_settings(), Config::default().into_settings());
    assert_eq!(listen, Some(ServiceConfig::default().listen()));
}

/// The same for `[cluster]`.
fn check_cluster(shown: &super::cluster::ClusterConfig) {
    let super::cluster::ClusterConfig {
        endpoints,
        node,
        address,
        prefix,
        ca,
        cert,
        key,
        user,
        password_file,
        reboot_timeout,
        health_checks,
        health_timeout,
        drain_command,
        undrain_command,
        protection_command,
        hook_timeout,
        commit_timeout,
    } = shown.clone();
    assert!(!endpoints.is_empty() && address.is_some() && ca.is_some() && cert.is_some() && key.is_some());
    assert!(user.is_some() && password_file.is_some() && prefix.is_some() && reboot_timeout.is_some());
    assert!(health_checks.is_some() && health_timeout.is_some() && hook_timeout.is_some());
    assert!(commit_timeout.is_some());
    assert!(drain_command.is_some() && undrain_command.is_some() && protection_command.is_some());
    let text = format!("endpoints = {endpoints:?}\nnode = {node}");
    let least: super::cluster::ClusterConfig = toml::from_str(&text).unwrap();
    let listen = ServiceConfig::default().listen();
    let shown = super::cluster::ClusterConfig {
        address: None,
        ca: None,
        cert: None,
        key: None,
        user: None,
        password_file: None,
        drain_command: None,
        undrain_command: None,
        protection_command: None,
        ..shown.clone()
    };
    assert_eq!(
        shown.membership(listen, "/c".into()).unwrap(),
        least.membership(listen, "/c".into()).unwrap()
    );
    for half in ["cert = '/x'", "user = 'x'", "drain_command = ['/x']\nhook_timeout = 900"] {
        let half: super::cluster::ClusterConfig = toml::from_str(&format!("{text}\n{half}")).unwrap();
        assert_eq!(half.membership(listen, "/c".into()).unwrap_err().code(), "UPGRADE_ERROR_ARGUMENT");
    }
}

/// The same for `[container]`: the sample has every key of the structure, by the names that Debug prints.
fn check_container(shown: container::Config, sample: &str) {
    let defaults = container::Config::new(shown.command.clone());
    let debug = format!("{defaults:#?}");
    let keys: Vec<&str> = debug
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(": ").map(|(key, _)| key))
        .collect();
    assert!(keys.len() > 15, "{keys:?}");
    let section = sample.split("\n[container]\n").nth(1).unwrap();
    for key in keys {
        assert!(
            section.lines().any(|line| line.starts_with(&format!("{key} = "))),
            "{key} is not in the sample"
        );
    }
    let container::Config {
        stop_signal,
        state,
        bind,
        bind_ro,
        environment,
        preread,
        options,
        console,
        probe,
        system_calls,
        devices,
        ..
    } = shown.clone();
    assert!(stop_signal.is_some() && state.is_some() && preread.is_some() && console.is_some(), "examples");
    let same = container::Config {
        stop_signal,
        state,
        bind,
        bind_ro,
        environment,
        preread,
        options,
        console,
        probe,
        system_calls,
        devices,
        ..defaults
    };
    assert_eq!(shown, same, "what the sample shows is not the default");
}

#[test]
fn problems_name_their_line() {
    for (text, problem) in [
        (
            "disk = \"/dev/x\"\nboot_flags = \"legacy\"\n",
            "line 2: 'boot_flags' is not known; did you mean 'boot_flag'?",
        ),
        ("\n\ntries = 16\n", "line 3: tries is 16, allowed is 1 to 15"),
        ("tries = 0", "line 1: tries is 0"),
        ("\nsector_size = 1024", "line 2: sector_size is 1024"),
        ("max_rate = \"10MB\"", "line 1: 'max_rate': 'MB' is ambiguous"),
        ("jobs = 0", "line 1: "),
        ("\ndisk = ", "line 2: "),
        ("efi_loader = 'EFI/x.efi'", "line 1: efi_loader is 'EFI/x.efi', not a path such as"),
        (
            "boot_flag = \"grub\"",
            "line 1: 'boot_flag': 'grub' is not known: write one of priority, legacy, efi",
        ),
        ("[container]\ncommand = [\"/a\"]\ndeadline = 0", "line 3: 'deadline': 0 is not between"),
        ("[service]\nwaiting_period = 400000000", "line 2: 'waiting_period': 400000000 seconds are more"),
        ("boot_flag = \"legcy\"", "line 1: 'boot_flag': 'legcy' is not known; did you mean 'legacy'?"),
        ("zebra = 1", "line 1: 'zebra' is not known"),
        (
            "[container]\ncommand = [\"/a\"]\nprobes = 0",
            "line 3: 'probes' is not known; did you mean 'probe'?",
        ),
    ] {
        let got = Config::parse(text).unwrap_err();
        assert!(got.starts_with(problem), "{text:?}: {got}");
        assert!(!got.contains('\n'), "{got}");
    }
}

#[test]
fn only_the_default_file_may_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let error = Config::load(Some(&dir.path().join("none.toml"))).unwrap_err();
    assert_eq!(error.code(), "UPGRADE_ERROR_CONFIG");
    assert!(error.to_string().contains("none.toml"), "{error}");
}

#[test]
fn a_missing_disk_names_the_remedy() {
    let error = Config::default().into_settings().disk().unwrap_err();
    assert_eq!(error.class().exit_code(), 2);
    assert!(error.to_string().contains("--disk DISK"), "{error}");
}
