//! Platform slots that UEFI starts by itself: a FAT file system with one unified kernel image, which is systemd's stub with
//! kernel, initramfs and command line as sections; the whole system is in the initramfs. And the UEFI implementation: OVMF.
//!
//! Packages: ovmf systemd-boot-efi binutils mtools dosfstools.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::vm::CMDLINE;
use super::{Bus, Inputs, Machine, Tree, Vm, tool};
use crate::harness::machine::{self, Bench};

/// Where firmware looks on a medium of which it knows nothing.
pub const LOADER: &str = "EFI/BOOT/BOOTX64.EFI";
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// How long a boot may take: some five seconds on an idle machine, but the firmware has no mercy with a busy one.
pub const LIMIT: Duration = Duration::from_secs(600);

/// Process 1. What it is, it says before it takes commands from the console.
const INIT: &str = r#"
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1
modprobe efivarfs; mount -t efivarfs efivarfs /sys/firmware/efi/efivars
# The kernel finds disks and partitions while this runs.
for n in $(seq 100); do [ -b /dev/nvme0n1p2 ] && [ -b /dev/nvme0n2 ] && break; sleep 0.1; done
[ -b /dev/nvme0n2 ] && mount -o ro /dev/nvme0n2 /mnt
stty -echo
. /etc/start
from=$(tail -c +5 /sys/firmware/efi/efivars/LoaderDevicePartUUID-* | tr -d '\000' | tr A-F a-f)
echo "system $(cat /etc/release) runs from $from"
while read -r line; do eval "$line"; done
"#;

const CONFIG: &str = "disk = \"/dev/nvme0n1\"\nboot_flag = \"efi\"\ntrust = \"/mnt/allowed_signers\"\nstate_dir = \"/run/qstage\"\n";

/// Writes the image of a release, some 20 MiB. `start` is sourced before the system says that it runs.
pub fn image(inputs: &Inputs, release: &str, start: &str, path: &Path) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let tree = Tree::system(inputs)
        .script("init", INIT)
        .modules(inputs, &["efivarfs"])
        .file("etc/release", release)
        .file("etc/start", start)
        .file("etc/qstage/config.toml", CONFIG);
    fs::write(at("cpio"), tree.cpio()).unwrap();
    // Emulated, the firmware and the hashes of an upgrade take longer for each byte than the kernel to unpack it.
    tool("zstd", &["-q", "-1", "-o", &at("initrd"), &at("cpio")]);
    fs::write(at("cmdline"), format!("gpt {CMDLINE} quiet panic=-1")).unwrap();
    fs::write(at("osrel"), format!("ID=appliance\nVERSION_ID={release}\n")).unwrap();
    let kernel = inputs.kernel.to_str().unwrap().to_owned();
    // Addresses as ukify(1) of that time takes them: what comes later is larger.
    let sections = [
        (".osrel", at("osrel"), "0x20000"),
        (".cmdline", at("cmdline"), "0x30000"),
        (".linux", kernel, "0x2000000"),
        (".initrd", at("initrd"), "0x3000000"),
    ];
    let mut args = Vec::new();
    for (name, file, address) in sections {
        args.extend(["--add-section".to_owned(), format!("{name}={file}")]);
        args.extend(["--change-section-vma".to_owned(), format!("{name}={address}")]);
    }
    args.extend([STUB.to_owned(), at("uki.efi")]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    tool("objcopy", &args);
    let size = fs::metadata(at("uki.efi")).unwrap().len() + (4 << 20);
    fs::File::create(path).unwrap().set_len(size.next_multiple_of(1 << 20)).unwrap();
    let image = path.to_str().unwrap();
    // Two runs of mkfs.vfat differ in the serial number, unless it is given.
    tool("mkfs.vfat", &["-i", "51574947", image]);
    tool("mmd", &["-i", image, "::/EFI", "::/EFI/BOOT"]);
    tool("mcopy", &["-i", image, &at("uki.efi"), &format!("::/{LOADER}")]);
}

/// `disk.img` with release 1 in slot a, what transports the others, and the variables of the firmware.
pub struct Uefi {
    pub bench: Bench,
    transport: PathBuf,
}

impl Uefi {
    /// Releases by version with what they run when they start. The first is installed; the bundles of the others are
    /// `/mnt/VERSION.qimg` in the guest.
    pub fn new(inputs: &Inputs, releases: &[(&str, &str)]) -> Self {
        let bench = Bench::new();
        bench.config("boot_flag = \"efi\"\n");
        for (version, start) in releases {
            let path = bench.path(&format!("{version}.fat"));
            image(inputs, version, start, &path);
            bench.pack(version, version, &["--platform", path.to_str().unwrap(), "--level", "1"]);
            fs::remove_file(path).unwrap();
        }
        let first = format!("{}.qimg", releases[0].0);
        bench.at(&["init", "disk.img", "--slot-size", "64M", "--bundle", &first]).good();
        let transport = bench.path("transport.ext4");
        let keys = Tree::new().copy("allowed_signers", &bench.path("allowed_signers"));
        let bundles = releases[1..].iter().map(|(version, _)| format!("{version}.qimg"));
        let tree = bundles.fold(keys, |tree, name| tree.copy(&name, &bench.path(&name)));
        tree.ext4(&transport, (releases.len() as u64) * (48 << 20));
        fs::copy(VARS, bench.path("vars.fd")).unwrap();
        Self { bench, transport }
    }

    /// Waits until a system says that it runs; what it says, with the name of its partition. The system knows its GUID only:
    /// this kernel reports no PARTUUID, and the judgement must not depend on qstage.
    #[track_caller]
    pub fn up(&self, vm: &mut Vm) -> String {
        let line = vm.wait_within(LIMIT, &["runs from"]);
        let line = line.unwrap_or_else(|| panic!("no system came up; the console:\n{}", vm.text()));
        let table = machine::sfdisk(&self.bench.disk());
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        let rows = table["partitions"].as_array().unwrap().iter();
        rows.fold(line, |line, row| line.replace(&text(row, "uuid").to_lowercase(), &text(row, "name")))
    }

    /// The machine. What its firmware remembers, it remembers for the next one.
    pub fn machine(&self) -> Machine {
        let flash =
            |unit: u8, more: &str, file: &str| format!("if=pflash,format=raw,unit={unit}{more},file={file}");
        let vars = self.bench.text("vars.fd").replace(',', ",,");
        Machine::new()
            .option(&["-drive", &flash(0, ",readonly=on", CODE), "-drive", &flash(1, "", &vars)])
            .drive(&self.bench.disk(), Bus::Nvme)
            .snapshot(&self.transport, Bus::Nvme)
    }
}

/// Whether this machine has OVMF and what else it takes; said loudly if not. In CI that is a failure.
pub fn ready() -> Option<&'static Inputs> {
    let inputs = super::ready()?;
    let missing: Vec<&str> =
        [STUB, CODE, VARS].into_iter().filter(|file| !Path::new(file).exists()).collect();
    let tools = ["mcopy", "mkfs.vfat", "objcopy"].into_iter().filter(|tool| super::which(tool).is_none());
    let missing = [missing, tools.collect()].concat();
    if missing.is_empty() {
        return Some(inputs);
    }
    assert!(std::env::var_os("CI").is_none(), "CI boots by UEFI; missing: {missing:?}");
    eprintln!(
        "SKIPPED: boots by UEFI need {missing:?} (packages ovmf systemd-boot-efi mtools dosfstools binutils)"
    );
    None
}
