//! Direct I/O on real loop devices and files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests are tests")]

use crate::harness::loops;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use loops::{Loop, Mount, cached, is_root, run, scratch, sparse, text};
use qstage::device::{AlignedBuf, BlockDevice, Direct, Mode};
use qstage::error::Error;
use qstage::units::{BlockSize, ByteOffset};

const MIB: usize = 1 << 20;

fn pattern(len: usize, seed: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(len);
    buf.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 512) as u8 ^ seed | 1);
    buf
}

#[test]
fn transfers_are_aligned_or_refused_on_both_sector_sizes() {
    if !is_root() {
        return;
    }
    for (sector, block) in [(512, BlockSize::B512), (4096, BlockSize::B4096)] {
        let dir = scratch();
        let image = sparse(&dir.path().join("disk"), 8 * MIB as u64);
        let disk = Loop::new(&image, sector, &[]);
        // The size for files is not asked of a device.
        let device = Direct::open(&disk.0, Mode::Claim, BlockSize::B512).unwrap();
        assert_eq!((device.len(), device.block_size()), (8 * MIB as u64, block));
        assert!(device.physical_block_size() >= sector);
        let unit = sector as usize;
        let data = pattern(MIB + unit, 7);
        device.write_at(&data, ByteOffset(3 * u64::from(sector))).unwrap();
        device.sync().unwrap();
        // The loop device has written to the file; read that, not the device.
        let mut back = vec![0; data.len()];
        File::open(&image).unwrap().read_exact_at(&mut back, 3 * u64::from(sector)).unwrap();
        assert_eq!(back, data[..]);

        let mut buf = AlignedBuf::zeroed(2 * unit);
        let before = fs::read(&image).unwrap();
        let end = device.len();
        let half = unit as u64 / 2;
        for (range, at, kind) in [
            (0..unit, half, ErrorKind::InvalidInput),
            (0..unit / 2, 0, ErrorKind::InvalidInput),
            (1..unit + 1, 0, ErrorKind::InvalidInput),
            (512..unit + 512, 0, ErrorKind::InvalidInput),
            (0..unit, end, ErrorKind::UnexpectedEof),
            (0..2 * unit, end - unit as u64, ErrorKind::UnexpectedEof),
            (0..unit, u64::MAX - unit as u64 + 1, ErrorKind::UnexpectedEof),
        ] {
            assert_eq!(
                device.write_at(&buf[range.clone()], ByteOffset(at)).unwrap_err().kind(),
                kind,
                "{at}"
            );
            assert_eq!(device.read_at(&mut buf[range], ByteOffset(at)).unwrap_err().kind(), kind, "{at}");
        }
        assert_eq!(device.write_zeroes(ByteOffset(half), 4096).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(device.write_zeroes(ByteOffset(end), 4096).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert_eq!(fs::read(&image).unwrap(), before, "a refused write changed something");

        device.write_zeroes(ByteOffset(4 * u64::from(sector)), MIB as u64 - 2 * u64::from(sector)).unwrap();
        device.sync().unwrap();
        let after = fs::read(&image).unwrap();
        let zeroed = 4 * unit..MIB + 2 * unit;
        assert!(after[zeroed.clone()].iter().all(|&byte| byte == 0));
        assert_eq!(after[..zeroed.start], before[..zeroed.start]);
        assert_eq!(after[zeroed.end..], before[zeroed.end..]);
    }
}

/// A loop device over tmpfs takes the first request for zeroes, learns that its file cannot, and refuses the
/// second.
#[test]
fn zeroes_arrive_where_the_device_changes_its_mind() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = sparse(&dir.path().join("disk"), 8 * MIB as u64);
    let disk = Loop::new(&image, 512, &[]);
    let device = Direct::open(&disk.0, Mode::Write, BlockSize::B512).unwrap();
    device.write_at(&pattern(8 * MIB, 3), ByteOffset(0)).unwrap();
    for part in 0..4 {
        device.write_zeroes(ByteOffset(part * 2 * MIB as u64), MIB as u64).unwrap();
    }
    device.sync().unwrap();
    let after = fs::read(&image).unwrap();
    assert!(after.iter().enumerate().all(|(i, &byte)| (byte == 0) == ((i / MIB).is_multiple_of(2))));
}

#[test]
fn a_read_comes_from_the_medium_and_not_from_the_page_cache() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let image = sparse(&dir.path().join("disk"), MIB as u64);
    let disk = Loop::new(&image, 512, &[]);
    // Held open, so that the cache of the device node lives on.
    let buffered = File::open(&disk.0).unwrap();
    let mut seen = vec![0; 4096];
    buffered.read_exact_at(&mut seen, 8192).unwrap();
    // The medium changes beneath the cache: what a lost or misdirected write amounts to.
    File::options().write(true).open(&image).unwrap().write_all_at(&[9; 4096], 8192).unwrap();
    buffered.read_exact_at(&mut seen, 8192).unwrap();
    assert_eq!(seen, [0; 4096], "the premise: the page cache is stale");
    let device = Direct::open(&disk.0, Mode::Read, BlockSize::B512).unwrap();
    let mut buf = AlignedBuf::zeroed(4096);
    device.read_at(&mut buf, ByteOffset(8192)).unwrap();
    assert_eq!(buf[..], [9; 4096]);
}

#[test]
fn no_page_of_a_file_is_cached_by_writing_or_reading_it() {
    let dir = scratch();
    let image = sparse(&dir.path().join("image"), 8 * MIB as u64);
    let device = Direct::open(&image, Mode::Write, BlockSize::B512).unwrap();
    let data = pattern(8 * MIB, 1);
    device.write_at(&data, ByteOffset(0)).unwrap();
    device.sync().unwrap();
    let mut back = AlignedBuf::zeroed(data.len());
    device.read_at(&mut back, ByteOffset(0)).unwrap();
    assert_eq!(back[..], data[..]);
    assert_eq!(cached(&image), 0);
    // The other path sees the same bytes, and the judge sees the difference.
    assert_eq!(fs::read(&image).unwrap(), data[..]);
    assert_eq!(cached(&image), 8 * MIB as u64);
}

#[test]
fn a_read_only_disk_is_called_so() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let disk = Loop::new(&sparse(&dir.path().join("disk"), MIB as u64), 512, &["--read-only"]);
    // Linux lets it be opened for writing.
    File::options().write(true).open(&disk.0).unwrap();
    let error = Direct::open(&disk.0, Mode::Write, BlockSize::B512).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    Direct::open(&disk.0, Mode::Read, BlockSize::B512).unwrap();
}

/// A file system on a disk with 4096-byte sectors does direct I/O in units of 4096 bytes.
#[test]
fn an_image_with_smaller_sectors_than_its_file_system_is_refused_with_a_way_out() {
    if !is_root() {
        return;
    }
    let dir = scratch();
    let disk = Loop::new(&sparse(&dir.path().join("disk"), 64 * MIB as u64), 4096, &[]);
    run("mkfs.ext4", &["-q", "-b", "4096", text(&disk.0)]);
    let at = dir.path().join("mnt");
    let mount = Mount::new(&disk.0, &at, "rw");
    let image = sparse(&at.join("image"), 16 * MIB as u64);
    let full = at.join("full");
    fs::write(&full, [1; 8192]).unwrap();
    for file in [&image, &full] {
        match Direct::open(file, Mode::Write, BlockSize::B512) {
            Err(Error::DirectIoUnit { sector: 512, unit: 4096, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let device = Direct::open(&image, Mode::Write, BlockSize::B4096).unwrap();
    device.write_at(&pattern(4096, 1), ByteOffset(4096)).unwrap();
    drop(device);
    // The way out that the message names.
    let inner = Loop::new(&image, 512, &[]);
    let device = Direct::open(&inner.0, Mode::Write, BlockSize::B4096).unwrap();
    assert_eq!(device.block_size(), BlockSize::B512);
    device.write_at(&pattern(512, 2), ByteOffset(512)).unwrap();
    device.sync().unwrap();
    drop((device, inner));
    // And the same file once the file system can no longer be written.
    run("mount", &["-o", "remount,ro", text(&at)]);
    let error = Direct::open(&image, Mode::Write, BlockSize::B4096).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    drop(mount);
}
