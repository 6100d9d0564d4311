//! A machine to upgrade: releases as bundles, the first of them installed, the others on a second disk.

use std::path::PathBuf;

use super::slots::{self, Loader};
use super::{Bus, Inputs, Machine, Tree};
use crate::harness::machine::Bench;

/// `disk.img` with release 1 in slot a, and what transports the others.
pub struct Appliance {
    pub bench: Bench,
    transport: PathBuf,
}

impl Appliance {
    /// Releases by version, each with shell commands that its system runs when it starts. The first is installed; the
    /// bundles of the others are `/mnt/VERSION.qimg` in the guest.
    pub fn new(inputs: &Inputs, loader: Loader, releases: &[(&str, &str)]) -> Self {
        let bench = Bench::new();
        bench.config("boot_flag = \"legacy\"\n");
        for (version, start) in releases {
            let image = bench.path(&format!("{version}.ext4"));
            slots::image(slots::system(inputs, version, start), loader, "", &image);
            bench.pack(version, version, &["--platform", image.to_str().unwrap(), "--level", "1"]);
            std::fs::remove_file(image).unwrap();
        }
        let first = format!("{}.qimg", releases[0].0);
        bench.at(&["init", "disk.img", "--slot-size", "60M", "--bundle", &first]).good();
        if loader == Loader::Syslinux {
            slots::gptmbr(&bench.disk());
        }
        let transport = bench.path("transport.ext4");
        let keys = Tree::new().copy("allowed_signers", &bench.path("allowed_signers"));
        let bundles = releases[1..].iter().map(|(version, _)| format!("{version}.qimg"));
        let tree = bundles.fold(keys, |tree, name| tree.copy(&name, &bench.path(&name)));
        tree.ext4(&transport, (releases.len() as u64) * (48 << 20));
        Self { bench, transport }
    }

    /// The machine with both disks; the second forgets what is written to it.
    pub fn machine(&self) -> Machine {
        Machine::new().drive(&self.bench.disk(), Bus::Virtio).snapshot(&self.transport, Bus::Virtio)
    }
}
