//! EFI variables: in efivarfs, in a directory of the same format (disk images, captured variables), or in memory.
//!
//! A file holds the attributes (u32, little-endian) and the data. In efivarfs one write(2) is one SetVariable
//! (Documentation/filesystems/efivarfs.rst): it must contain attributes and data at once, it replaces the whole
//! variable, and when it returns, the variable is stored. In any other directory a rename has the same effect.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nix::sys::statfs::{FsType, statfs};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use super::files::replace;
use crate::efi::{Name, Nvram, SetVariable, Variable};
use crate::error::{Error, Result};

/// Mount point of efivarfs on Linux.
pub const EFIVARS: &str = "/sys/firmware/efi/efivars";

/// EFIVARFS_MAGIC of linux/magic.h.
const EFIVARFS: FsType = FsType(0xde5e_81e4);
/// Largest variable that is read, in bytes; a machine has some 64 KiB for all its variables.
const LIMIT: u64 = 64 << 10;

/// The EFI variables of one machine.
pub trait Variables: Send + Sync {
    /// Reads the variables that decide what boots.
    ///
    /// # Errors
    /// [`Error::NoEfi`], [`Error::EfiRead`].
    fn read(&self) -> Result<Nvram>;

    /// Performs one SetVariable: atomic, durable on return; `None` deletes the variable.
    ///
    /// # Errors
    /// [`Error::EfiWrite`].
    fn set(&self, name: &Name, value: Option<&Variable>) -> Result<()>;
}

/// Runs the steps, and reads all variables again after each: some UEFI implementations have refused or forgotten writes
/// that the kernel reported as done.
///
/// # Errors
/// [`Error::EfiWrite`] with the step that failed. The steps before it have been made; it is safe to stop between steps.
pub fn run(variables: &dyn Variables, steps: &[SetVariable]) -> Result<()> {
    for step in steps {
        variables.set(&step.name, step.value.as_ref())?;
        if variables.read()?.get(&step.name) != step.value.as_ref() {
            let source = io::Error::other("it does not read back as written");
            return Err(Error::EfiWrite { name: step.name.to_string(), source });
        }
    }
    Ok(())
}

/// A directory with one file per variable.
pub struct Directory {
    path: PathBuf,
}

impl Directory {
    /// The variables in that directory. Nothing is opened before they are read.
    pub const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::NoEfi { dir: self.path.clone(), problem: source.to_string() }
    }

    /// Whether the directory is an efivarfs.
    fn is_firmware(&self) -> bool {
        statfs(&self.path).is_ok_and(|found| found.filesystem_type() == EFIVARFS)
    }
}

impl Variables for Directory {
    fn read(&self) -> Result<Nvram> {
        let mut found = Vec::new();
        for file in fs::read_dir(&self.path).map_err(|error| self.failed(error))? {
            let file = file.map_err(|error| self.failed(error))?;
            let Some(name) = file.file_name().to_str().and_then(Name::relevant) else { continue };
            let variable =
                load(&file.path()).map_err(|source| Error::EfiRead { name: name.to_string(), source })?;
            found.extend(variable.map(|variable| (name, variable)));
        }
        // A machine that booted by UEFI has some; an empty directory means that efivarfs is not mounted.
        if found.is_empty() {
            let problem = "it holds no boot variables (is efivarfs mounted there?)".to_owned();
            return Err(Error::NoEfi { dir: self.path.clone(), problem });
        }
        Ok(Nvram::new(found))
    }

    fn set(&self, name: &Name, value: Option<&Variable>) -> Result<()> {
        let path = self.path.join(name.as_str());
        let bytes = value.map(|value| [&value.attributes.to_le_bytes()[..], &value.data].concat());
        let done = match bytes {
            _ if self.is_firmware() => set_firmware(&path, bytes.as_deref()),
            Some(bytes) => replace(&self.path, name.as_str(), &bytes, 0o644),
            None => remove(&path).and_then(|()| File::open(&self.path)?.sync_all()),
        };
        done.map_err(|source| Error::EfiWrite { name: name.to_string(), source })
    }
}

/// Reads one variable; `None` if it vanished meanwhile or has no attributes, which efivarfs treats alike.
fn load(path: &Path) -> io::Result<Option<Variable>> {
    let mut bytes = Vec::new();
    match File::open(path).and_then(|file| file.take(LIMIT).read_to_end(&mut bytes)) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    Ok(bytes.split_first_chunk().map(|(attributes, data)| Variable {
        attributes: u32::from_le_bytes(*attributes),
        data: data.to_vec(),
    }))
}

fn set_firmware(path: &Path, bytes: Option<&[u8]>) -> io::Result<()> {
    mutable(path)?;
    let Some(bytes) = bytes else { return remove(path) };
    // Not truncated first and not written in parts: each would be a separate SetVariable.
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match file.write(bytes)? {
        written if written == bytes.len() => Ok(()),
        written => Err(io::Error::new(ErrorKind::WriteZero, format!("{written} of {} bytes", bytes.len()))),
    }
}

/// Clears the immutable flag, by which the kernel protects variables that it does not know: `rm -r` must not brick a machine.
fn mutable(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let flags = ioctl_getflags(&file)?;
    if flags.contains(IFlags::IMMUTABLE) {
        ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Variables in memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryVariables(Mutex<BTreeMap<Name, Variable>>);

impl MemoryVariables {
    /// A store that holds these variables.
    pub fn new(variables: impl IntoIterator<Item = (Name, Variable)>) -> Self {
        Self(Mutex::new(variables.into_iter().collect()))
    }
}

impl Variables for MemoryVariables {
    fn read(&self) -> Result<Nvram> {
        Ok(Nvram::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }

    fn set(&self, name: &Name, value: Option<&Variable>) -> Result<()> {
        let mut variables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match value {
            Some(value) => drop(variables.insert(name.clone(), value.clone())),
            None => drop(variables.remove(name)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_what_it_is_given_and_reads_only_what_matters() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Directory::new(dir.path().to_owned());
        assert_eq!(variables.read().unwrap_err().code(), "UPGRADE_ERROR_NO_EFI");
        fs::write(dir.path().join("Lang-8be4df61-93ca-11d2-aa0d-00e098032b8c"), b"\x07\0\0\0eng\0").unwrap();
        assert_eq!(variables.read().unwrap_err().code(), "UPGRADE_ERROR_NO_EFI");
        let long = Variable { attributes: 7, data: vec![1, 0, 2, 0] };
        let short = Variable { attributes: 7, data: vec![2, 0] };
        for value in [&long, &short, &long] {
            variables.set(&Name::order(), Some(value)).unwrap();
            assert_eq!(variables.read().unwrap().get(&Name::order()), Some(value));
        }
        variables.set(&Name::next(), Some(&short)).unwrap();
        assert_eq!(variables.read().unwrap().next(), Some(2));
        for _ in 0..2 {
            variables.set(&Name::next(), None).unwrap();
            assert_eq!(variables.read().unwrap().next(), None);
        }
        // No attributes: not a variable.
        fs::write(dir.path().join(Name::next().as_str()), b"\x07\0").unwrap();
        assert_eq!(variables.read().unwrap().next(), None);
    }

    /// A UEFI implementation that accepts a write and does not store it.
    struct Forgetful(MemoryVariables);

    impl Variables for Forgetful {
        fn read(&self) -> Result<Nvram> {
            self.0.read()
        }
        fn set(&self, _: &Name, _: Option<&Variable>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_write_that_the_firmware_forgot_is_found() {
        let value = Some(Variable { attributes: 7, data: vec![1, 0] });
        let step = SetVariable { name: Name::next(), value, what: String::new() };
        let variables = Forgetful(MemoryVariables::default());
        let error = run(&variables, std::slice::from_ref(&step)).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_EFI_WRITE");
        run(&variables.0, &[step]).unwrap();
        assert_eq!(variables.0.read().unwrap().next(), Some(1));
    }
}
