//! qstage.toml(5), made from the annotated sample configuration, so that the two cannot differ.

use roff::{Roff, bold, roman};

/// The sample: each key as a comment, with its explanation above it.
const SAMPLE: &str = include_str!("../../fixtures/config.toml");

/// Files that belong to the configuration.
const FILES: [(&str, &str); 2] = [
    ("/etc/qstage/config.toml", "The configuration, unless --config or QSTAGE_CONFIG names another file."),
    ("/usr/share/doc/qstage/examples/config.toml", "A sample with all keys, in the Debian package."),
];

/// Whole configurations: the purpose of each, and its lines.
const EXAMPLES: [(&str, &str); 2] = [
    (
        "A machine that accepts bundles of one product, and discards a release that failed three boots:",
        "product = \"gateway\"\ntrust = \"/etc/qstage/allowed_signers\"\ntries = 3",
    ),
    (
        "Software in a container, with a health probe:",
        "[container]\ncommand = [\"/usr/bin/app\"]\nprobe = \"http://127.0.0.1:80/health\"",
    ),
];

/// The manual page in roff, as man(7) defines it.
pub(super) fn render() -> String {
    let mut page = Roff::new();
    page.control("TH", ["qstage.toml", "5", "", concat!("qstage ", env!("CARGO_PKG_VERSION"))]);
    page.control("SH", ["NAME"]).text([roman("qstage.toml - configuration of qstage")]);
    page.control("SH", ["SYNOPSIS"]).text([bold("/etc/qstage/config.toml")]);
    page.control("SH", ["DESCRIPTION"]);
    let mut blocks = SAMPLE.split("\n\n");
    // The first line is the title of the sample.
    let (_, about) = blocks.next().and_then(|first| first.split_once('\n')).unwrap_or_default();
    explanation(&mut page, about.lines());
    page.control("SH", ["KEYS"]);
    for block in blocks {
        let (keys, text): (Vec<&str>, Vec<&str>) = block.lines().partition(|line| !is_text(line));
        let keys: Vec<&str> = keys.iter().map(|line| line.trim_start_matches('#')).collect();
        match keys.first() {
            Some(table) if table.starts_with('[') => {
                page.control("SS", [*table]);
                explanation(&mut page, text.into_iter());
            }
            Some(_) => {
                for (n, key) in keys.iter().enumerate() {
                    page.control(if n == 0 { "TP" } else { "TQ" }, []).text([bold(*key)]);
                }
                explanation(&mut page, text.into_iter());
            }
            None => explanation(&mut page, text.into_iter()),
        }
    }
    page.control("SH", ["FILES"]);
    for (path, about) in FILES {
        page.control("TP", []).text([bold(path)]).text([roman(about)]);
    }
    page.control("SH", ["EXAMPLES"]);
    for (about, lines) in EXAMPLES {
        page.control("PP", []).text([roman(about)]).control("PP", []).control("nf", []);
        for line in lines.lines() {
            page.text([bold(line)]);
        }
        page.control("fi", []);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("qstage"), roman("(1)")]);
    page.render()
}

/// Whether a line explains: `# text`, or an empty comment. A key is `#key = value` or its continuation.
fn is_text(line: &str) -> bool {
    line == "#" || line.starts_with("# ")
}

/// Renders text; indented lines are kept verbatim.
fn explanation<'a>(page: &mut Roff, lines: impl Iterator<Item = &'a str>) {
    for line in lines {
        let line = line.strip_prefix('#').unwrap_or(line);
        if let Some(literal) = line.strip_prefix("   ") {
            page.control("br", []).text([bold(literal)]).control("br", []);
        } else if !line.trim().is_empty() {
            page.text([roman(line.trim_start())]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn each_example_is_a_configuration() {
        for (about, lines) in EXAMPLES {
            let parsed = toml::from_str::<Config>(lines);
            assert!(parsed.is_ok(), "{about} {}", parsed.unwrap_err());
        }
    }
}
