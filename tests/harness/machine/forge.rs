//! Forged bundles: taken apart, changed, and put together again, signed or unsigned.

use std::fs;

use qstage::bundle::archive;
use serde_json::Value;

use super::{Bench, tool};

/// A bundle in parts.
#[derive(Clone)]
pub struct Parts {
    /// Name and content of each member.
    pub members: Vec<(String, Vec<u8>)>,
    created: u64,
}

impl Parts {
    /// Takes a bundle apart by the offsets of the ustar format.
    pub fn of(bench: &Bench, bundle: &str) -> Self {
        let bytes = fs::read(bench.path(bundle)).unwrap();
        let octal = |field: &[u8]| {
            let text = String::from_utf8(field.to_vec()).unwrap();
            u64::from_str_radix(text.trim_matches(['\0', ' ']), 8).unwrap()
        };
        let (mut members, mut at, mut created) = (Vec::new(), 0, 0);
        while bytes[at] != 0 {
            let header = &bytes[at..at + 512];
            let name = String::from_utf8(header[..100].to_vec()).unwrap().trim_end_matches('\0').to_owned();
            let size = octal(&header[124..136]) as usize;
            created = octal(&header[136..148]);
            members.push((name, bytes[at + 512..at + 512 + size].to_vec()));
            at += 512 + size.next_multiple_of(512);
        }
        Self { members, created }
    }

    pub fn member(&mut self, name: &str) -> &mut Vec<u8> {
        &mut self.members.iter_mut().find(|(found, _)| found == name).unwrap().1
    }

    pub fn manifest(&mut self) -> Value {
        serde_json::from_slice(self.member("manifest.json")).unwrap()
    }

    /// Changes the manifest and signs it again with `key`.
    pub fn edit(mut self, bench: &Bench, key: &str, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest = self.manifest();
        change(&mut manifest);
        *self.member("manifest.json") = serde_json::to_vec_pretty(&manifest).unwrap();
        self.sign(bench, key)
    }

    /// Signs the present manifest with ssh-keygen, which does not check its content.
    pub fn sign(mut self, bench: &Bench, key: &str) -> Self {
        let message = bench.path("forged.json");
        fs::write(&message, self.member("manifest.json")).unwrap();
        let signature = bench.path("forged.json.sig");
        let _ = fs::remove_file(&signature);
        tool(
            "ssh-keygen",
            &["-q", "-Y", "sign", "-n", "qimg", "-f", &bench.text(key), message.to_str().unwrap()],
        );
        *self.member("manifest.json.sig") = fs::read(signature).unwrap();
        self
    }

    /// Replaces `index.bin`, and makes the manifest fit it; the result is not signed yet.
    pub fn with_index(mut self, index: Vec<u8>) -> Self {
        let mut manifest = self.manifest();
        manifest["index"]["blake3"] = blake3::hash(&index).to_hex().to_string().into();
        manifest["index"]["size"] = index.len().into();
        *self.member("manifest.json") = serde_json::to_vec_pretty(&manifest).unwrap();
        *self.member("index.bin") = index;
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in &self.members {
            out.extend(archive::header(name, bytes.len() as u64, self.created).unwrap());
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(512), 0);
        }
        out.resize(out.len() + 1024, 0);
        out
    }

    pub fn save(&self, bench: &Bench, name: &str) {
        fs::write(bench.path(name), self.bytes()).unwrap();
    }
}
