//! The list of errors: for each variant its facts, class, code and message, each written here and nowhere else.

use std::io;
use std::path::PathBuf;

use super::Class;
use super::define::errors;
use super::entry::ErrorEntry;
use super::remedy::{self, Remedy, WithRemedy};
use crate::units::{Blake3, Downtime, Group, Guid, Sha256, Slot};

errors! {
    // ---- Internal ----
    /// An impossible state; a defect of qstage.
    Internal { what: String } => Internal, "INTERNAL", ("internal error: {what}; please report this");

    /// The process of a prepare ended without a result.
    Worker { what: String, problem: String } => Internal, "WORKER",
        ("the process for {what} {problem}; nothing that runs was touched, run it again to go on");
    /// The system refuses to start a thread.
    NoThread { what: String, source: io::Error } => Internal, "NO_THREAD",
        ("no thread for {what}: {source}; raise the limit of processes (pids.max of the cgroup, ulimit -u) or end others");
    /// A service answered with an error that this qstage does not know, or failed while it was being watched.
    Remote { code: String, class: Class, message: String } => Internal, "REMOTE", ("{message}");

    // ---- Usage ----
    /// The configuration file is unreadable or invalid.
    Config { path: PathBuf, problem: String } => Usage, "CONFIG",
        ("configuration {}: {problem}", .path.display());
    /// An argument is invalid.
    Argument { what: String, problem: String } => Usage, "ARGUMENT", ("{what}: {problem}");

    /// A request to the service is malformed.
    BadRequest { problem: String } => Usage, "BAD_REQUEST", ("{problem}");
    /// The service has no endpoint at this path, or none for this method.
    NoSuchEndpoint { what: String } => Usage, "NO_SUCH_ENDPOINT", ("{what}; see /v1/qstage/openapi.json");
    /// A request names an unknown node.
    NoSuchNode { node: String } => Usage, "NO_SUCH_NODE", ("there is no node '{node}'; 'qstage cluster status' lists the nodes, a single node has number 1");
    /// A request concerns a node with another address.
    ElsewhereNode { node: u64, address: String } => Usage, "ELSEWHERE_NODE",
        ("that is for node {node} itself; send the request to {address}");
    /// A single-node operation was requested on a member of a cluster.
    ClusterMember { what: String, remedy: &'static str } => Usage, "CLUSTER_MEMBER",
        ("{what} is not for one member of a cluster alone; {remedy}");
    /// A cluster operation was requested on a single node.
    NotACluster { what: String } => Usage, "NOT_A_CLUSTER",
        ("{what} needs a cluster; this is a single node, see [cluster] in its configuration, then 'qstage cluster join'");

    // ---- Bundle ----
    /// The bundle ends early.
    Truncated { what: String, at: u64 } => Bundle, "BUNDLE_TRUNCATED",
        ("the bundle ends at byte {at}, within {what}; transfer it again");
    /// There are bytes after the end of the archive.
    TrailingBytes { at: u64 } => Bundle, "BUNDLE_TRAILING_BYTES",
        ("the bundle continues after its end at byte {at}: it was changed after packing; transfer it again");
    /// A tar header differs from the one that the manifest implies.
    TarHeader { member: String, at: u64, problem: String } => Bundle, "BUNDLE_TAR_HEADER",
        ("tar header of {member} at byte {at}: {problem}");
    /// A limit that is checked before any allocation was exceeded.
    TooLarge { what: String, limit: u64, got: u64 } => Bundle, "BUNDLE_LIMIT",
        ("{what} is {got}, the limit is {limit}");
    /// The manifest cannot be parsed or is inconsistent.
    Manifest { problem: String } => Bundle, "BUNDLE_MANIFEST", ("manifest.json: {problem}");
    /// The bundle's format version is unknown.
    FormatVersion { got: u64, known: u64 } => Bundle, "BUNDLE_FORMAT_VERSION",
        ("the bundle has format version {got}, this qstage knows {known}; use a qstage that knows it");
    /// The hash of the index is not that in the manifest.
    IndexDigest { expected: Blake3, got: Blake3 } => Bundle, "BUNDLE_INDEX_DIGEST",
        ("index.bin has BLAKE3 {got}, the manifest says {expected}; transfer the bundle again");
    /// The index contradicts the manifest.
    Index { payload: String, problem: String } => Bundle, "BUNDLE_INDEX", ("index.bin, {payload}: {problem}");
    /// A frame cannot be decompressed to the size in the manifest.
    Frame { payload: String, frame: u64, at: u64, problem: String } => Bundle, "BUNDLE_FRAME",
        ("{payload}, frame {frame} (image offset {at}): {problem}; transfer the bundle again");
    /// The hash of a frame is not its chaining value in the index.
    FrameDigest { payload: String, frame: u64, at: u64, expected: Blake3, got: Blake3 } => Bundle,
        "BUNDLE_FRAME_DIGEST",
        ("{payload}, frame {frame} (image offset {at}): BLAKE3 chaining value {got}, the index says {expected}; transfer the bundle again");
    /// `delta.bin` is malformed or for another release.
    Delta { problem: String } => Bundle, "DELTA",
        ("delta.bin: {problem}; make the delta again, or use the whole bundle");
    /// A frame of a delta cannot be made, and no whole bundle is known to take it from.
    DeltaFrame { payload: String, frame: u64, at: u64, problem: String } => Bundle, "DELTA_FRAME",
        ("{payload}, frame {frame} (image offset {at}) cannot be made from the delta: {problem}; give the whole bundle too (--bundle), or prepare that one (a URL: --no-delta)");
    /// The SHA-256 of a whole image is not that in the manifest, although every frame has the right BLAKE3.
    ImageDigest { payload: String, expected: Sha256, got: Sha256 } => Bundle, "BUNDLE_IMAGE_DIGEST",
        ("{payload}: SHA-256 {got}, the manifest says {expected}; the bundle was packed wrongly");

    // ---- Trust ----
    /// The bundle carries no signature.
    Unsigned => Trust, "UNSIGNED", ("the bundle is not signed; sign it with 'qstage sign'");
    /// The signature member is not a sequence of SSH signatures in their canonical encoding.
    SignatureFormat { problem: String } => Trust, "SIGNATURE_FORMAT", ("manifest.json.sig: {problem}");
    /// No signature is valid under a trusted key.
    Untrusted { path: PathBuf, signers: String } => Trust, "UNTRUSTED",
        ("no signature is valid under a key of {}: {signers}; add the key to that file if you trust it", .path.display());
    /// Fewer trusted keys have signed than are required.
    TooFewSigners { path: PathBuf, found: usize, needed: usize, signers: String } => Trust, "TOO_FEW_SIGNERS",
        ("signed by {found} of {needed} different keys of {} that 'threshold' requires: {signers}; have it signed by another one ('qstage sign')", .path.display());
    /// A trusted key made the signature, but over other bytes: the manifest was altered.
    BadSignature { key: String } => Trust, "BAD_SIGNATURE",
        ("the signature by trusted key {key} does not match manifest.json: one of them was changed; transfer the bundle again");
    /// The `allowed_signers` file cannot be read or holds no usable key.
    TrustFile { path: PathBuf, problem: String } => Trust, "TRUST_FILE",
        ("trusted keys {}: {problem}", .path.display());
    /// A signature could not be made.
    Signing { key: PathBuf, problem: String } => Trust, "SIGNING", ("signing with {}: {problem}", .key.display());

    // ---- Access ----
    /// A request has no token, or an unknown one.
    Unauthenticated { problem: String } => Access, "UNAUTHENTICATED",
        ("{problem}; 'qstage token new' on that machine makes a token");
    /// The client of a request lacks the permission for it.
    Forbidden { who: String } => Access, "FORBIDDEN",
        ("{who} may only read; changes need a token with the privilege 'write', or root on the Unix socket");

    // ---- Refused ----
    /// The bundle is for another product.
    Product { bundle: String, machine: String } => Refused, "PRODUCT",
        ("the bundle is for product '{bundle}', this machine is '{machine}'");
    /// Software would run beside a platform that it is not made for, or a factory install got no platform.
    PlatformNeeded { version: String, needed: String, problem: String } => Refused, "PLATFORM_NEEDED",
        ("{version} is software alone, which needs {needed}, but {problem}; install a bundle with that platform");
    /// The bundle is older than the running release.
    Downgrade { bundle: String, running: String } => Refused, "DOWNGRADE",
        ("the bundle has version {bundle}, older than the running {running}; --allow-downgrade overrides");
    /// The bundle has the version of the running release, but other content.
    SameVersion { version: String } => Refused, "SAME_VERSION",
        ("the bundle has version {version}, which runs already with other content; --allow-downgrade overrides");
    /// The anti-rollback epoch of a release is lower than that of the running one, or than the highest that was
    /// ever marked good here.
    Epoch { version: String, epoch: u64, floor: u64 } => Refused, "EPOCH",
        ("{version} has epoch {epoch}, lower than {floor}, which has been good on this machine: a release with a known hole; --allow-epoch-rollback overrides");
    /// The record of the running slot is damaged or missing, so that no rule can be checked against it.
    RunningUnknown { partition: String, found: String } => Refused, "RUNNING_UNKNOWN",
        ("the running release in {partition} cannot be determined, nor its anti-rollback epoch: {found}; --allow-epoch-rollback overrides");
    /// The manifest of the bundle is not the requested one.
    OtherBundle { expected: String, found: String } => Refused, "OTHER_BUNDLE",
        ("the bundle has manifest {found}, not {expected}: it was replaced after it was planned; plan it again");
    /// The running version is too old for a direct upgrade.
    MinVersion { running: String, needed: String } => Refused, "MIN_VERSION",
        ("the running version {running} is below {needed}, the oldest that may install this bundle; install a release between them first");
    /// The machine already runs exactly the content of the bundle.
    AlreadyInstalled { version: String } => Refused, "ALREADY_INSTALLED",
        ("nothing to do: the content of bundle {version} already runs");
    /// Another qstage holds the lock of the disk.
    Busy { disk: String, holder: String } => Refused, "BUSY",
        ("{disk} is locked by {holder}; wait for it to end");
    /// A delta has another base than the running image.
    DeltaBase { payload: String, expected: Blake3, running: String } => Refused, "DELTA_BASE",
        ("the delta of {payload} starts from the image with BLAKE3 {expected}, but {running}; use the delta from that one, or the whole bundle");
    /// The base slot of a delta is writable, so it could change while it is read.
    BaseWritable { partition: String, by: String } => Refused, "BASE_WRITABLE",
        ("{partition}, which the delta starts from, is writable ({by}) and no longer what was installed; use the whole bundle");
    /// More has to come over the network than may. With a delta from what runs beside the bundle less has to.
    DownloadLimit { needed: u64, limit: u64, remedy: &'static str } => Refused, "DOWNLOAD_LIMIT",
        ("{needed} bytes have to come over the network, {limit} may (--max-download, or 'max_download' in [network]); {remedy}");
    /// A delta saves too little.
    DeltaGain { delta: u64, bundle: u64 } => Refused, "DELTA_GAIN",
        ("the delta has {delta} bytes, the bundle {bundle}: it saves less than a fifth; ship the bundle, or insist with --force");
    /// The target slot is mounted or claimed.
    SlotInUse { partition: String, by: String } => Refused, "SLOT_IN_USE",
        ("{partition} is in use: {by}; it must be idle to be written");
    /// It cannot be determined whether the target slot is in use.
    UseUnknown { partition: String, problem: String } => Refused, "USE_UNKNOWN",
        ("cannot determine whether {partition} is in use: {problem}; make that visible (mount -t sysfs sysfs /sys; run outside of the container), or give --assume-unused if nothing uses it");
    /// The running boot has not been marked good: writing would destroy the only good fallback.
    OnTrial { partitions: String, fallback: String, remedy: Remedy } => Refused, "ON_TRIAL",
        ("on trial: {partitions}; the only good fallback is {fallback}; {remedy}");
    /// A switch between good slots waits for its reboot: the slot that is selected next would be overwritten.
    SwitchPending { slot: Slot, remedy: Remedy } => Refused, "SWITCH_PENDING",
        ("slot {slot} is selected to boot next and would be overwritten; {remedy}");
    /// It cannot be determined which slot is running.
    BootedUnknown { disk: String, problem: String } => Refused, "BOOTED_UNKNOWN",
        ("{disk}: cannot determine which slot is running: {problem}; name it with --booted a or --booted b, or have the boot loader or the initramfs put qstage.partuuid=GUID (or root=PARTUUID=GUID) of that slot on the kernel command line");
    /// There is nothing prepared to commit.
    NotPrepared { problem: String, remedy: Remedy } => Refused, "NOT_PREPARED", ("nothing to commit: {problem}; {remedy}");
    /// The same bundle has already failed its trial on this machine.
    FailedBefore { version: String, partition: String, why: String } => Refused, "FAILED_BEFORE",
        ("{version} has failed its trial in {partition} ({why}); install another release, or try it again with --retry");
    /// A partition that is no slot carries the legacy boot flag.
    ForeignBootFlag { disk: String, number: u32, name: String } => Refused, "FOREIGN_BOOT_FLAG",
        ("{disk}: partition {number} '{name}' carries the legacy boot flag too, and a boot loader that finds two starts none; clear it: sgdisk --attributes={number}:clear:2");
    /// No trial is running, so there is no failure to record.
    NoTrial => Refused, "NO_TRIAL", ("the running release is not on trial");
    /// A trial by kexec is not possible, or not useful.
    KexecTrial { problem: String } => Refused, "KEXEC_TRIAL", ("--trial kexec: {problem}; commit without it");
    /// There is nothing to mark good.
    NothingToMark { problem: String } => Refused, "NOTHING_TO_MARK", ("nothing to mark good: {problem}");
    /// There is no slot to go back to.
    NoFallback { problem: String } => Refused, "NO_FALLBACK", ("cannot roll back: {problem}");
    /// There is no upgrade to cancel.
    NothingToCancel { problem: String } => Refused, "NOTHING_TO_CANCEL", ("nothing to cancel: {problem}");
    /// The disk to be laid out is not blank.
    NotBlank { disk: String, found: String } => Refused, "NOT_BLANK",
        ("{disk} holds {found}; --force destroys it");

    /// The output file exists already.
    OutputExists { path: PathBuf } => Refused, "OUTPUT_EXISTS",
        ("{} exists; --force replaces it", .path.display());

    /// A selector was run although the boot loader or the firmware selects.
    SelectorUnused { flag: &'static str } => Refused, "SELECTOR_UNUSED",
        ("boot_flag is '{flag}': its boot loader chooses the slot before the initramfs runs; a selector is not used");
    /// The prepared upgrade changes the platform, which no container swap can do.
    NeedsReboot => Refused, "NEEDS_REBOOT",
        ("the prepared bundle brings another platform; commit it and reboot");
    /// A container is needed, but none is configured.
    NoContainer => Refused, "NO_CONTAINER",
        ("no container is configured; set [container] in the configuration");
    /// Another bundle is prepared, and would be lost.
    OtherPrepared { version: String } => Refused, "OTHER_PREPARED",
        ("{version} is prepared and would be discarded; commit it, cancel it (POST /v1/qstage/cancel, or target IDLE by v1), or prepare with ?replace=true");
    /// The service is busy with an upgrade.
    UpgradeBusy { doing: String } => Refused, "UPGRADE_BUSY",
        ("an upgrade is under way ({doing}); {}", remedy::of_busy(.doing));
    /// The service has as many requests as it takes, or ends.
    ServiceBusy { problem: String } => Refused, "SERVICE_BUSY", ("{problem}; try again in some seconds");
    /// An upgrade is blocked now.
    Blocked { reason: String } => Refused, "BLOCKED", ("{reason}");
    /// The configuration of the service lacks a key for this.
    NotConfigured { what: String, key: String } => Refused, "NOT_CONFIGURED",
        ("the service cannot {what}: set '{key}' in its configuration");
    /// The waiting period since the boot or the last upgrade is not over.
    Waiting { left: u64 } => Refused, "WAITING",
        ("the waiting period after the start of the machine and after an upgrade lasts for another {left} s; 'waiting_period' in the configuration sets it");
    /// There is no rolling reboot to pause or resume.
    NoReboot => Refused, "NO_REBOOT", ("no rolling reboot is under way");

    /// This node may not join the cluster, or leave it.
    Membership { problem: String } => Refused, "MEMBERSHIP", ("{problem}");
    /// A node was to mark good by itself what all nodes of its cluster decide on together.
    ClusterVerdict => Refused, "CLUSTER_VERDICT",
        ("the service marks a release on trial good, after the health checks and by decision of the cluster; see 'qstage cluster status'. If the cluster is gone for good, remove [cluster] from the configuration");
    /// A key of the cluster has content that this program does not understand.
    ClusterData { key: String, problem: String } => Refused, "CLUSTER_DATA",
        ("etcd key '{key}' holds no value of this qstage ({problem}); nothing proceeds until all nodes run one version of qstage and an operator has corrected that key");

    /// etcd holds an older state than this node has seen, or is another etcd.
    ClusterRestored { what: String } => Refused, "CLUSTER_RESTORED",
        ("{what}, as after the restore of a snapshot, and an upgrade or a reboot is in progress by one of the two states; nothing proceeds. Compare the nodes with 'qstage cluster status', then restart the service on every node to accept the state of etcd");

    // ---- Disk ----
    /// No software slot holds startable software.
    NoSoftware { problem: String } => Disk, "NO_SOFTWARE", ("there is no software to run: {problem}; run 'qstage prepare'");
    /// No disk has slots.
    NoDisk { read: String } => Disk, "NO_DISK",
        ("no disk holds partitions named 'platform_a' and 'platform_b' (looked at: {read}); name the disk with --disk");
    /// There is no GPT on the disk.
    NotGpt { disk: String } => Disk, "NOT_GPT",
        ("{disk} has no GUID partition table; lay one out with 'qstage init'");
    /// There is a GPT, but neither copy is whole.
    GptDamaged { disk: String, primary: String, backup: String } => Disk, "GPT_DAMAGED",
        ("{disk}: both copies of the partition table are damaged (primary: {primary}; backup: {backup}); restore it from a saved copy (sgdisk --load-backup) before anything else");
    /// The disk has an MBR partition table instead of a GPT.
    MbrDisk { disk: String, partitions: usize } => Disk, "MBR_DISK",
        ("{disk} has an MBR partition table with {partitions} partitions, no GUID partition table; convert it (sgdisk --mbrtogpt, after a backup) or use another disk");
    /// The table was made for another sector size.
    TableSectorSize { disk: String, here: u32, table: u32 } => Disk, "TABLE_SECTOR_SIZE",
        ("{disk} has sectors of {here} bytes, its partition table was made for {table}; write the image to a disk with {table}-byte sectors, or give --sector-size {table} if it is an image file");
    /// The table describes a larger disk than this one.
    TableLargerDisk { disk: String, usable: u64, last: u64 } => Disk, "TABLE_LARGER_DISK",
        ("{disk}: the partition table has usable blocks up to LBA {usable}, the disk ends at LBA {last}: it was copied from a larger disk; 'sgdisk -e' corrects that if all partitions lie within this disk");
    /// Only a backup is valid, and there is no evidence that it is this disk's.
    TableDoubtful { disk: String } => Disk, "TABLE_DOUBTFUL",
        ("{disk}: the primary partition table is lost, and nothing shows that the backup at the end is this disk's: it may be that of an earlier use; inspect it ('qstage slots'), then 'qstage repair --from backup', or restore a saved table");
    /// The primary header is marked IGNOREME.
    TableIgnored { disk: String } => Disk, "TABLE_IGNORED",
        ("{disk}: the primary partition table is marked IGNOREME, which leaves the backup only: no change of that is safe; 'cgpt legacy -e' removes the mark");
    /// A block that the table needs holds data of something else.
    TableOccupied { disk: String, what: String, at: u64 } => Disk, "TABLE_OCCUPIED",
        ("{disk}: the {what} cannot be written, since LBA {at} holds something else, a boot loader perhaps; nothing was written; move that, or move the table's array ('sgdisk -j')");
    /// The table cannot be changed safely against a power cut.
    TableUnsafe { disk: String, why: String } => Disk, "TABLE_UNSAFE",
        ("{disk}: the partition table cannot be changed safely: {why}");
    /// The GPT has a property that qstage does not support.
    GptUnsupported { disk: String, problem: String } => Disk, "GPT_UNSUPPORTED", ("{disk}: {problem}");
    /// After a change the table is not as intended, or the independent reader disagrees.
    GptVerify { disk: String, problem: String } => Disk, "GPT_VERIFY",
        ("{disk}: the partition table does not read back as written: {problem}; do not power off, check the disk");
    /// A slot's partition does not exist.
    SlotMissing { disk: String, name: String, found: String } => Disk, "SLOT_MISSING",
        ("{disk} has no partition with the exact name '{name}'; {found}; rename one (sgdisk --change-name=NUMBER:{name}) or lay the disk out with 'qstage init'");
    /// Several partitions have the name of one slot.
    SlotAmbiguous { disk: String, name: String, numbers: String } => Disk, "SLOT_AMBIGUOUS",
        ("{disk}: partitions {numbers} are all named '{name}'; the name must be unique");
    /// A slot shares its PARTUUID with another partition of its disk: a boot by PARTUUID could start either.
    PartuuidAmbiguous { disk: String, partuuid: Guid, numbers: String } => Disk, "PARTUUID_AMBIGUOUS",
        ("{disk}: partitions {numbers} all have the PARTUUID {partuuid}; give each its own (sgdisk --partition-guid=NUMBER:R)");
    /// A slot's partition cannot be written directly.
    Unaligned { partition: String, at: u64, unit: u64 } => Disk, "UNALIGNED",
        ("{partition} begins at byte {at}, not at a multiple of {unit}; move it (partitions are best aligned to 1 MiB)");
    /// The content does not fit the slot.
    SlotTooSmall { partition: String, needed: u64, size: u64 } => Disk, "SLOT_TOO_SMALL",
        ("{partition} has {size} bytes, the bundle needs {needed}; use a larger partition or a smaller image");
    /// The disk cannot hold the layout.
    DiskTooSmall { disk: String, needed: u64, size: u64 } => Disk, "DISK_TOO_SMALL",
        ("{disk} has {size} bytes, the layout needs {needed}");
    /// Kernel and table disagree about a partition.
    KernelTable { partition: String, problem: String } => Disk, "KERNEL_TABLE",
        ("{partition}: {problem}; make the kernel read the table again ('partx -d' the disk, then 'partx -a') or reboot");
    /// A slot has no record: it was never completely installed.
    NoRecord { group: Group, slot: Slot, found: String } => Disk, "NO_RECORD",
        ("{group} slot {slot} has no record of a whole installation ({found}); run 'qstage prepare'");
    /// A slot's content differs from its record.
    SlotDamaged { group: Group, slot: Slot, payload: String, bad: u64, frames: u64, first: u64 } => Disk, "SLOT_DAMAGED",
        ("{group} slot {slot}, {payload}: {bad} of {frames} frames differ from the record, the first at image offset {first}; run 'qstage prepare' again");
    /// The running slot, the base of a delta, differs from its record, and no whole bundle is known.
    BaseDamaged { partition: String, at: u64 } => Disk, "BASE_DAMAGED",
        ("{partition}, which the delta starts from, differs from its record at offset {at}; give the whole bundle too (--bundle), or prepare that one (a URL: --no-delta)");
    /// Neither slot can boot.
    NothingBoots { disk: String } => Disk, "NOTHING_BOOTS",
        ("{disk}: no platform slot is bootable by its flags; 'qstage mark-good --slot a' (or b) selects one that holds a release, 'qstage init {disk} --keep-table --bundle FILE' installs one, and --booted a (or b) says what this machine runs");

    /// After a reboot the old slot runs: the new one failed its trial.
    FellBack { target: String, running: String, why: String } => Disk, "FELL_BACK",
        ("{target} did not come up and the machine fell back to {running}: {why}");

    /// There are no EFI variables where they should be.
    NoEfi { dir: PathBuf, problem: String } => Disk, "NO_EFI",
        ("no EFI variables in {}: {problem}; boot_flag = \"efi\" needs a machine that was booted by UEFI (mount -t efivarfs efivarfs {}), or --efivars DIR", .dir.display(), .dir.display());

    // ---- Io ----
    /// An EFI variable cannot be read.
    EfiRead { name: String, source: io::Error } => Io, "EFI_READ", ("reading EFI variable {name}: {source}");
    /// An EFI variable cannot be written, or does not read back.
    EfiWrite { name: String, source: io::Error } => Io, "EFI_WRITE",
        ("writing EFI variable {name}: {source}; the boot selection is the old or the new one ('qstage slots' shows it); run it again");
    /// A file or device cannot be opened or examined.
    Open { path: PathBuf, source: io::Error } => Io, "OPEN", ("{}: {source}", .path.display());
    /// The disk or file is read-only.
    ReadOnly { path: PathBuf } => Io, "READ_ONLY", ("{} is read-only; make it writable", .path.display());
    /// The file system or device refuses O_DIRECT.
    NoDirectIo { path: PathBuf } => Io, "NO_DIRECT_IO",
        ("{} cannot be opened with O_DIRECT: its file system does not support it; use another one", .path.display());
    /// O_DIRECT works there, but only in units larger than the sectors of the image.
    DirectIoUnit { path: PathBuf, sector: u32, unit: u32 } => Io, "DIRECT_IO_UNIT",
        ("{} has sectors of {sector} bytes, its file system does direct I/O in units of {unit} only; attach it (losetup --show -f FILE) and give the loop device, or move it to a disk with {sector}-byte sectors", .path.display());
    /// A read from a device failed.
    Read { what: String, at: u64, len: usize, source: io::Error } => Io, "READ",
        ("reading {what}, {len} bytes at byte {at}: {source}");
    /// A write to a device failed.
    Write { what: String, at: u64, len: u64, source: io::Error } => Io, "WRITE",
        ("writing {what}, {len} bytes at byte {at}: {source}");
    /// The device or its file system is full.
    NoSpace { what: String, at: u64 } => Io, "NO_SPACE",
        ("writing {what} at byte {at}: no space left; free some and run it again");
    /// A flush failed: written data may be lost.
    Sync { what: String, source: io::Error } => Io, "SYNC",
        ("flushing {what}: {source}; what was written may be lost, check the disk");
    /// A device has not answered, and the wait cannot be ended.
    NoAnswer { device: String, seconds: u64, known: String } => Io, "NO_ANSWER",
        ("no answer from {device} for {seconds} s; {known}; check the device and its connection (kernel log), work that waits for it ends when it answers");
    /// A measurement did not reach the requested value.
    TooSlow { reached: f64, wanted: f64, bound: &'static str } => Io, "TOO_SLOW",
        ("prepare reached {reached:.2} of the ideal, {wanted:.2} was required (bound by the {bound}); on a busy machine \
          try again, with more --repeat");
    /// Reading back returned other bytes than were written.
    ReadBack { payload: String, frame: u64, at: u64 } => Io, "READ_BACK",
        ("{payload}, frame {frame} does not read back as written (slot offset {at}); the disk is failing");
    /// Reading the bundle failed.
    Source { at: u64, source: io::Error } => Io, "SOURCE", ("reading the bundle at byte {at}: {source}");
    /// A pipe or FIFO that the bundle is read from was silent for too long.
    InputStalled { path: PathBuf, at: u64, seconds: u64 } => Io, "INPUT_STALLED",
        ("{}: no data for {seconds} s at byte {at}; run it again to continue, or permit a longer silence (--input-timeout, or 'input_timeout' in the configuration)", .path.display());
    /// A file could not be written.
    Output { path: PathBuf, source: io::Error } => Io, "OUTPUT", ("writing {}: {}", .path.display(), .source.with_remedy());

    /// Listening on an address or socket failed.
    Listen { address: String, source: io::Error } => Io, "LISTEN", ("cannot listen on {address}: {source}");
    /// A service is unreachable or does not answer like one.
    ServiceUnreachable { service: String, problem: String } => Io, "SERVICE_UNREACHABLE",
        ("service {service}: {problem}; look at 'systemctl status qstage' on its machine, or name another one with --service");
    /// The kernel of a slot could not be started by kexec.
    Kexec { problem: String } => Io, "KEXEC",
        ("starting the prepared slot by kexec: {problem}; nothing was switched, continue with 'qstage cancel' or 'qstage commit'");
    /// A configured command failed.
    Command { command: String, problem: String } => Io, "COMMAND", ("'{command}' {problem}");

    /// The reboot command succeeded, but the machine did not reboot.
    NotRebooted { command: String, seconds: u64 } => Io, "NOT_REBOOTED",
        ("'{command}' did not reboot the machine within {seconds} s; reboot it by hand to start the new slot");

    // ---- Network ----
    /// etcd cannot be reached, has no quorum, or refuses.
    ClusterStore { problem: String } => Network, "CLUSTER_STORE",
        ("etcd does not answer ({problem}); nothing proceeds until it does, see [cluster] in the configuration");
    /// The answer of a web server is final: a retry would not change it.
    Http { url: String, problem: String } => Network, "HTTP", ("{url}: {problem}");

    /// The connection to a web server or its proxy failed.
    NetworkConnect { url: String, problem: String } => Network, "NETWORK_CONNECT", ("{url}: {problem}");
    /// A server did not prove its identity, or did not accept that of qstage.
    NetworkTls { url: String, problem: String } => Network, "NETWORK_TLS",
        ("{url}: {problem}; see 'web_ca' and [network] in the configuration");
    /// A transfer stalled: no bytes arrived for too long.
    NetworkStalled { url: String, at: u64, seconds: u64 } => Network, "NETWORK_STALLED",
        ("{url}: no data for {seconds} s at byte {at}; run it again to continue");
    /// A transfer was too slow.
    NetworkSlow { url: String, at: u64, rate: u64, least: u64, seconds: u64 } => Network, "NETWORK_SLOW",
        ("{url}: {rate} bytes a second over {seconds} s at byte {at}, the minimum is {least}; run it again to continue");
    /// A transfer broke more often than the configured number of retries.
    NetworkBroken { url: String, at: u64, problem: String, retries: u32 } => Network, "NETWORK_BROKEN",
        ("{url}: broken at byte {at} after {retries} retries: {problem}; run it again to continue");
    /// The file on the server changed during the transfer.
    SourceChanged { url: String, problem: String } => Network, "SOURCE_CHANGED",
        ("{url} has changed during the transfer: {problem}; run it again with the new file");
    /// The file on the server does not have the size of the bundle with the signed index at its start.
    SourceLength { expected: u64, got: u64 } => Network, "SOURCE_LENGTH",
        ("the server has {got} bytes, the bundle has {expected}: the file there is incomplete; nothing was written");

    // ---- Interrupted ----
    /// The upgrade was cancelled on request.
    Cancelled => Interrupted, "CANCELLED", ("the upgrade was cancelled and the prepared bundle is discarded");
    /// The service ended during an upgrade.
    ServiceEnded { doing: String } => Interrupted, "SERVICE_ENDED",
        ("the service ended during {doing}; {doing} again continues where it stopped");
    /// A signal asked to stop.
    Interrupted { doing: String } => Interrupted, "INTERRUPTED",
        ("stopped by a signal while {doing}; run it again to continue where it stopped");

    // ---- Service ----
    /// A container could not be started.
    ContainerStart { slot: Slot, problem: String } => Service, "CONTAINER_START",
        ("the container of software slot {slot} does not start: {problem}");
    /// The program of a software image cannot start: the image lacks it or its interpreter, it is not executable, or it is built
    /// for another processor. Also one that ends at once with exit status 126 or 127, by which shells report such a command.
    ContainerProgram { slot: Slot, problem: String } => Service, "CONTAINER_PROGRAM",
        ("the program of software slot {slot} cannot start: {problem}; the fault lies in the image, or in 'command' of [container]; install a corrected release");
    /// A container could not be stopped, not even by SIGKILL.
    ContainerStop { slot: Slot, problem: String } => Service, "CONTAINER_STOP",
        ("the container of software slot {slot} does not stop: {problem}; reboot the machine");
    /// An upgrade of the cluster failed; its message names the node.
    ClusterUpgrade { problem: String } => Service, "CLUSTER_UPGRADE", ("{problem}");
    /// The FleetLock server did not grant the lock that a reboot needs, or cannot be reached.
    FleetLock { url: String, problem: String } => Service, "FLEET_LOCK",
        ("the fleet lock of {url} is not granted: {problem}; see [reboot] in the configuration");
    /// A hook of a node failed, did not end, or printed no answer.
    Hook { hook: String, problem: String } => Service, "HOOK", ("the hook '{hook}' {problem}");
    /// A container runs, but its probe did not succeed in time; there is nothing to go back to.
    ContainerUnhealthy { slot: Slot, seconds: f64, problem: String } => Service, "CONTAINER_UNHEALTHY",
        ("the container of software slot {slot} is not healthy after {seconds:.1} s: {problem}");
    /// The new container failed and the old one runs again.
    SwappedBack { version: String, problem: String, running: String, downtime: Downtime } => Service, "SWAPPED_BACK",
        ("{version} failed and was swapped back: {problem}; {running} runs again, downtime {downtime}");
    /// The new container failed, and returning to the old one failed too.
    SwapBack { version: String, problem: String, back: String } => Service, "SWAP_BACK",
        ("{version} failed ({problem}), and so did the swap back: {back}; see 'qstage container status'");
    /// 'qstage doctor' found problems that have to be mended.
    Findings { problems: usize, first: String } => Service, "FINDINGS",
        ("problems found: {problems}; the first: {first}; each names its remedy");
    /// A health check failed.
    Unhealthy { check: String, problem: String } => Service, "UNHEALTHY", ("health check {check}: {problem}");

    // ---- Report ----
    /// The operation is done, but standard output did not accept the report.
    ReportLost { done: String, source: io::Error } => Report, "REPORT_LOST",
        ("done, but standard output did not take the report ({source}): {done}");
}
