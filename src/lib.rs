//! `qstage` stages signed `.qimg` upgrade bundles into the inactive A/B slot of a GPT disk and switches to them in one
//! power-cut-safe write.
//!
//! ```text
//!   .qimg file, pipe, URL ───▶ source ──▶ bundle: bounds, signature, index ──▶ feed of frames
//!                                                                               │
//!        ┌──────────────────────────────────────────────────────────────────────┘
//!        ▼
//!   stage: workers decompress, verify, write O_DIRECT ──▶ barrier ──▶ read back ──▶ slot record
//!        │                                                                            │
//!        ▼                                                                            ▼
//!   boot: table in, table out ──▶ gpt::plan: writes and barriers ──▶ commit: apply, re-read, second reader
//! ```
//!
//! The manual is in [`manual`]. Modules by layer; each imports only modules of lower layers.
//!
//! | layer | modules |
//! |---|---|
//! | shell | [`cli`]: arguments, rendering, exit codes; `config`: the configuration file; [`service`]: the same verbs over REST |
//! | helpers | [`container`]: runs the software image, swaps it for another, swaps back; [`mod@bench`]: measurements; [`doctor`]: checks of the setup of a machine |
//! | verbs | [`engine`]: plan, prepare, commit, mark-good, roll-back, cancel, status, slots, scrub; [`init`], [`pack`], [`mod@delta`]: files and blank disks; [`selector`]: the choice of the slot in an initramfs |
//! | doing | [`stage`]: slots; [`commit`]: the partition table; [`host`]: disks and partitions of the kernel, locks, journal; [`source`]: files, pipes, web servers |
//! | storage | [`device`]: the one trait for devices, O_DIRECT, buffers |
//! | pure | [`cluster`]: coordination of nodes; [`bundle`]: the format; [`gpt`]: the table; [`slot`]: the content of a slot; [`boot`]: boot flags; [`efi`]: the same by EFI variables; [`state`]: states and reports |
//! | ground | [`sandbox`]: dropping privileges; [`reloaded`]: files that are replaced meanwhile; [`error`], [`units`], [`version`], [`progress`], [`workers`] |
//!
//! # Example
//!
//! `examples/upgrade_image.rs`, a whole upgrade of an image file; `cargo run --example upgrade_image` runs it without root:
//!
//! ```no_run
#![doc = include_str!("../examples/upgrade_image.rs")]
//! ```

// No input, disk, network or other process may be able to end the program by a panic. Tests may.
#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bench;
pub mod boot;
pub mod bundle;
pub mod cli;
pub mod cluster;
pub mod commit;
pub(crate) mod config;
pub mod container;
pub mod delta;
pub mod device;
pub mod doctor;
pub mod efi;
pub mod engine;
pub mod error;
pub mod gpt;
pub mod host;
pub mod init;
pub mod manual;
pub mod pack;
pub mod progress;
pub mod reloaded;
pub mod sandbox;
pub mod selector;
pub mod service;
pub mod slot;
pub mod source;
pub mod stage;
pub mod state;
pub mod units;
pub mod version;
pub mod workers;

pub use bundle::{Bundle, Source, Trust};
pub use engine::{Engine, Policy, PrepareOptions};
pub use error::{Error, Result};
