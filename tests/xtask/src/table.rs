//! Tables that are aligned on a terminal and are Markdown too.

/// Each row has as many cells as the header.
pub fn markdown<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let longest = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(|column| longest(column).max(header[column].chars().count()));
    let line = |cells: [&str; N]| {
        let padded: [String; N] = std::array::from_fn(|column| format!(" {:<1$} ", cells[column], widths[column]));
        format!("|{}|\n", padded.join("|"))
    };
    let rule = widths.map(|width| "-".repeat(width + 2)).join("|");
    let mut text = format!("{}|{rule}|\n", line(header));
    for row in rows {
        text.push_str(&line(row.each_ref().map(String::as_str)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::markdown;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "three".to_owned()]];
        assert_eq!(markdown(["first", "b"], &rows), "| first | b     |\n|-------|-------|\n| a     | three |\n");
    }
}
