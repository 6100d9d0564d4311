//! Untrusted input: bundles, signatures, trust files. A new attack goes to `attacks`, a comparison with a stock tool to
//! `tools`.

#[path = "../harness/mod.rs"]
mod harness;

/// The trust file has the same meaning as for ssh-keygen, line by line.
mod allowed_signers;
/// Truncated, damaged and malicious bundles and deltas; the fuzzed functions on the corpus.
mod hostile;
/// Output files of `pack`, `sign` and `delta`: no input is overwritten.
mod output;
/// The process that parses has dropped its rights before the first byte.
mod sandbox;
/// Bundles against tar, zstd, b3sum, sha256sum and ssh-keygen.
mod tools;
