//! Platform slots that stock boot loaders start: an ext4 image with kernel, initramfs, boot loader files and a system of
//! busybox and the program. The same image runs in either slot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::vm::CMDLINE;
use super::{Inputs, Tree, tool, which};

/// Which boot loader the image is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// `/boot.scr`, run by U-Boot's distro_bootcmd from the partition that carries bit 2.
    UBoot,
    /// extlinux in the partition, started by gptmbr.bin. Making it needs root and a loop device.
    Syslinux,
}

/// Size of a slot's image: kernel, initramfs and program are some 35 MiB.
pub const IMAGE: u64 = 56 << 20;

/// What the initramfs does: modules for the disk, then the root that the command line names.
const INITRD: &str = r#"
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
modprobe virtio_pci; modprobe virtio_blk
for word in $(cat /proc/cmdline); do
  case $word in
    root=*) root=${word#root=} ;;
    # Started by kexec. This busybox knows no PARTUUID.
    qstage.selected=*) name=platform_${word#*=} ;;
  esac
done
if [ "$name" ]; then
  set -- $(grep -lx "PARTNAME=$name" /sys/class/block/*/uevent)
  root=$(dirname "$1"); root=/dev/${root##*/}
fi
case $root in /dev/*) ;; *) root=$(findfs "$root") ;; esac
mount -o ro "$root" /mnt && exec switch_root /mnt /sbin/init
echo "initramfs: no root at '$root'"; cat /proc/partitions; poweroff -f
"#;

/// Process 1 of a slot: it says which release it is and from where it runs, and takes commands from the console.
const SYSTEM: &str = r#"
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
exec < /dev/console > /dev/console 2>&1
[ -b /dev/vdb ] && mount -o ro /dev/vdb /mnt
# Neither the line nor an interactive shell may echo what is typed.
stty -echo
. /etc/start
root=$(awk '$2 == "/" { print $1 }' /proc/mounts)
echo "system $(cat /etc/release) runs from $root, $(sed -n s/PARTNAME=//p "/sys/class/block/${root#/dev/}/uevent")"
while read -r line; do eval "$line"; done
"#;

/// The initramfs of all slots.
pub fn initrd(inputs: &Inputs) -> Vec<u8> {
    let tree = Tree::system(inputs).without("bin/qstage").modules(inputs, &["virtio_pci", "virtio_blk"]);
    tree.script("init", INITRD).cpio()
}

/// The files of a release. `start` is sourced before the system says that it runs: shell commands of the test.
pub fn system(inputs: &Inputs, release: &str, start: &str) -> Tree {
    let tree = match which("kexec") {
        Some(kexec) => Tree::system(inputs).program("sbin/kexec", &kexec),
        None => Tree::system(inputs),
    };
    tree.copy("vmlinuz", &inputs.kernel)
        .file("initrd", initrd(inputs))
        .script("sbin/init", SYSTEM)
        .file("etc/release", release)
        .file("etc/start", start)
        .file("etc/qstage/config.toml", CONFIG)
}

/// The configuration in each slot. The state is lost with each boot: nothing depends on it.
const CONFIG: &str = "disk = \"/dev/vda\"\nboot_flag = \"legacy\"\ntrust = \"/mnt/allowed_signers\"\nstate_dir = \"/run/qstage\"\n[kexec]\ncommand = [\"kexec\", \"-e\"]\n";

/// Writes the bootable image of a release.
pub fn image(tree: Tree, loader: Loader, cmdline: &str, path: &Path) {
    let cmdline = format!("gpt {CMDLINE} quiet panic=-1 {cmdline}");
    match loader {
        Loader::UBoot => tree.file("boot.scr", boot_scr(&u_boot(&cmdline))).ext4(path, IMAGE),
        Loader::Syslinux => {
            // The loader does not say from which partition it starts; the file system has a name of its own.
            let uuid = tool("cat", &["/proc/sys/kernel/random/uuid"]);
            let uuid = uuid.trim();
            let config = format!(
                "serial 0 115200\ndefault qstage\nlabel qstage\n linux /vmlinuz\n initrd /initrd\n append root=UUID={uuid} {cmdline}\n"
            );
            tree.file("extlinux.conf", config).ext4(path, IMAGE);
            tool("tune2fs", &["-U", uuid, path.to_str().unwrap()]);
            extlinux(path);
        }
    }
}

/// The commands that start the kernel of the partition that the script was found in.
fn u_boot(cmdline: &str) -> String {
    // The initramfs above 0x10000000: this U-Boot puts things below.
    format!(
        "load ${{devtype}} ${{devnum}}:${{distro_bootpart}} 0x02000000 /vmlinuz\n\
         load ${{devtype}} ${{devnum}}:${{distro_bootpart}} 0x12000000 /initrd\n\
         setenv bootargs root=/dev/vda${{distro_bootpart}} {cmdline}\n\
         zboot 0x02000000 - 0x12000000 ${{filesize}}\n"
    )
}

/// A script for U-Boot, in its envelope.
pub fn boot_scr(commands: &str) -> Vec<u8> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (source, script) = (dir.path().join("boot.cmd"), dir.path().join("boot.scr"));
    fs::write(&source, commands).unwrap();
    let paths = ["-d", source.to_str().unwrap(), script.to_str().unwrap()];
    tool("mkimage", &[&["-A", "x86", "-T", "script"][..], &paths].concat());
    fs::read(script).unwrap()
}

/// Installs extlinux into an ext4 image. It wants it mounted, and writes its boot sector through the loop device.
fn extlinux(image: &Path) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mounted = Mounted::new(image, dir.path());
    tool("extlinux", &["--install", dir.path().to_str().unwrap()]);
    drop(mounted);
}

/// A mounted image; unmounted when dropped, which detaches its loop device too.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: &Path) -> Self {
        tool("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Writes syslinux' boot code for GPT disks before the partition table.
pub fn gptmbr(disk: &Path) {
    use std::os::unix::fs::FileExt;
    let code = fs::read("/usr/lib/syslinux/mbr/gptmbr.bin").expect("apt-get install syslinux-common");
    assert_eq!(code.len(), 440);
    fs::File::options().write(true).open(disk).unwrap().write_all_at(&code, 0).unwrap();
}
