//! The readers of partition tables that decide what boots, run on disk images: U-Boot, syslinux' gptmbr, Linux.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Bus, Inputs, Machine, Tree, slots};

/// Disks that one U-Boot is asked about: some of its commands take the number as decimal, others as hexadecimal.
const DISKS: usize = 10;

/// After so long a boot loader of 440 bytes has nothing to say any more; usually it takes a few milliseconds.
const SILENCE: Duration = Duration::from_secs(20);

/// What a slot answers when it is started: its boot script says this word to U-Boot, its boot sector to gptmbr.
/// The file system is as small as it gets, so that hundreds of disks can be asked.
pub fn slot_image(word: &str, size: u64) -> Vec<u8> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("slot.ext4");
    Tree::new().file("boot.scr", slots::boot_scr(&format!("echo took {word}\n"))).ext4(&path, size);
    let mut image = std::fs::read(path).unwrap();
    // ext4 leaves its first 1024 bytes to boot code.
    image[..512].copy_from_slice(&boot_sector(word));
    image
}

/// A boot sector that prints "took WORD" through the BIOS and resets the machine.
fn boot_sector(word: &str) -> [u8; 512] {
    let code = [
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xfc, // cld
        0xbe, 0x20, 0x7c, // mov si, 0x7c20: the text
        0xac, // next: lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x08, // jz done
        0xb4, 0x0e, // mov ah, 0x0e: teletype
        0x31, 0xdb, // xor bx, bx
        0xcd, 0x10, // int 0x10
        0xeb, 0xf3, // jmp next
        0xb0, 0xfe, // done: mov al, 0xfe
        0xe6, 0x64, // out 0x64, al: reset by the keyboard controller
        0xf4, // halt: hlt
        0xeb, 0xfd, // jmp halt
    ];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    // SeaBIOS holds the last characters back, in case that the cursor moves: something has to follow.
    let text = format!("took {word}\r\n........\r\n");
    sector[0x20..0x20 + text.len()].copy_from_slice(text.as_bytes());
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// Which word U-Boot meets on each disk; `None`: it finds nothing to boot. `run virtio_boot` is what it does by itself for
/// the first disk: list the partitions that carry bit 2, look for /boot.scr in each, run it.
pub fn u_boot(images: &[PathBuf]) -> Vec<Option<String>> {
    let mut answers = Vec::new();
    for some in images.chunks(DISKS) {
        let machine = some.iter().fold(Machine::new().u_boot(), |m, image| m.snapshot(image, Bus::Virtio));
        let mut vm = machine.start();
        vm.wait("U-Boot");
        vm.send("");
        vm.wait("=>");
        for i in 0..some.len() {
            vm.send(&format!("setenv devnum {i}; run virtio_boot; echo asked {i}"));
            // The first time its own echo of the command.
            vm.wait(&format!("echo asked {i}"));
            let mut took = None;
            loop {
                let line = vm.wait_any(&["took ", &format!("asked {i}")]);
                match line.split_once("took ") {
                    // It goes on to the next partition with the flag, as far as the script returns.
                    Some((_, word)) => took = took.or(Some(word.to_owned())),
                    None => break,
                }
            }
            answers.push(took);
        }
    }
    answers
}

/// Which word gptmbr starts on this disk; else what it complains of. Where it finds no GPT it hangs without a word.
pub fn gptmbr(image: &Path) -> Result<String, String> {
    let mut vm = Machine::new().snapshot(image, Bus::Virtio).memory(64).once().start();
    vm.wait("Booting from Hard Disk");
    let line = vm.wait_within(SILENCE, &["took ", "Missing OS", "Multiple active partitions", "Boot failed"]);
    let line = line.ok_or("silence")?;
    line.split_once("took ").map(|(_, word)| word.to_owned()).ok_or(line)
}

/// Which partitions Linux finds on each disk, as "NAME@START"; with `gpt` on its command line or without.
pub fn linux(inputs: &Inputs, images: &[PathBuf], gpt: bool) -> Vec<BTreeSet<String>> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let initrd = dir.path().join("initrd");
    let init = r#"
        mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
        exec > /dev/console 2>&1
        # The kernel does not wait for NVMe, neither for the disks nor, once a disk is there, for the scan of its table. To
        # have it scanned again waits for that.
        while [ ! -b /dev/nvme0nCOUNT ]; do sleep 1; done
        for disk in /sys/class/block/nvme0n*; do
          [ -e "$disk/partition" ] && continue
          blockdev --rereadpt "/dev/${disk##*/}"
          parts=
          for part in "$disk"/nvme*; do
            [ -e "$part/partition" ] || continue
            # Without a process for each: there may be hundreds.
            while IFS='=' read -r key value; do [ "$key" = PARTNAME ] && name=$value; done < "$part/uevent"
            read -r start < "$part/start"
            parts="$parts $name@$start"
          done
          echo "disk ${disk##*n}:$parts"
        done
        echo "that is all"
        poweroff -f
    "#;
    let init = init.replace("COUNT", &images.len().to_string());
    std::fs::write(&initrd, Tree::system(inputs).without("bin/qstage").script("init", &init).cpio()).unwrap();
    let cmdline = if gpt { "quiet gpt" } else { "quiet" };
    let machine = Machine::new().kernel(&inputs.kernel, &initrd, cmdline).once();
    let mut vm = images.iter().fold(machine, |m, image| m.snapshot(image, Bus::Nvme)).start();
    vm.wait("that is all");
    let mut found = vec![None; images.len()];
    let console = vm.end();
    for line in console.lines() {
        if let Some((disk, parts)) = line.strip_prefix("disk ").and_then(|rest| rest.split_once(':')) {
            let parts = parts.split_whitespace().map(str::to_owned).collect();
            found[disk.parse::<usize>().unwrap() - 1] = Some(parts);
        }
    }
    found
        .into_iter()
        .map(|parts| parts.unwrap_or_else(|| panic!("a line for each disk: {console}")))
        .collect()
}
