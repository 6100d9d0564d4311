//! Transfers that complete or fail, over calls that may be interrupted or cut short.

use std::io;

use crate::units::BlockSize;

/// Repeats `call` while a signal interrupts it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Fills `buf` from `at` by `read(part, at)`.
pub(crate) fn read_all(
    buf: &mut [u8],
    at: u64,
    block: BlockSize,
    mut read: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let got = retry(|| read(&mut buf[done..], at + done as u64))?;
        done = advance(done, got, buf.len(), block, io::ErrorKind::UnexpectedEof)?;
    }
    Ok(())
}

/// Writes `buf` to `at` by `write(part, at)`.
pub(crate) fn write_all(
    buf: &[u8],
    at: u64,
    block: BlockSize,
    mut write: impl FnMut(&[u8], u64) -> io::Result<usize>,
) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        let got = retry(|| write(&buf[done..], at + done as u64))?;
        done = advance(done, got, buf.len(), block, io::ErrorKind::WriteZero)?;
    }
    Ok(())
}

/// Progress of a transfer after `got` more bytes. Zero would loop for ever; the unaligned rest of a short transfer
/// would fail with `EINVAL`, which would hide that the transfer was cut off.
fn advance(done: usize, got: usize, len: usize, block: BlockSize, ended: io::ErrorKind) -> io::Result<usize> {
    let now = done + got.min(len - done);
    if got == 0 || (now < len && !now.is_multiple_of(block.bytes() as usize)) {
        return Err(io::Error::new(
            ended,
            format!("the device ended the transfer after {now} of {len} bytes"),
        ));
    }
    Ok(now)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const B: BlockSize = BlockSize::B512;

    proptest! {
        /// However a device cuts and interrupts a transfer, every byte arrives at its place exactly once; if it
        /// cuts inside a block or stops, the transfer fails.
        #[test]
        fn short_transfers_are_completed_or_refused(script in proptest::collection::vec(0usize..6, 1..12), blocks in 1usize..8) {
            let data: Vec<u8> = (0..blocks * 512).map(|i| (i % 251) as u8).collect();
            let mut medium = vec![0u8; 4096 + data.len()];
            let mut steps = script.iter().copied();
            let mut spoilt = false;
            let result = write_all(&data, 4096, B, |part, at| {
                let got = match steps.next() {
                    Some(0) => return Err(io::ErrorKind::Interrupted.into()),
                    Some(1) => 0,
                    Some(2) => part.len().min(100),
                    Some(n) => part.len().min((n - 2) * 512),
                    None => part.len(),
                };
                spoilt |= got < part.len() && (got == 0 || !got.is_multiple_of(512));
                medium[at as usize..at as usize + got].copy_from_slice(&part[..got]);
                Ok(got)
            });
            prop_assert_eq!(result.is_err(), spoilt);
            if !spoilt {
                prop_assert_eq!(&medium[4096..], &data[..]);
            }
            let mut back = vec![0u8; data.len()];
            let mut steps = script.iter().copied();
            let mut spoilt = false;
            let result = read_all(&mut back, 0, B, |part, at| {
                let got = match steps.next() {
                    Some(0) => return Err(io::ErrorKind::Interrupted.into()),
                    Some(1) => 0,
                    Some(n) => part.len().min((n - 1) * 300),
                    None => part.len(),
                };
                spoilt |= got == 0 || (got < part.len() && !(at as usize + got).is_multiple_of(512));
                part[..got].copy_from_slice(&data[at as usize..at as usize + got]);
                Ok(got)
            });
            prop_assert_eq!(result.is_err(), spoilt);
            if !spoilt {
                prop_assert_eq!(back, data);
            }
        }
    }

    #[test]
    fn other_errors_end_the_transfer() {
        let mut calls = 0;
        let result = write_all(&[0; 512], 0, B, |_, _| {
            calls += 1;
            Err(io::Error::from_raw_os_error(nix::libc::EIO))
        });
        assert_eq!((result.unwrap_err().raw_os_error(), calls), (Some(nix::libc::EIO), 1));
    }
}
