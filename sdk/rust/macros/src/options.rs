//! What stands in the brackets of `#[task(...)]`.

use proc_macro2::TokenStream;
use syn::{
    Expr, ExprLit, Lit, LitBool, LitStr, Path, Result, Token, meta::ParseNestedMeta, parse::Parser, parse_quote,
};

/// A task name longer than this is refused by the host (bytes).
const MAX_NAME: usize = 255;
const KNOWN: &str = "`name`, `time_limit`, `memory`, `acks_late`, `ignore_result`, `track_started` or `crate`";

/// The options as written; none where the host's default holds.
pub(crate) struct Options {
    pub(crate) name: Option<String>,
    /// Seconds.
    pub(crate) time_limit: Option<f64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) acks_late: Option<bool>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) track_started: Option<bool>,
    /// Where the crate `rtask` is found.
    pub(crate) rtask: Path,
}

impl Options {
    pub(crate) fn parse(tokens: TokenStream) -> Result<Self> {
        let mut options = Self::default();
        syn::meta::parser(|option| options.read(&option)).parse2(tokens)?;
        Ok(options)
    }

    fn read(&mut self, option: &ParseNestedMeta<'_>) -> Result<()> {
        let Some(name) = option.path.get_ident() else {
            return Err(unknown(option));
        };
        match name.to_string().as_str() {
            "name" => once(&mut self.name, option, task_name),
            "time_limit" => once(&mut self.time_limit, option, seconds),
            "memory" => once(&mut self.memory, option, bytes),
            "acks_late" => once(&mut self.acks_late, option, flag),
            "ignore_result" => once(&mut self.ignore_result, option, flag),
            "track_started" => once(&mut self.track_started, option, flag),
            "crate" => {
                self.rtask = option.value()?.parse()?;
                Ok(())
            }
            _ => Err(unknown(option)),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: None,
            time_limit: None,
            memory: None,
            acks_late: None,
            ignore_result: None,
            track_started: None,
            rtask: parse_quote!(::rtask),
        }
    }
}

fn unknown(option: &ParseNestedMeta<'_>) -> syn::Error {
    option.error(format_args!("unknown option; a task takes {KNOWN}"))
}

fn once<T>(
    slot: &mut Option<T>,
    option: &ParseNestedMeta<'_>,
    read: fn(&ParseNestedMeta<'_>) -> Result<T>,
) -> Result<()> {
    match slot.replace(read(option)?) {
        None => Ok(()),
        Some(_) => Err(option.error("this option is given twice")),
    }
}

fn task_name(option: &ParseNestedMeta<'_>) -> Result<String> {
    let text: LitStr = option.value()?.parse()?;
    match text.value() {
        name if (1..=MAX_NAME).contains(&name.len()) => Ok(name),
        _ => Err(syn::Error::new(text.span(), format_args!("a task's name has 1 to {MAX_NAME} bytes"))),
    }
}

/// `ignore_result` alone means `ignore_result = true`.
fn flag(option: &ParseNestedMeta<'_>) -> Result<bool> {
    if option.input.peek(Token![=]) {
        return Ok(option.value()?.parse::<LitBool>()?.value);
    }
    Ok(true)
}

fn seconds(option: &ParseNestedMeta<'_>) -> Result<f64> {
    let value: Expr = option.value()?.parse()?;
    let seconds = match literal(&value) {
        Some(Lit::Int(whole)) => whole.base10_parse::<u32>().ok().map(f64::from),
        Some(Lit::Float(number)) => number.base10_parse::<f64>().ok(),
        _ => None,
    };
    seconds
        .filter(|seconds| seconds.is_finite() && *seconds > 0.0)
        .ok_or_else(|| syn::Error::new_spanned(&value, "a time limit is a number of seconds above 0, such as 5 or 0.5"))
}

fn bytes(option: &ParseNestedMeta<'_>) -> Result<u64> {
    let value: Expr = option.value()?.parse()?;
    let bytes = match literal(&value) {
        Some(Lit::Int(bytes)) => bytes.base10_parse().ok(),
        Some(Lit::Str(text)) => size(&text.value()),
        _ => None,
    };
    bytes.filter(|bytes| *bytes > 0).ok_or_else(|| {
        syn::Error::new_spanned(
            &value,
            "a memory limit is a number of bytes, or text such as \"32 MiB\" (KiB, MiB, GiB)",
        )
    })
}

fn literal(value: &Expr) -> Option<&Lit> {
    match value {
        Expr::Lit(ExprLit { lit, .. }) => Some(lit),
        _ => None,
    }
}

fn size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit = match text[digits.len()..].trim() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quote::{ToTokens, quote};

    fn refusal(tokens: TokenStream) -> String {
        Options::parse(tokens).err().expect("an option that is refused").to_string()
    }

    #[test]
    fn every_option_is_read() {
        let options = Options::parse(quote! {
            name = "math.div", time_limit = 5, memory = "32 MiB", acks_late = false, ignore_result, track_started,
            crate = my::rtask,
        })
        .unwrap();
        assert_eq!(options.name.as_deref(), Some("math.div"));
        assert_eq!(options.time_limit, Some(5.0));
        assert_eq!(options.memory, Some(32 << 20));
        assert_eq!(options.acks_late, Some(false));
        assert_eq!(options.ignore_result, Some(true));
        assert_eq!(options.track_started, Some(true));
        assert_eq!(options.rtask.to_token_stream().to_string(), "my :: rtask");
    }

    #[test]
    fn what_is_not_written_is_left_to_the_host() {
        let options = Options::parse(quote!()).unwrap();
        assert_eq!(options.name, None);
        assert_eq!(options.time_limit, None);
        assert_eq!(options.memory, None);
        assert_eq!(options.acks_late, None);
        assert_eq!(options.ignore_result, None);
        assert_eq!(options.track_started, None);
    }

    #[test]
    fn sizes_have_binary_units() {
        let rows = [
            ("512 KiB", Some(512 << 10)),
            ("1GiB", Some(1 << 30)),
            ("7 B", Some(7)),
            ("7", None),
            ("32 MB", None),
            ("MiB", None),
            ("1.5 MiB", None),
            ("99999999999999999999 KiB", None),
            ("18446744073709551615 KiB", None),
        ];
        for (text, expected) in rows {
            assert_eq!(size(text), expected, "{text}");
        }
    }

    #[test]
    fn wrong_options_are_refused_with_what_would_be_right() {
        let rows = [
            (quote!(timelimit = 5), "unknown option"),
            (quote!(rtask::name = "a"), "unknown option"),
            (quote!(name = ""), "1 to 255 bytes"),
            (quote!(name = "a", name = "b"), "given twice"),
            (quote!(time_limit = 0), "seconds above 0"),
            (quote!(time_limit = -1), "seconds above 0"),
            (quote!(time_limit = "5"), "seconds above 0"),
            (quote!(memory = "32 MB"), "32 MiB"),
            (quote!(memory = 0), "32 MiB"),
            (quote!(acks_late = 1), "expected boolean"),
        ];
        for (tokens, expected) in rows {
            let refusal = refusal(tokens.clone());
            assert!(refusal.contains(expected), "{tokens}: {refusal}");
        }
    }
}
