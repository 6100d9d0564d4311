//! A `/proc`, `/sys` and `/dev` in a temporary directory, for the tests of this module.

use std::fs;
use std::os::unix::fs::symlink;

use super::kernel::Kernel;

pub(crate) struct FakeKernel {
    dir: tempfile::TempDir,
    pub(crate) kernel: Kernel,
}

impl FakeKernel {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [proc, sys, dev] = ["proc", "sys", "dev"].map(|name| dir.path().join(name));
        for sub in ["dev/block", "block", "class/block", "devices"] {
            fs::create_dir_all(sys.join(sub)).unwrap();
        }
        fs::create_dir_all(proc.join("self/ns")).unwrap();
        symlink("mnt:[1]", proc.join("self/ns/mnt")).unwrap();
        fs::create_dir_all(&dev).unwrap();
        let fake = Self { dir, kernel: Kernel { proc, sys, dev } };
        fake.mounted("");
        fake
    }

    /// A disk such as `8:0 sda`, or (with start and size in sectors) a partition such as `8:2 sda/sda2`.
    pub(crate) fn device(&self, number: &str, name: &str, partition: Option<(u32, u64, u64)>, uevent: &str) {
        let leaf = name.rsplit('/').next().unwrap();
        let dir = self.kernel.sys.join("devices").join(name);
        fs::create_dir_all(dir.join("holders")).unwrap();
        fs::create_dir_all(dir.join("slaves")).unwrap();
        fs::write(dir.join("dev"), format!("{number}\n")).unwrap();
        fs::write(dir.join("uevent"), format!("DEVNAME={leaf}\n{uevent}")).unwrap();
        if let Some((index, start, size)) = partition {
            for (file, value) in [("partition", u64::from(index)), ("start", start), ("size", size)] {
                fs::write(dir.join(file), format!("{value}\n")).unwrap();
            }
        } else {
            symlink(&dir, self.kernel.sys.join("block").join(leaf)).unwrap();
        }
        symlink(&dir, self.kernel.sys.join("class/block").join(leaf)).unwrap();
        symlink(&dir, self.kernel.sys.join("dev/block").join(number)).unwrap();
        fs::write(self.kernel.dev.join(leaf), "").unwrap();
    }

    /// Stacks `upper` on `lower`, as device mapper does.
    pub(crate) fn stack(&self, upper: &str, lower: &str) {
        let class = self.kernel.sys.join("class/block");
        symlink(class.join(upper), class.join(lower).join("holders").join(upper)).unwrap();
        symlink(class.join(lower), class.join(upper).join("slaves").join(lower)).unwrap();
    }

    /// Attaches a loop device.
    pub(crate) fn attach(&self, name: &str, backing: &str, offset: u64, limit: u64) {
        let dir = self.kernel.sys.join("block").join(name).join("loop");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("backing_file"), format!("{backing}\n")).unwrap();
        fs::write(dir.join("offset"), format!("{offset}\n")).unwrap();
        fs::write(dir.join("sizelimit"), format!("{limit}\n")).unwrap();
    }

    /// A link below `/dev`.
    pub(crate) fn link(&self, link: &str, target: &str) {
        let link = self.kernel.dev.join(link);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(self.kernel.dev.join(target), link).unwrap();
    }

    /// A file outside `/dev`, such as an image.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, "").unwrap();
        path
    }

    pub(crate) fn mounted(&self, mountinfo: &str) {
        fs::write(self.kernel.proc.join("self/mountinfo"), mountinfo).unwrap();
    }

    /// A process with its mount namespace, name and mounts. This one is in `mnt:[1]`.
    pub(crate) fn process(&self, id: u32, namespace: &str, name: &str, mountinfo: &str) {
        let dir = self.kernel.proc.join(id.to_string());
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("ns")).unwrap();
        symlink(namespace, dir.join("ns/mnt")).unwrap();
        fs::write(dir.join("comm"), format!("{name}\n")).unwrap();
        fs::write(dir.join("mountinfo"), mountinfo).unwrap();
    }

    /// The size of a device in bytes.
    pub(crate) fn sized(&self, name: &str, bytes: u64) {
        fs::write(self.kernel.sys.join("class/block").join(name).join("size"), format!("{}\n", bytes / 512))
            .unwrap();
    }

    /// Makes a device one of device mapper.
    pub(crate) fn dm_uuid(&self, name: &str, uuid: &str) {
        let dir = self.kernel.sys.join("class/block").join(name).join("dm");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("uuid"), uuid).unwrap();
    }

    pub(crate) fn swapped(&self, device: &str) {
        fs::write(self.kernel.proc.join("swaps"), format!("Filename Type Size\n{device} partition 1\n"))
            .unwrap();
    }

    pub(crate) fn cmdline(&self, line: &str) {
        fs::write(self.kernel.proc.join("cmdline"), line).unwrap();
    }
}
