//! Deltas that are damaged, or of no use here.

use super::support::forge::Parts;
use super::support::{Bench, Noise};
use super::{recovers, refused};

/// A machine as all have it, and `d.qdelta` from what it runs to a release that shares most of it.
fn with_delta() -> Bench {
    let bench = Bench::installed();
    let mut image = std::fs::read(bench.path("v1.img")).unwrap();
    image[900_000..900_100].fill(b'x');
    image.splice(2_000_000..2_000_000, Noise(7).bytes(5000));
    std::fs::write(bench.path("v3.img"), image).unwrap();
    bench.pack("v3", "3.0", &["--platform", "v3.img", "--frame-size", "256K"]);
    bench.run(&["delta", "v1.qimg", "v3.qimg", "-o", "d.qdelta"]).good();
    bench
}

#[test]
fn a_delta_that_makes_no_sense_is_refused_before_the_first_write() {
    let bench = with_delta();
    let mut bad = Parts::of(&bench, "d.qdelta");
    bad.member("delta.bin")[0] ^= 1;
    bad.save(&bench, "bad.qdelta");
    let text = refused(&bench, "bad.qdelta", "DELTA");
    assert!(text.contains("delta.bin"), "{text}");
    recovers(&bench);
}

#[test]
fn a_delta_that_saves_little_is_not_made_unless_forced() {
    let bench = with_delta();
    let make = ["delta", "v1.qimg", "v2.qimg", "-o", "little.qdelta"];
    let text = bench.run(&make).bad("DELTA_GAIN");
    assert!(text.contains("--force"), "{text}");
    assert!(!bench.path("little.qdelta").exists());
    bench.run(&[&make[..], &["--force"]].concat()).good();
    let (delta, bundle) = (bench.path("little.qdelta"), bench.path("v2.qimg"));
    let len = |path| std::fs::metadata(path).unwrap().len();
    assert!(len(delta) * 100 < len(bundle) * 102, "never more than the bundle but for its own header");
    // From an image, or from its bundle: the same.
    bench.run(&["delta", "v1.img", "v3.qimg", "-o", "e.qdelta", "--jobs", "1"]).good();
    assert_eq!(
        std::fs::read(bench.path("e.qdelta")).unwrap(),
        std::fs::read(bench.path("d.qdelta")).unwrap()
    );
    assert!(len(bench.path("d.qdelta")) < 100_000);
    // What needs every byte of the images takes no delta, and says so.
    for verb in
        [&["verify", "d.qdelta", "--config", "config.toml"][..], &["sign", "d.qdelta", "--key", "key"]]
    {
        bench.run(verb).bad("DELTA");
    }
}
