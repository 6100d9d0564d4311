//! Aligned columns for people.

use super::output::Palette;
use crate::units::text;

/// A cell: its text and its colour. The colour is added after the padding, since escape codes have no width.
pub(super) struct Cell {
    text: String,
    paint: fn(Palette, &str) -> String,
}

impl Cell {
    /// A coloured cell.
    pub(super) fn painted(text: impl Into<String>, paint: fn(Palette, &str) -> String) -> Self {
        Self { text: one_line(&text.into()), paint }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::painted(text, |_, text| text.to_owned())
    }
}

/// Untrusted text, escaped and on one line.
fn one_line(value: &str) -> String {
    text::shown(value).replace('\n', "\\n")
}

/// A table with headings. A heading that begins with `>` has its column aligned to the right.
pub(super) fn render(headings: &[&str], rows: Vec<Vec<Cell>>, palette: Palette) -> String {
    let right: Vec<bool> = headings.iter().map(|heading| heading.starts_with('>')).collect();
    let top = headings
        .iter()
        .map(|heading| Cell::painted(heading.trim_start_matches('>'), |palette, text| palette.head(text)))
        .collect();
    let rows: Vec<Vec<Cell>> = std::iter::once(top).chain(rows).collect();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let blank = " ".repeat(widths[column] - cell.text.chars().count());
            let painted = (cell.paint)(palette, &cell.text);
            line.push_str(if column == 0 { "" } else { "  " });
            line.push_str(&if right[column] { blank + &painted } else { painted + &blank });
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Lines of a label and its value, aligned. A line without a value is left out.
pub(super) fn facts(pairs: &[(&str, String)]) -> String {
    let shown = || pairs.iter().filter(|(_, value)| !value.is_empty());
    let width = shown().map(|(label, _)| label.len()).max().unwrap_or(0);
    shown().map(|(label, value)| format!("{label:width$}  {value}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        vec![
            vec!["a".into(), "1.0 GiB".into(), Cell::painted("good", Palette::good)],
            vec!["bcd".into(), "7 B".into(), Cell::painted("é", Palette::good)],
        ]
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(
            render(&["SLOT", ">SIZE", "STATE"], rows(), Palette::PLAIN),
            "SLOT     SIZE  STATE\na     1.0 GiB  good\nbcd       7 B  é\n"
        );
    }

    #[test]
    fn colours_do_not_move_columns() {
        let plain = render(&["SLOT", ">SIZE", "STATE"], rows(), Palette::PLAIN);
        let coloured = render(&["SLOT", ">SIZE", "STATE"], rows(), Palette::COLOURED);
        let mut stripped = coloured.clone();
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[32m"] {
            stripped = stripped.replace(code, "");
        }
        let trimmed: String = stripped.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        assert_eq!(trimmed, plain);
        assert_ne!(coloured, plain);
    }
}
