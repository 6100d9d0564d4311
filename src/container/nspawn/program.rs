//! Whether the program of an image can start, seen before the container that serves is stopped.
//!
//! Only what is certain is reported: a file that is missing, no program, or built for another processor. The rest is left to
//! execve(2), whose refusal the [gate](super::gate) reports.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::container::Config;
use crate::error::Error;
use crate::units::Slot;

/// Depth of interpreters of interpreters that the kernel follows (fs/exec.c, `exec_binprm`).
const DEPTH: u32 = 4;
/// Bytes of a script's first line that the kernel reads (`BINPRM_BUF_SIZE`).
const LINE: usize = 256;
/// Maximum length of a path (`PATH_MAX`).
const PATH: u64 = 4096;
/// Maximum number of program headers that are read.
const HEADERS: u16 = 128;
/// Type of the program header that names the dynamic loader (elf(5), `PT_INTERP`).
const INTERP: u32 = 3;

/// Processors by their number in an ELF file, and the architectures that run it.
const MACHINES: [(u16, &str, &[&str]); 7] = [
    (3, "i386", &["x86", "x86_64"]),
    (40, "arm", &["arm", "aarch64"]),
    (62, "x86_64", &["x86_64"]),
    (183, "aarch64", &["aarch64"]),
    (243, "riscv", &["riscv64", "riscv32"]),
    (21, "ppc64", &["powerpc64"]),
    (22, "s390x", &["s390x"]),
];

/// Reason why a container does not start.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// The image, by its program.
    Program(String),
    /// Anything else.
    Start(String),
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::Start(problem)
    }
}

impl Problem {
    pub(super) fn into_error(self, slot: Slot) -> Error {
        match self {
            Self::Program(problem) => Error::ContainerProgram { slot, problem },
            Self::Start(problem) => Error::ContainerStart { slot, problem },
        }
    }
}

/// Reason why the program of `config` cannot start in an image mounted at `root`; `None`: none is known.
pub(super) fn obstacle(config: &Config, root: &Path) -> Option<String> {
    let program = config.command.first()?;
    // Other binds can lie over any part of the image, and links can lead there.
    let bound =
        |option: &String| ["--bind", "--overlay", "--tmpfs"].iter().any(|bind| option.starts_with(bind));
    let covered = !config.bind.is_empty()
        || !config.bind_ro.is_empty()
        || config.options.iter().any(bound)
        || below_state(config, program);
    if covered { None } else { look(root, program, DEPTH, emulates()) }
}

/// Whether the program lies in the directory for state, which the host provides.
fn below_state(config: &Config, program: &str) -> bool {
    let inside = config.state.as_deref().and_then(|bind| bind.split(':').nth(1));
    inside.is_some_and(|inside| Path::new(program).starts_with(inside))
}

/// Whether the kernel has interpreters of its own for files of other kinds (binfmt_misc), such as an emulator.
fn emulates() -> bool {
    let own = |name: &std::ffi::OsStr| name != "register" && name != "status";
    fs::read_dir("/proc/sys/fs/binfmt_misc")
        .is_ok_and(|entries| entries.flatten().any(|entry| own(&entry.file_name())))
}

fn look(root: &Path, path: &str, depth: u32, emulates: bool) -> Option<String> {
    let file = match open(root, path) {
        Ok(file) => file,
        Err(error) => {
            let missing = [Errno::ENOENT, Errno::ENOTDIR, Errno::ELOOP].map(|errno| Some(errno as i32));
            return missing.contains(&error.raw_os_error()).then(|| format!("{path} is not in the image"));
        }
    };
    let about = file.metadata().ok()?;
    if !about.is_file() {
        return Some(format!("{path} is no file"));
    }
    let mode = about.permissions().mode() & 0o7777;
    if mode & 0o111 == 0 {
        return Some(format!("{path} is not executable (mode {mode:o})"));
    }
    let mut head = Vec::new();
    (&file).take(LINE as u64).read_to_end(&mut head).ok()?;
    let next = match &head[..] {
        [b'#', b'!', line @ ..] => interpreter(line)?,
        [0x7f, b'E', b'L', b'F', ..] => {
            if let Some(other) = other_machine(&head).filter(|_| !emulates) {
                let here = std::env::consts::ARCH;
                return Some(format!("{path} is built for {other}, and this machine is {here}"));
            }
            loader(&file, &head).ok().flatten()?
        }
        // execvp(3) has a shell run such a file.
        _ if emulates || look(root, "/bin/sh", 0, emulates).is_none() => return None,
        _ => return Some(format!("{path} is neither an ELF file nor a script with #!")),
    };
    let below = depth.checked_sub(1)?;
    look(root, &next, below, emulates).map(|problem| format!("{path} needs {next}: {problem}"))
}

/// Absolute links of the image resolve within the image, not on the host.
fn open(root: &Path, path: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(File::from(openat2(File::open(root)?, path, how)?))
}

/// The first word of a script's first line; `None` if it is not absolute: the kernel looks for it in its working directory.
fn interpreter(line: &[u8]) -> Option<String> {
    let line = line.split(|&byte| byte == b'\n').next()?;
    let word = str::from_utf8(line).ok()?.split_ascii_whitespace().next()?;
    word.starts_with('/').then(|| word.to_owned())
}

/// The processor of an ELF file if it is known and not this one.
fn other_machine(head: &[u8]) -> Option<&'static str> {
    let number = u16::from_le_bytes(field(head, 18)?);
    // Byte 5: 1 is little-endian. All of this program's architectures are.
    let (_, name, run_by) =
        MACHINES.iter().find(|(machine, ..)| *machine == number && head.get(5) == Some(&1))?;
    (!run_by.contains(&std::env::consts::ARCH)).then_some(name)
}

/// The dynamic loader that a little-endian ELF file names (elf(5)).
fn loader(file: &File, head: &[u8]) -> io::Result<Option<String>> {
    let wide = head.get(4) == Some(&2);
    let number = |bytes: &[u8], at: usize| -> Option<u64> {
        if wide {
            field(bytes, at).map(u64::from_le_bytes)
        } else {
            field(bytes, at).map(|b| u32::from_le_bytes(b).into())
        }
    };
    let half = |at: usize| field(head, at).map(u16::from_le_bytes);
    let (first, size, count) =
        if wide { (number(head, 32), half(54), half(56)) } else { (number(head, 28), half(42), half(44)) };
    let (Some(first), Some(size), Some(count)) = (first, size, count) else { return Ok(None) };
    for index in 0..count.min(HEADERS) {
        let mut header = [0; 56];
        let at = first.saturating_add(u64::from(index) * u64::from(size));
        let len = if wide { 56 } else { 32 };
        file.read_exact_at(&mut header[..len], at)?;
        if field(&header, 0).map(u32::from_le_bytes) != Some(INTERP) {
            continue;
        }
        let (offset, len) = if wide { (8, 32) } else { (4, 16) };
        let (Some(offset), Some(len)) = (number(&header, offset), number(&header, len)) else {
            return Ok(None);
        };
        let mut path = vec![0; len.min(PATH) as usize];
        file.read_exact_at(&mut path, offset)?;
        let path = path.split(|&byte| byte == 0).next().unwrap_or_default();
        return Ok(str::from_utf8(path).ok().filter(|path| path.starts_with('/')).map(str::to_owned));
    }
    Ok(None)
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Image(tempfile::TempDir);

    impl Image {
        fn put(&self, path: &str, mode: u32, bytes: &[u8]) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn obstacle(&self, path: &str) -> Option<String> {
            look(self.0.path(), path, DEPTH, false)
        }
    }

    fn image() -> Image {
        Image(tempfile::tempdir().unwrap())
    }

    /// A 64-bit ELF file for a machine, with one program header that names a loader.
    fn elf(machine: u16, loader: &str) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18..20].copy_from_slice(&machine.to_le_bytes());
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&INTERP.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[96..104].copy_from_slice(&(loader.len() as u64 + 1).to_le_bytes());
        file.extend_from_slice(loader.as_bytes());
        file.push(0);
        file
    }

    fn here() -> u16 {
        MACHINES
            .iter()
            .find(|(_, name, _)| *name == std::env::consts::ARCH)
            .map_or(243, |(machine, ..)| *machine)
    }

    #[test]
    fn each_reason_is_named() {
        let image = image();
        image.put("etc/x", 0o644, b"x");
        image.put("data", 0o644, b"x");
        image.put("text", 0o755, b"exit 0\n");
        image.put("script", 0o755, b"#! /usr/bin/python3 -u\n");
        image.put("dynamic", 0o755, &elf(here(), "/lib/ld.so"));
        image.put("foreign", 0o755, &elf(if here() == 22 { 62 } else { 22 }, "/lib/ld.so"));
        image.put("cut", 0o755, &elf(here(), "/lib/ld.so")[..70]);
        std::os::unix::fs::symlink("/nowhere", image.0.path().join("link")).unwrap();
        for (path, reason) in [
            ("/none", "/none is not in the image"),
            ("/data/x", "/data/x is not in the image"),
            ("/link", "/link is not in the image"),
            ("/etc", "/etc is no file"),
            ("/data", "/data is not executable (mode 644)"),
            ("/text", "/text is neither an ELF file nor a script with #!"),
            ("/script", "/script needs /usr/bin/python3: /usr/bin/python3 is not in the image"),
            ("/dynamic", "/dynamic needs /lib/ld.so: /lib/ld.so is not in the image"),
        ] {
            assert_eq!(image.obstacle(path).as_deref(), Some(reason));
        }
        assert!(image.obstacle("/foreign").unwrap().starts_with("/foreign is built for "));
        assert_eq!(look(image.0.path(), "/foreign", 0, true), None, "an emulator may run it");
        assert_eq!(image.obstacle("/cut"), None, "execve judges what is damaged");
        // What they lack.
        image.put("bin/sh", 0o755, &elf(here(), "/lib/ld.so"));
        image.put("lib/ld.so", 0o755, b"\x7fELF");
        std::os::unix::fs::symlink("/bin/sh", image.0.path().join("python3")).unwrap();
        image.put("script", 0o755, b"#!/python3");
        for path in ["/text", "/script", "/dynamic", "/bin/sh"] {
            assert_eq!(image.obstacle(path), None, "{path}");
        }
        // Scripts that call themselves end too.
        image.put("loop", 0o755, b"#!/loop\n");
        assert_eq!(image.obstacle("/loop"), None);
    }

    #[test]
    fn what_the_host_puts_into_the_image_is_not_judged() {
        let image = image();
        let mut config = Config::new(vec!["/state/app".to_owned()]);
        assert!(obstacle(&config, image.0.path()).is_some());
        config.state = Some("/var/lib/app:/state".to_owned());
        assert_eq!(obstacle(&config, image.0.path()), None);
        config.command = vec!["/app".to_owned()];
        assert!(obstacle(&config, image.0.path()).is_some());
        config.bind = vec!["/opt/app:/app".to_owned()];
        assert_eq!(obstacle(&config, image.0.path()), None);
        config.bind.clear();
        config.options = vec!["--overlay=/a:/b:/usr".to_owned()];
        assert_eq!(obstacle(&config, image.0.path()), None);
    }
}
