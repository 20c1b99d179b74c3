//! Lists for people: columns under their names.

use std::fmt;

use crate::visible;

/// Rows of cells, all as long as the header.
#[derive(Debug)]
pub struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

/// Between two columns.
const GAP: &str = "  ";

impl Table {
    pub fn new<const N: usize>(header: [&'static str; N]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    /// Text that a program wrote may be in it: it is made visible.
    pub fn push<const N: usize>(&mut self, row: [String; N]) {
        self.rows.push(row.iter().map(|cell| visible::line(cell)).collect());
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column)).map(String::as_str);
        cells.chain(self.header.get(column).copied()).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.header.len()).map(|column| self.width(column)).collect();
        let header: Vec<String> = self.header.iter().map(|&name| name.to_owned()).collect();
        for (number, row) in std::iter::once(&header).chain(&self.rows).enumerate() {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join(GAP);
            let end = if number == self.rows.len() { "" } else { "\n" };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["QUEUE", "N"]);
        table.push(["a\nb".to_owned(), "1".to_owned()]);
        table.push(["celery.dead".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "QUEUE        N\na\\nb         1\ncelery.dead");
    }
}
