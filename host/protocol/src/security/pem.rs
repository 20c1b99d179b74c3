//! Blocks of text files (RFC 7468), read as generously as Python's `cryptography` does.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoBlock {
    Missing,
    Damaged,
    /// OpenSSL's own encryption, from before there was a standard.
    LockedByOpenSsl,
}

/// The label and the bytes of the first block with one of these labels. It may hold a key, so it is wiped.
pub(super) fn block<'a>(text: &str, labels: &[&'a str]) -> Result<(&'a str, Zeroizing<Vec<u8>>), NoBlock> {
    let places = labels.iter().filter_map(|label| {
        let begin = format!("-----BEGIN {label}-----");
        text.find(&begin).map(|at| (at + begin.len(), *label))
    });
    let (start, label) = places.min().ok_or(NoBlock::Missing)?;
    let (block, _) = text[start..].split_once(&format!("-----END {label}-----")).ok_or(NoBlock::Damaged)?;
    if block.trim_start().starts_with("Proc-Type:") {
        return Err(NoBlock::LockedByOpenSsl);
    }
    let packed: Zeroizing<Vec<u8>> = Zeroizing::new(block.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect());
    let bytes = STANDARD.decode(&*packed).map_err(|_| NoBlock::Damaged)?;
    Ok((label, Zeroizing::new(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_block_of_a_kind_is_found_among_others() {
        let text =
            "Notes.\n-----BEGIN A-----\r\nAQI\r\nD\r\n-----END A-----\r\n-----BEGIN B-----\nBA==\n-----END B-----";
        let found = |labels: &[&'static str]| block(text, labels).map(|(label, bytes)| (label, bytes.to_vec()));
        assert_eq!(found(&["B", "A"]), Ok(("A", vec![1, 2, 3])));
        assert_eq!(found(&["B"]), Ok(("B", vec![4])));
        assert_eq!(found(&["C"]), Err(NoBlock::Missing));
    }

    #[test]
    fn what_is_no_block_is_told_apart() {
        let rows = [
            ("", NoBlock::Missing),
            ("-----BEGIN A-----", NoBlock::Damaged),
            ("-----BEGIN A-----\nAQID\n", NoBlock::Damaged),
            ("-----BEGIN A-----\n!\n-----END A-----", NoBlock::Damaged),
            ("-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAQID\n-----END A-----", NoBlock::LockedByOpenSsl),
        ];
        for (text, expected) in rows {
            assert_eq!(block(text, &["A"]).map(drop), Err(expected), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text: String) {
            let _ = block(&text, &["A"]);
            let _ = block(&format!("-----BEGIN A-----\n{text}"), &["A"]);
        }
    }
}
