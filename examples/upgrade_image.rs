//! A whole upgrade of an image file by the library: init, prepare, commit, mark-good. It needs no root:
//! `cargo run --example upgrade_image`.

use std::error::Error;
use std::path::Path;
use std::process::Command;

use qstage::host::LocalDisk;
use qstage::host::journal::FileJournal;
use qstage::init::{InitSpec, init};
use qstage::pack::{Destination, PackSpec, pack};
use qstage::progress::{Cancel, Silent};
use qstage::source::{InputTimeout, open_source};
use qstage::state::UpgradeState;
use qstage::units::{BlockSize, MIB, Slot};
use qstage::{Bundle, Engine, Policy, PrepareOptions, Trust, boot::BootFlag, device::Mode};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // Not in /tmp: where that is a tmpfs, older kernels refuse O_DIRECT.
    std::fs::create_dir_all("target")?;
    let dir = tempfile::tempdir_in("target")?;
    upgrade(dir.path())
}

/// Installs 1.0 into slot a of a new `disk.img` in `dir`, and upgrades it to 1.1 in slot b.
pub(crate) fn upgrade(dir: &Path) -> Result<()> {
    release(dir, "1.0", 1)?;
    release(dir, "1.1", 2)?;

    // Factory: a table with two slots; slot a holds 1.0, is marked good and boots.
    let disk = dir.join("disk.img");
    let spec = InitSpec {
        disk: disk.clone(),
        size: None,
        slot_size: 8 * MIB,
        software_size: None,
        reserve: MIB,
        sector_size: BlockSize::B512,
        boot_flag: BootFlag::default(),
        force: false,
        bundle: Some(open(dir, "1.0")?),
        into: vec![Slot::A],
        dry_run: false,
    };
    let report = init(spec, &Silent, &Cancel::default())?;
    println!("init: {} with {}", report.disk, report.partitions.join(", "));

    // On a machine the kernel says which slot runs; of an image file the caller does.
    let machine = LocalDisk::open(&disk, Mode::Write, None)?;
    let journal = FileJournal::new(&dir.join("state"), |notice| eprintln!("{notice}"));
    let booted = |slot| Policy { booted: Some(slot), ..Policy::default() };

    // While slot a runs: 1.1 is written into slot b, flushed and read back; then one sector selects it.
    let engine = Engine::new(&machine, &journal, booted(Slot::A));
    let prepared = engine.prepare(open(dir, "1.1")?, &PrepareOptions::default(), &Silent)?;
    println!("prepare: {} in {}", prepared.version, prepared.targets.join(", "));
    println!("commit: {}", engine.commit(false)?.done);

    // After the reboot slot b runs, on trial until something that can judge its health marks it good.
    let engine = Engine::new(&machine, &journal, booted(Slot::B));
    assert_eq!(engine.status()?.state, UpgradeState::UpgradeTrial);
    println!("mark-good: {}", engine.mark_good(None)?.done);
    assert_eq!(engine.status()?.state, UpgradeState::UpgradeIdle);
    Ok(())
}

/// Packs and signs `VERSION.qimg` with an image of 3 MiB, and makes the key where there is none yet.
fn release(dir: &Path, version: &str, seed: u32) -> Result<()> {
    let (key, platform) = (dir.join("release-key"), dir.join(format!("{version}.img")));
    if !key.exists() {
        let made =
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status()?;
        assert!(made.success(), "ssh-keygen: {made}");
    }
    let words = (0..3 * MIB as u32 / 4).flat_map(|word| (word.wrapping_mul(word) ^ seed).to_le_bytes());
    std::fs::write(&platform, words.collect::<Vec<u8>>())?;
    let spec = PackSpec {
        product: "demo".to_owned(),
        version: version.to_owned(),
        min_version: None,
        needs_platform: None,
        epoch: 0,
        created: 0,
        platform: Some(platform),
        software: None,
        firmware: Vec::new(),
        key: Some(key),
        level: 3,
        frame_size: 1 << 20,
        jobs: None,
    };
    let bundle = dir.join(format!("{version}.qimg"));
    pack(&spec, Destination::New(&bundle), &Silent, &Cancel::default())?;
    Ok(())
}

/// Opens `VERSION.qimg`: its signature by the release key is checked before anything else of it is read.
fn open(dir: &Path, version: &str) -> Result<Bundle> {
    let public = std::fs::read_to_string(dir.join("release-key.pub"))?;
    let signers = format!("release@example.org namespaces=\"qimg\" {public}");
    let trust = Trust::parse(Path::new("allowed_signers"), signers.as_bytes())?;
    let source =
        open_source(&dir.join(format!("{version}.qimg")), InputTimeout::default(), &Cancel::default())?;
    Ok(Bundle::open(source, &trust)?)
}
