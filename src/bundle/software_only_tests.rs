//! Manifests of software-only bundles: what they must say, and what they must not carry.

use super::manifest::tests::sample;
use super::manifest::{FORMAT, FORMAT_SOFTWARE_ONLY, Kind, ManifestFields};
use super::needs::NeededPlatform;
use crate::units::Blake3;

/// A bundle without a platform, and a need that it satisfies.
fn software_only() -> ManifestFields {
    let mut fields = sample();
    fields.format = FORMAT_SOFTWARE_ONLY;
    fields.needs_platform = Some("1.0..1.9".parse().unwrap());
    fields.payloads.retain(|payload| payload.kind == Kind::Software);
    fields.index.size = 36;
    fields
}

#[test]
fn a_software_only_bundle_says_what_it_needs_and_carries_nothing_else() {
    let fields = software_only();
    assert_eq!(ManifestFields::parse(&fields.to_bytes().unwrap()).unwrap(), fields);
    type Break = fn(&mut ManifestFields);
    let rules: &[(&str, Break)] = &[
        ("first payload", |c| (c.format, c.needs_platform) = (FORMAT, None)),
        ("for software-only", |c| c.format = FORMAT),
        ("must say which", |c| c.needs_platform = None),
        ("no other payload", |c| c.payloads = sample().payloads),
        ("no other payload", |c| c.payloads.clear()),
        ("names no platform", |c| c.needs_platform = Some(NeededPlatform::default())),
        ("one of them decides", |c| {
            c.needs_platform.as_mut().unwrap().blake3 = Some(Blake3([1; 32]));
        }),
        ("is empty", |c| c.needs_platform.as_mut().unwrap().min_version = Some("2.0".into())),
        ("max_version", |c| c.needs_platform.as_mut().unwrap().max_version = Some("a b".into())),
    ];
    for (word, alter) in rules {
        let mut fields = software_only();
        alter(&mut fields);
        let error = ManifestFields::parse(&serde_json::to_vec(&fields).unwrap()).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_BUNDLE_MANIFEST", "{error}");
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    let text = String::from_utf8(fields.to_bytes().unwrap()).unwrap();
    let more = text.replace("\"min_version\"", "\"news\": 1, \"min_version\"");
    assert!(more != text && ManifestFields::parse(more.as_bytes()).is_err());
}
