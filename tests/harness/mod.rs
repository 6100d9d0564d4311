//! Shared code of the test programs: machines to upgrade, disks with power cuts, independent readers, a model of UEFI. Each
//! program declares this directory as one module; it contains no tests.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "shared helpers of tests; each house uses some of them"
)]

/// A browser without a window.
pub mod browser;
/// A clock that stands still while the machine does.
pub mod clock;
/// Machines with containers.
pub mod containers;
/// Programs that end with their test, and load for the machine.
pub mod load;
/// Loop devices and mounts that are removed afterwards.
pub mod loops;
/// A machine on a disk image, driven by the command line.
pub mod machine;
/// A disk that hangs and fails on demand.
pub mod nbd;
/// The page of the service in that browser.
pub mod page;
/// Ports that only their test uses.
pub mod ports;
/// Scenes, recorder and oracles of the power-cut proofs.
pub mod proof;
/// A service, and its official client.
pub mod server;
/// GPT disks, and readers of them that share no code with the product.
pub mod tables;
/// A file system that fills up and has room again.
pub mod tiny_disk;
/// A model of UEFI firmware.
pub mod uefi;
/// Web servers, proxies and links.
pub mod web;
