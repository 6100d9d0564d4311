//! The generator of the bundles in fixtures/attacks. Most are signed by the trusted key: mistakes and malice of a signer are
//! refused as well. Add one for every new attack; never remove one.

use std::num::NonZeroUsize;

use qstage::bundle::archive;
use qstage::bundle::writer::{Compression, PayloadInput, ReleaseInfo, pack_payloads, write_front};
use qstage::bundle::{Kind, ManifestFields};
use qstage::progress::{Cancel, Silent};
use qstage::units::{Blake3, Sha256};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

use crate::harness::proof::{key, noise, sign};

/// A hostile file and the codes, without prefix, that it must reach as a file and as a stream.
pub(crate) struct Attack {
    /// Name of the fixture.
    pub(crate) file: String,
    pub(crate) codes: [&'static str; 2],
    pub(crate) what: &'static str,
    pub(crate) bytes: Vec<u8>,
}

/// The parts of a bundle with a platform image of one frame.
#[derive(Clone)]
struct Parts {
    claims: ManifestFields,
    index: Vec<u8>,
    frame: Vec<u8>,
}

const CREATED: u64 = 1_700_000_000;

fn parts() -> Parts {
    let image = noise(1, 2000);
    let identity = ReleaseInfo {
        product: "demo".to_owned(),
        version: "2.0".to_owned(),
        min_version: None,
        needs_platform: None,
        epoch: 0,
        created: CREATED,
    };
    let inputs = [PayloadInput {
        kind: Kind::Platform,
        name: "platform".to_owned(),
        version: "2.0".to_owned(),
        image: &image,
    }];
    let compression = Compression { level: 1, frame_size: 4096, jobs: NonZeroUsize::new(1) };
    let mut out = std::io::Cursor::new(Vec::new());
    let packed =
        pack_payloads(&identity, &inputs, compression, &mut out, &Cancel::default(), &Silent).unwrap();
    let len = u32::from_le_bytes(packed.index[..4].try_into().unwrap()) as usize;
    Parts { frame: out.into_inner()[512..512 + len].to_vec(), claims: packed.fields, index: packed.index }
}

impl Parts {
    /// The same with another frame, whose length is in the index and the manifest.
    fn with_frame(mut self, frame: &[u8]) -> Self {
        self.frame = frame.to_vec();
        self.index[..4].copy_from_slice(&(frame.len() as u32).to_le_bytes());
        self.fit_index()
    }

    fn fit_index(mut self) -> Self {
        self.claims.index.blake3 = Blake3(*blake3::hash(&self.index).as_bytes());
        self
    }

    fn manifest(&self) -> Vec<u8> {
        self.claims.to_bytes().unwrap()
    }

    /// The bundle around a manifest and its signature.
    fn around(&self, manifest: &[u8], signature: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_front(&mut bytes, manifest, signature, &self.index, CREATED).unwrap();
        let size = self.frame.len() as u64;
        bytes.extend(archive::header("platform.img.zst", size, CREATED).unwrap());
        bytes.extend(&self.frame);
        bytes.resize(bytes.len() + archive::padding(size) as usize + 1024, 0);
        bytes
    }

    /// The bundle around this text instead of the manifest, signed.
    fn signed(&self, manifest: &[u8]) -> Vec<u8> {
        self.around(manifest, sign(manifest).as_bytes())
    }

    fn pack(&self) -> Vec<u8> {
        self.signed(&self.manifest())
    }
}

/// Gives a tar header the checksum that fits it.
pub(crate) fn fit(header: &mut [u8]) {
    let mut fitted = tar::Header::from_byte_slice(header).clone();
    fitted.set_cksum();
    header.copy_from_slice(fitted.as_bytes());
}

/// The signature with the version of its envelope changed from 1 to 0: one character of the armor.
fn flipped_version(manifest: &[u8]) -> String {
    let mut text = sign(manifest).into_bytes();
    // Bytes 6 to 9 of the envelope are the version; character 13 of the first line holds its lowest bit.
    text[43] ^= 0x10;
    String::from_utf8(text).unwrap()
}

/// Replaces `from` by `to` in text.
fn edited(manifest: &[u8], from: &str, to: &str) -> Vec<u8> {
    let text = std::str::from_utf8(manifest).unwrap();
    assert!(text.contains(from), "{from}");
    text.replacen(from, to, 1).into_bytes()
}

/// A zstd frame (RFC 8878) of one raw block; `descriptor` and what belongs to it come before.
pub(crate) fn raw_frame(head: &[u8], content: &[u8]) -> Vec<u8> {
    let block = (content.len() as u32) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd], head, &block.to_le_bytes()[..3], content].concat()
}

/// All of them.
pub(crate) fn attacks() -> Vec<Attack> {
    let good = parts();
    let (manifest, bundle) = (good.manifest(), good.pack());
    let at = |name: &str| {
        let mut at = 0;
        loop {
            let header = tar::Header::from_byte_slice(bundle[at..at + 512].try_into().unwrap());
            if header.path().unwrap().to_str() == Some(name) {
                return at;
            }
            at += archive::member_len(header.size().unwrap()).unwrap() as usize;
        }
    };
    let (signature_at, payload_at) = (at("manifest.json.sig"), at("platform.img.zst"));
    let bent = |bend: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bundle.clone();
        bend(&mut bytes);
        bytes
    };
    let header = |at: usize, edit: &dyn Fn(&mut tar::Header)| {
        bent(&|bytes| {
            let mut header = tar::Header::from_byte_slice(bytes[at..at + 512].try_into().unwrap()).clone();
            edit(&mut header);
            bytes[at..at + 512].copy_from_slice(header.as_bytes());
            fit(&mut bytes[at..at + 512]);
        })
    };
    let member = [&bundle[payload_at..payload_at + 512], &[0; 512]].concat();
    let text = |from: &str, to: &str| good.signed(&edited(&manifest, from, to));
    let claims = |edit: &dyn Fn(&mut Parts)| {
        let mut parts = good.clone();
        edit(&mut parts);
        parts
    };
    let plain = noise(1, 2000);
    let size = [0x60, 0xd0, 0x06]; // single segment, 2-byte size: 2000 - 256
    let genuine = raw_frame(&size, &plain);
    let framed = |frame: Vec<u8>| good.clone().with_frame(&frame).pack();
    let stranger = PrivateKey::from(Ed25519Keypair::from_seed(&[8; 32]));
    let by = |key: &PrivateKey, namespace: &str, bytes: &[u8]| {
        key.sign(namespace, HashAlg::Sha512, bytes).unwrap().to_pem(LineEnding::LF).unwrap() + "\n"
    };
    let by =
        |key: &PrivateKey, namespace: &str, bytes: &[u8]| by(key, namespace, bytes).replace("\n\n", "\n");
    let signed_by = |signature: &str| good.around(&manifest, signature.as_bytes());
    let mut all = Vec::new();
    let mut add = |name: &str, code: &'static str, what, bytes| {
        let mut codes = code.split(' ');
        let first = codes.next().unwrap();
        let codes = [first, codes.next().unwrap_or(first)];
        all.push(Attack { file: format!("{name}.qimg"), codes, what, bytes });
    };

    add("empty", "BUNDLE_TRUNCATED", "no byte at all", vec![]);
    add("cut-in-manifest", "BUNDLE_TRUNCATED", "ends within manifest.json", bundle[..600].to_vec());
    add("cut-in-frame", "BUNDLE_TRUNCATED", "ends within a frame", bundle[..payload_at + 700].to_vec());
    add("trailing-byte", "BUNDLE_TRAILING_BYTES", "one byte behind the end", [&bundle[..], &[0]].concat());
    add("second-archive", "BUNDLE_TRAILING_BYTES", "a second archive behind the end", bundle.repeat(2));
    add(
        "extra-member",
        "BUNDLE_TRAILING_BYTES BUNDLE_TAR_HEADER",
        "one member more than the manifest names",
        [&bundle[..bundle.len() - 1024], &member, &[0; 1024]].concat(),
    );
    add(
        "member-path",
        "BUNDLE_TAR_HEADER",
        "the payload's member has a path that leads elsewhere",
        bent(&|b| {
            b[payload_at..payload_at + 16].copy_from_slice(b"../../etc/passwd");
            fit(&mut b[payload_at..payload_at + 512]);
        }),
    );
    add(
        "member-symlink",
        "BUNDLE_TAR_HEADER",
        "the payload's member is a symbolic link",
        header(payload_at, &|h| h.set_entry_type(tar::EntryType::Symlink)),
    );
    add(
        "member-setuid",
        "BUNDLE_TAR_HEADER",
        "the payload's member has mode 4755",
        header(payload_at, &|h| h.set_mode(0o4755)),
    );
    add(
        "member-size",
        "BUNDLE_TAR_HEADER",
        "the header of the payload tells another size than the index",
        header(payload_at, &|h| h.set_size(1)),
    );
    add(
        "member-time",
        "BUNDLE_TAR_HEADER",
        "the header of the manifest has another time than the manifest",
        header(0, &|h| h.set_mtime(1)),
    );
    add(
        "pax-header",
        "BUNDLE_TAR_HEADER",
        "a pax header in front",
        header(0, &|h| h.set_entry_type(tar::EntryType::XHeader)),
    );
    add(
        "member-order",
        "BUNDLE_TAR_HEADER",
        "the signature in front of the manifest",
        bundle[signature_at..].to_vec(),
    );
    add(
        "manifest-size",
        "BUNDLE_LIMIT",
        "manifest.json of a terabyte, by its header",
        header(0, &|h| h.set_size(1 << 40)),
    );
    add(
        "manifest-size-max",
        "BUNDLE_LIMIT",
        "manifest.json of 2^63 bytes, by its header",
        header(0, &|h| h.set_size(1 << 63)),
    );
    add(
        "signature-size",
        "BUNDLE_LIMIT",
        "manifest.json.sig of a terabyte, by its header",
        header(signature_at, &|h| h.set_size(1 << 40)),
    );

    add("unsigned", "UNSIGNED", "no signature", good.around(&manifest, b""));
    add(
        "signed-by-stranger",
        "UNTRUSTED",
        "signed by a key that is not listed",
        signed_by(&by(&stranger, "qimg", &manifest)),
    );
    add(
        "signature-of-another",
        "BAD_SIGNATURE",
        "the trusted key's signature of other bytes",
        signed_by(&sign(b"other")),
    );
    add(
        "signature-namespace",
        "BAD_SIGNATURE",
        "signed by the trusted key for another purpose",
        signed_by(&by(&key(), "file", &manifest)),
    );
    add("signature-garbage", "SIGNATURE_FORMAT", "no signature but text", signed_by("trust me\n"));
    add(
        "signature-crlf",
        "SIGNATURE_FORMAT",
        "a signature in another spelling",
        signed_by(&sign(&manifest).replace('\n', "\r\n")),
    );
    // Found by flipping every bit: the version is not among what is signed, and ssh-key takes 0 for 1.
    add(
        "signature-version",
        "SIGNATURE_FORMAT",
        "a signature of version 0",
        signed_by(&flipped_version(&manifest)),
    );
    add(
        "signature-tail",
        "SIGNATURE_FORMAT",
        "bytes behind the signature",
        signed_by(&(sign(&manifest) + "\n")),
    );
    add(
        "manifest-changed",
        "BAD_SIGNATURE",
        "a version changed after signing",
        good.around(&edited(&manifest, "2.0", "9.0"), sign(&manifest).as_bytes()),
    );

    add("manifest-no-json", "BUNDLE_MANIFEST", "the manifest is no JSON", good.signed(b"\0\xff{"));
    add(
        "manifest-nesting",
        "BUNDLE_MANIFEST",
        "the manifest is 100,000 brackets",
        good.signed(&[b'['; 100_000]),
    );
    add(
        "manifest-unknown-field",
        "BUNDLE_MANIFEST",
        "a field that this version does not know",
        text("\"epoch\"", "\"run\": \"rm -rf /\", \"epoch\""),
    );
    add(
        "manifest-twice",
        "BUNDLE_MANIFEST",
        "a field that is there twice",
        text("\"epoch\"", "\"epoch\": 9, \"epoch\""),
    );
    add(
        "manifest-format",
        "BUNDLE_MANIFEST",
        "the format version of software-only bundles, with a platform",
        text("\"format\": 1", "\"format\": 2"),
    );
    add(
        "manifest-format-unknown",
        "BUNDLE_FORMAT_VERSION",
        "format version 3",
        text("\"format\": 1", "\"format\": 3"),
    );
    add(
        "manifest-needs-and-platform",
        "BUNDLE_MANIFEST",
        "a platform beside the need of one",
        text("\"format\": 1", "\"needs_platform\": {\"min_version\": \"1\"}, \"format\": 2"),
    );
    add("manifest-negative", "BUNDLE_MANIFEST", "a negative size", text("\"size\": 2000", "\"size\": -2000"));
    add("manifest-size-zero", "BUNDLE_MANIFEST", "an empty image", text("\"size\": 2000", "\"size\": 0"));
    add(
        "manifest-image-huge",
        "BUNDLE_MANIFEST",
        "an image of 2^64 - 1 bytes",
        text("\"size\": 2000", "\"size\": 18446744073709551615"),
    );
    add(
        "manifest-index-huge",
        "BUNDLE_LIMIT",
        "an index of 2^60 bytes",
        text("\"size\": 36", "\"size\": 1152921504606846976"),
    );
    add(
        "manifest-frame-size",
        "BUNDLE_MANIFEST",
        "a frame size that is no power of two",
        text("\"frame_size\": 4096", "\"frame_size\": 4097"),
    );
    add(
        "manifest-frame-huge",
        "BUNDLE_MANIFEST",
        "frames of 2 GiB",
        text("\"frame_size\": 4096", "\"frame_size\": 2147483648"),
    );
    add(
        "manifest-path",
        "BUNDLE_MANIFEST",
        "a payload named like a path",
        text("\"name\": \"platform\"", "\"name\": \"../boot\""),
    );
    add(
        "manifest-escape",
        "BUNDLE_MANIFEST",
        "a product that moves the cursor of the terminal",
        text("\"demo\"", "\"\\u001b[2J\""),
    );
    add(
        "manifest-kind",
        "BUNDLE_MANIFEST",
        "no platform image",
        text("\"kind\": \"platform\"", "\"kind\": \"software\""),
    );
    let twins = claims(&|p| {
        let first = p.claims.payloads[0].clone();
        p.claims.payloads.push(first);
        p.claims.index.size = 72;
    });
    add(
        "manifest-twins",
        "BUNDLE_MANIFEST",
        "the platform image twice",
        good.signed(&serde_json::to_vec_pretty(&twins.claims).unwrap()),
    );
    let many = claims(&|p| p.claims.payloads = vec![p.claims.payloads[0].clone(); 65]);
    add(
        "manifest-many",
        "BUNDLE_LIMIT",
        "65 payloads",
        good.signed(&serde_json::to_vec_pretty(&many.claims).unwrap()),
    );

    add(
        "index-changed",
        "BUNDLE_INDEX_DIGEST",
        "the index is not the one of the manifest",
        claims(&|p| p.index[9] ^= 1).pack(),
    );
    add(
        "index-lies",
        "BUNDLE_INDEX",
        "an index that is signed and does not merge to the image's hash",
        claims(&|p| p.index[9] ^= 1).fit_index().pack(),
    );
    add(
        "index-length-zero",
        "BUNDLE_INDEX",
        "a frame of no bytes",
        claims(&|p| p.index[..4].fill(0)).fit_index().pack(),
    );
    add(
        "index-length-huge",
        "BUNDLE_INDEX",
        "a frame of 4 GiB",
        claims(&|p| p.index[..4].fill(0xff)).fit_index().pack(),
    );

    let other: Vec<u8> = plain.iter().map(|byte| byte ^ 1).collect();
    add(
        "frame-other",
        "BUNDLE_FRAME_DIGEST",
        "a sound frame of other bytes",
        framed(raw_frame(&size, &other)),
    );
    add("frame-bomb", "BUNDLE_FRAME", "declares 3 GiB", framed(raw_frame(&[0xa0, 0, 0, 0, 0xc0], &plain)));
    add(
        "frame-longer",
        "BUNDLE_FRAME",
        "declares the right size and holds more",
        framed(raw_frame(&size, &noise(1, 2010))),
    );
    add(
        "frame-shorter",
        "BUNDLE_FRAME",
        "declares the right size and holds less",
        framed(raw_frame(&size, &plain[..1000])),
    );
    add("frame-sizeless", "BUNDLE_FRAME", "declares no size", framed(raw_frame(&[0x00, 0x50], &plain)));
    add(
        "frame-dictionary",
        "BUNDLE_FRAME",
        "wants a dictionary",
        framed(raw_frame(&[0x61, 0x01, 0xd0, 0x06], &plain)),
    );
    add(
        "frame-reserved-bit",
        "BUNDLE_FRAME",
        "sets the reserved bit",
        framed(raw_frame(&[0x68, 0xd0, 0x06], &plain)),
    );
    add(
        "frame-skippable",
        "BUNDLE_FRAME",
        "is a skippable frame",
        framed([&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0], &b"evil"[..]].concat()),
    );
    add(
        "frame-and-more",
        "BUNDLE_FRAME",
        "a skippable frame follows within the same entry",
        framed([&genuine[..], &[0x50, 0x2a, 0x4d, 0x18, 0, 0, 0, 0]].concat()),
    );
    add("frame-garbage", "BUNDLE_FRAME", "no zstd at all", framed(vec![0x5a; 1000]));
    let sha = claims(&|p| p.claims.payloads[0].sha256 = Sha256([7; 32]));
    add("image-sha256", "BUNDLE_IMAGE_DIGEST", "a SHA-256 that is not the image's, BLAKE3 is", sha.pack());
    all
}
