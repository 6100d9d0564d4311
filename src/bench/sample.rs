//! A synthetic bundle and a scratch directory, if the user names neither bundle nor slot.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::host::load::CpuTime;
use crate::pack::{Destination, PackSpec, pack};
use crate::progress::{Cancel, Silent};
use crate::slot::Layout;
use crate::source::drop_from_cache;
use crate::units::{ByteOffset, MIB};

/// A directory that is removed when this is dropped or, if the process is killed, when the next one is made.
pub struct ScratchDir(PathBuf, File);

/// Prefix of its name, before the process ID.
const SCRATCH: &str = "qstage-bench.";

impl ScratchDir {
    /// Makes one in `parent`, and removes those of ended processes, which are not locked any more.
    ///
    /// # Errors
    /// [`Error::Output`].
    pub fn new(parent: &Path) -> Result<Self> {
        for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Killed between the next two steps: the directory is empty.
            if let Some(pid) = name.strip_prefix('.').and_then(|name| name.strip_prefix(SCRATCH)) {
                if pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists() {
                    let _ = std::fs::remove_dir(entry.path());
                }
                continue;
            }
            let stale =
                name.starts_with(SCRATCH) && File::open(entry.path()).is_ok_and(|dir| dir.try_lock().is_ok());
            if stale {
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
        let path = parent.join(format!("{SCRATCH}{}", std::process::id()));
        let output = |source| Error::Output { path: path.clone(), source };
        // Renamed after it is locked, so that it is never mistaken for a stale one.
        let new = parent.join(format!(".{SCRATCH}{}", std::process::id()));
        std::fs::create_dir(&new).map_err(output)?;
        let lock = File::open(&new).and_then(|dir| {
            dir.try_lock()?;
            std::fs::rename(&new, &path)?;
            Ok(dir)
        });
        match lock {
            Ok(lock) => Ok(Self(path, lock)),
            Err(error) => {
                let _ = std::fs::remove_dir(&new);
                Err(output(error))
            }
        }
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // A failure here has no remedy, and nothing depends on it.
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = self.1.unlock();
    }
}

/// Packs an unsigned bundle of one platform image of `size` bytes that compresses about as well as a root file
/// system: of four mebibytes one is zero, one noise, and two are repeating words. The same bytes every time.
///
/// # Errors
/// Those of [`pack`]; [`Error::Output`].
pub fn synthetic_bundle(scratch: &ScratchDir, size: u64, cancel: &Cancel) -> Result<PathBuf> {
    use std::io::Write as _;
    let (image, bundle) = (scratch.join("image"), scratch.join("bundle.qimg"));
    let output = |source| Error::Output { path: image.clone(), source };
    let mut file = std::io::BufWriter::new(std::fs::File::create(&image).map_err(output)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    // xorshift64 (Marsaglia, "Xorshift RNGs", 2003): reproducible noise without a crate.
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<[u8; 8]> = (0..4096).map(|_| noise().to_le_bytes()).collect();
    let mut chunk = vec![0; MIB as usize];
    for number in 0..size.div_ceil(MIB) {
        cancel.check("making a bundle to measure with")?;
        for piece in chunk.chunks_exact_mut(8) {
            let drawn = noise();
            let value = match number % 4 {
                0 => [0; 8],
                1 => drawn.to_le_bytes(),
                _ => words[(drawn >> 40) as usize % words.len().min(1 << (drawn % 13))],
            };
            piece.copy_from_slice(&value);
        }
        let len = (size - number * MIB).min(MIB) as usize;
        file.write_all(&chunk[..len]).map_err(output)?;
    }
    file.flush().map_err(output)?;
    drop(file);
    let spec = PackSpec {
        product: "bench".to_owned(),
        version: "0".to_owned(),
        min_version: None,
        needs_platform: None,
        epoch: 0,
        created: 0,
        platform: Some(image.clone()),
        software: None,
        firmware: Vec::new(),
        key: None,
        level: 3,
        frame_size: 1 << 20,
        jobs: None,
    };
    pack(&spec, Destination::Replaced(&bundle), &Silent, cancel)?;
    std::fs::remove_file(&image).map_err(output)?;
    Ok(bundle)
}

/// Overwrites a whole device.
///
/// # Errors
/// [`Error::Write`], [`Error::Sync`], [`Error::Interrupted`].
pub fn fill(slot: &dyn BlockDevice, cancel: &Cancel) -> Result<()> {
    let mut noise = AlignedBuf::zeroed(MIB as usize);
    noise.fill(0xa5);
    let mut at = 0;
    while at < slot.len() {
        cancel.check("writing the scratch file")?;
        let part = (slot.len() - at).min(MIB) as usize;
        device::write(slot, "the target", &noise[..part], ByteOffset(at))?;
        at += part as u64;
    }
    device::sync(slot, "the target")
}

/// Loads a file into the page cache.
pub(super) fn warm(path: &Path) -> Result<()> {
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    std::io::copy(&mut file, &mut std::io::sink()).map_err(failed)?;
    Ok(())
}

/// Drops a file from the page cache.
pub(super) fn evict(path: &Path) -> Result<()> {
    drop_from_cache(path).map_err(|source| Error::Open { path: path.to_owned(), source })
}

/// Processor time, in seconds, of reading a file from the page cache in blocks of 1 MiB.
pub(super) fn time_copy(path: &Path) -> Result<f64> {
    use std::io::Read as _;
    warm(path)?;
    let failed = |source| Error::Open { path: path.to_owned(), source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mut block = vec![0xa5; MIB as usize];
    let start = CpuTime::now();
    while file.read(&mut block).map_err(failed)? > 0 {}
    Ok((CpuTime::now() - start).total())
}

/// Changes the start of every frame's place, so that no frame of an earlier run is recognised.
pub(super) fn invalidate(slot: &dyn BlockDevice, layout: &Layout) -> Result<()> {
    let mut noise = AlignedBuf::zeroed(4096);
    noise.fill(0xa5);
    for place in &layout.places {
        let mut at = place.at;
        while at < place.at + place.len {
            device::write(slot, "the target", &noise, ByteOffset(at))?;
            at += MIB / 4;
        }
    }
    device::sync(slot, "the target")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remains_of_a_killed_run_are_removed_but_not_those_in_use() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(format!("{SCRATCH}4194305"));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("image"), "x").unwrap();
        let used = parent.path().join(format!("{SCRATCH}4194306"));
        std::fs::create_dir(&used).unwrap();
        let lock = File::open(&used).unwrap();
        lock.try_lock().unwrap();
        let scratch = ScratchDir::new(parent.path()).unwrap();
        assert!(!left.exists() && used.exists() && scratch.join("").exists());
        drop(scratch);
        drop(lock);
        drop(ScratchDir::new(parent.path()).unwrap());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}
