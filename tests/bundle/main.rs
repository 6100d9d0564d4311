//! Everything that arrives as bytes from somebody else: bundles, signatures, trust files. A new attack goes to `attacks`, a
//! comparison with a stock tool to `tools`.

#[path = "../harness/mod.rs"]
mod harness;

/// The trust file means what it means to ssh-keygen, line by line.
mod allowed_signers;
/// Bundles that are cut, bent or made to do harm; the functions of the fuzz targets on the corpus.
mod hostile;
mod output;
/// The process that parses has given up its rights before the first byte.
mod sandbox;
/// Bundles against tar, zstd, b3sum, sha256sum and ssh-keygen.
mod tools;
