//! The page at `/` of the service, as a user of a browser operates it.

use super::browser::Browser;

pub(crate) const ENTER: &str = "\u{e007}";

/// The dialog that is open says what runs, what would run, and the type of the upgrade.
#[track_caller]
pub(crate) fn asks(browser: &Browser, title: &str, runs: &str, new: &str, kind: &str) {
    browser.until("document.querySelector('#ask').open");
    assert_eq!(browser.text("#ask-title"), title);
    let facts = browser.text("#ask-facts");
    let lines: Vec<&str> = facts.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let said = |name: &str| lines.iter().position(|line| *line == name).and_then(|at| lines.get(at + 1));
    for (name, value) in [("Runs now", runs), ("New", new), ("Type", kind)] {
        assert!(
            said(name).is_some_and(|said| said.contains(value)),
            "{title}, {name}: no '{value}':\n{facts}"
        );
    }
}

/// Types of upgrades, as the page has them.
pub(crate) const SOFTWARE: &str = "software only, without a reboot";
pub(crate) const PLATFORM: &str = "platform and software, with a reboot";

/// Enters the token "secret" of this name, which may write.
pub(crate) fn enter_token(browser: &Browser, name: &str) {
    browser.enter("#token", "secret");
    browser.keys(&[ENTER], false);
    browser.until_text("#who", &format!("token {name}, and may read and write"));
    browser.until("document.querySelector('#actions').offsetParent !== null");
}

/// Body of a function that lists faults: contrast below 4.5:1 (WCAG 2.2, 1.4.3), fields without a label, buttons without a name, short
/// words that are broken, and what is wider than the page.
pub(crate) const FAULTS: &str = r#"
    const faults = [];
    const light = (text) => {
        const parts = text.match(/[\d.]+/g).map(Number);
        const linear = parts.slice(0, 3).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return [0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2], parts[3] ?? 1];
    };
    const below = (node) => {
        for (; node; node = node.parentElement) {
            const [value, opacity] = light(getComputedStyle(node).backgroundColor);
            if (opacity === 1) return value;
        }
        return 1;
    };
    const judge = (colour, node, text) => {
        const [a, b] = [light(colour)[0], below(node)].sort((x, y) => y - x);
        const contrast = (a + 0.05) / (b + 0.05);
        if (contrast < 4.5) faults.push(`contrast ${contrast.toFixed(2)}: ${text}`);
    };
    let seen = 0;
    for (const node of document.querySelectorAll('body *')) {
        const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
        if (!own || !node.checkVisibility()) continue;
        seen += 1;
        judge(getComputedStyle(node).color, node, node.textContent);
    }
    for (const field of document.querySelectorAll('input[placeholder]'))
        if (field.checkVisibility()) judge(getComputedStyle(field, '::placeholder').color, field, field.placeholder);
    if (seen < 30) faults.push(`only ${seen} texts`);
    for (const field of document.querySelectorAll('input')) if (!field.labels.length) faults.push(`no label: ${field.id}`);
    for (const button of document.querySelectorAll('button'))
        if (button.checkVisibility() && !button.textContent.trim()) faults.push(`no name: ${button.id}`);
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let text = texts.nextNode(); text; text = texts.nextNode()) {
        if (!text.parentElement.checkVisibility()) continue;
        for (const { 0: word, index } of text.data.matchAll(/[^\s-]+/g)) {
            const range = document.createRange();
            range.setStart(text, index);
            range.setEnd(text, index + word.length);
            if (word.length <= 12 && range.getClientRects().length > 1) faults.push(`broken: ${word}`);
        }
    }
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    if (wide > 0) faults.push(`${wide} px wider than the page`);
    return faults;
"#;
