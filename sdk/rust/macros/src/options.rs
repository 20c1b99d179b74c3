//! What stands in the brackets of `#[task(...)]`.

use proc_macro2::{Span, TokenStream};
use syn::{Error, Path, Result, meta::ParseNestedMeta, parse::Parser};

use crate::values::{self, Backoff, MaxRetries};

const KNOWN: &str = "`name`, `time_limit`, `soft_time_limit`, `memory`, `max_retries`, `default_retry_delay`, `autoretry_for`, \
    `dont_autoretry_for`, `retry_backoff`, `retry_backoff_max`, `retry_jitter`, `rate_limit`, `acks_late`, `acks_on_failure`, \
    `acks_on_timeout`, `reject_on_worker_lost`, `ignore_result`, `store_errors_even_if_ignored`, `track_started`, `queue`, \
    `priority`, `expires` or `crate`";

/// The options as written; none where the host's default holds.
#[derive(Default)]
pub(crate) struct Options {
    pub(crate) name: Option<String>,
    pub(crate) acks_late: Option<bool>,
    pub(crate) acks_on_failure: Option<bool>,
    pub(crate) acks_on_timeout: Option<bool>,
    pub(crate) reject_on_worker_lost: Option<bool>,
    pub(crate) ignore_result: Option<bool>,
    pub(crate) store_errors_even_if_ignored: Option<bool>,
    pub(crate) track_started: Option<bool>,
    /// Seconds.
    pub(crate) time_limit: Option<f64>,
    /// Seconds.
    pub(crate) soft_time_limit: Option<f64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) max_retries: Option<MaxRetries>,
    /// Seconds.
    pub(crate) default_retry_delay: Option<f64>,
    pub(crate) autoretry_for: Option<Vec<String>>,
    pub(crate) dont_autoretry_for: Option<Vec<String>>,
    pub(crate) retry_backoff: Option<Backoff>,
    /// Seconds.
    pub(crate) retry_backoff_max: Option<f64>,
    pub(crate) retry_jitter: Option<bool>,
    pub(crate) rate_limit: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) priority: Option<u8>,
    /// Seconds.
    pub(crate) expires: Option<f64>,
    /// Where the crate `rtask` is found, if it is not `::rtask`.
    pub(crate) rtask: Option<Path>,
}

impl Options {
    pub(crate) fn parse(tokens: TokenStream) -> Result<Self> {
        let mut options = Self::default();
        syn::meta::parser(|option| options.read(&option)).parse2(tokens)?;
        options.refuse_soft_over_hard()?;
        options.refuse_what_does_nothing()?;
        Ok(options)
    }

    fn read(&mut self, option: &ParseNestedMeta<'_>) -> Result<()> {
        let Some(name) = option.path.get_ident() else {
            return Err(unknown(option));
        };
        match name.to_string().as_str() {
            "name" => once(&mut self.name, option, values::name),
            "acks_late" => once(&mut self.acks_late, option, values::flag),
            "acks_on_failure" => once(&mut self.acks_on_failure, option, values::flag),
            "acks_on_timeout" => once(&mut self.acks_on_timeout, option, values::flag),
            "reject_on_worker_lost" => once(&mut self.reject_on_worker_lost, option, values::flag),
            "ignore_result" => once(&mut self.ignore_result, option, values::flag),
            "store_errors_even_if_ignored" => once(&mut self.store_errors_even_if_ignored, option, values::flag),
            "track_started" => once(&mut self.track_started, option, values::flag),
            "time_limit" => once(&mut self.time_limit, option, values::limit),
            "soft_time_limit" => once(&mut self.soft_time_limit, option, values::limit),
            "memory" => once(&mut self.memory, option, values::bytes),
            "max_retries" => once(&mut self.max_retries, option, values::max_retries),
            "default_retry_delay" => once(&mut self.default_retry_delay, option, values::delay),
            "autoretry_for" => once(&mut self.autoretry_for, option, values::exceptions),
            "dont_autoretry_for" => once(&mut self.dont_autoretry_for, option, values::exceptions),
            "retry_backoff" => once(&mut self.retry_backoff, option, values::backoff),
            "retry_backoff_max" => once(&mut self.retry_backoff_max, option, values::delay),
            "retry_jitter" => once(&mut self.retry_jitter, option, values::flag),
            "rate_limit" => once(&mut self.rate_limit, option, values::rate),
            "queue" => once(&mut self.queue, option, values::name),
            "priority" => once(&mut self.priority, option, values::priority),
            "expires" => once(&mut self.expires, option, values::limit),
            "crate" => once(&mut self.rtask, option, |option| option.value()?.parse()),
            _ => Err(unknown(option)),
        }
    }

    fn refuse_soft_over_hard(&self) -> Result<()> {
        match (self.soft_time_limit, self.time_limit) {
            (Some(soft), Some(hard)) if soft > hard => {
                Err(Error::new(Span::call_site(), "`soft_time_limit` is over `time_limit`, and would never be met"))
            }
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }

    fn refuse_what_does_nothing(&self) -> Result<()> {
        let automatic = self.autoretry_for.is_some();
        let backing_off = matches!(self.retry_backoff, Some(Backoff::Factor(_)));
        let rows = [
            ("dont_autoretry_for", self.dont_autoretry_for.is_some(), "autoretry_for", automatic),
            ("retry_backoff", backing_off, "autoretry_for", automatic),
            ("retry_backoff_max", self.retry_backoff_max.is_some(), "retry_backoff", backing_off),
            ("retry_jitter", self.retry_jitter.is_some(), "retry_backoff", backing_off),
        ];
        for (option, given, needed, present) in rows {
            if given && !present {
                let message = format_args!("`{option}` does nothing without `{needed}`");
                return Err(Error::new(Span::call_site(), message));
            }
        }
        Ok(())
    }
}

fn unknown(option: &ParseNestedMeta<'_>) -> Error {
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
            name = "math.div", time_limit = 5, soft_time_limit = 4.5, memory = "32 MiB", acks_late = false,
            acks_on_failure = false, acks_on_timeout = false, reject_on_worker_lost = false, ignore_result,
            store_errors_even_if_ignored, track_started, max_retries = 5, default_retry_delay = 0,
            autoretry_for = ["ValueError", "shop.errors.Busy"], dont_autoretry_for = ["KeyError",], retry_backoff = 2,
            retry_backoff_max = 60, retry_jitter = false, rate_limit = "10/m", queue = "slow", priority = 3, expires = 60,
            crate = my::rtask,
        })
        .unwrap();
        assert_eq!(options.name.as_deref(), Some("math.div"));
        assert_eq!((options.time_limit, options.soft_time_limit), (Some(5.0), Some(4.5)));
        assert_eq!(options.memory, Some(32 << 20));
        assert_eq!(options.acks_late, Some(false));
        assert_eq!((options.acks_on_failure, options.acks_on_timeout), (Some(false), Some(false)));
        assert_eq!(options.reject_on_worker_lost, Some(false));
        assert_eq!((options.ignore_result, options.store_errors_even_if_ignored), (Some(true), Some(true)));
        assert_eq!(options.track_started, Some(true));
        assert_eq!(options.max_retries, Some(MaxRetries::Times(5)));
        assert_eq!(options.default_retry_delay, Some(0.0));
        assert_eq!(options.autoretry_for.unwrap(), ["ValueError", "shop.errors.Busy"]);
        assert_eq!(options.dont_autoretry_for.unwrap(), ["KeyError"]);
        assert_eq!(options.retry_backoff, Some(Backoff::Factor(2.0)));
        assert_eq!((options.retry_backoff_max, options.retry_jitter), (Some(60.0), Some(false)));
        assert_eq!(options.rate_limit.as_deref(), Some("10/m"));
        assert_eq!((options.queue.as_deref(), options.priority, options.expires), (Some("slow"), Some(3), Some(60.0)));
        assert_eq!(options.rtask.to_token_stream().to_string(), "my :: rtask");
    }

    #[test]
    fn what_is_not_written_is_left_to_the_host() {
        let options = Options::parse(quote!()).unwrap();
        assert_eq!((options.name, options.time_limit, options.memory), (None, None, None));
        assert_eq!((options.acks_late, options.ignore_result, options.track_started), (None, None, None));
        assert_eq!((options.max_retries, options.autoretry_for, options.retry_backoff), (None, None, None));
    }

    #[test]
    fn retries_and_backoff_have_words_of_their_own() {
        let options = Options::parse(quote!(max_retries = unlimited, autoretry_for = ["E"], retry_backoff)).unwrap();
        assert_eq!(options.max_retries, Some(MaxRetries::Unlimited));
        assert_eq!(options.retry_backoff, Some(Backoff::Factor(1.0)));
        let options = Options::parse(quote!(retry_backoff = false)).unwrap();
        assert_eq!(options.retry_backoff, Some(Backoff::Off));
        let options = Options::parse(quote!(autoretry_for = ["E"], retry_backoff = true)).unwrap();
        assert_eq!(options.retry_backoff, Some(Backoff::Factor(1.0)));
    }

    #[test]
    fn wrong_options_are_refused_with_what_would_be_right() {
        let rows = [
            (quote!(timelimit = 5), "unknown option"),
            (quote!(rtask::name = "a"), "unknown option"),
            (quote!(name = ""), "`name` has 1 to 255 bytes"),
            (quote!(name = "a", name = "b"), "given twice"),
            (quote!(time_limit = 0), "`time_limit` is a number of seconds above 0"),
            (quote!(time_limit = -1), "seconds above 0"),
            (quote!(time_limit = "5"), "seconds above 0"),
            (quote!(time_limit = 31_536_001), "at most a year"),
            (quote!(soft_time_limit = 0), "`soft_time_limit` is a number of seconds above 0"),
            (quote!(soft_time_limit = 2, time_limit = 1), "`soft_time_limit` is over `time_limit`"),
            (quote!(expires = 0.0), "`expires` is a number of seconds above 0"),
            (quote!(memory = "32 MB"), "32 MiB"),
            (quote!(memory = 0), "32 MiB"),
            (quote!(acks_late = 1), "expected boolean"),
            (quote!(max_retries = -1), "`max_retries` is a whole number"),
            (quote!(max_retries = 1.5), "or `unlimited`"),
            (quote!(max_retries = None), "or `unlimited`"),
            (quote!(max_retries = 4_294_967_296), "or `unlimited`"),
            (quote!(default_retry_delay = -1), "seconds, 0 or above"),
            (quote!(default_retry_delay = "1"), "seconds, 0 or above"),
            (quote!(autoretry_for = "ValueError"), "a list of names in quotes"),
            (quote!(autoretry_for = [ValueError]), "a list of names in quotes"),
            (quote!(autoretry_for = []), "a list of names in quotes"),
            (quote!(autoretry_for = [""]), "1 to 255 bytes"),
            (quote!(autoretry_for = ["E"], retry_backoff = 0), "`retry_backoff` is a flag, or a number above 0"),
            (quote!(autoretry_for = ["E"], retry_backoff = "2"), "`retry_backoff` is a flag, or a number above 0"),
            (quote!(dont_autoretry_for = ["E"]), "`dont_autoretry_for` does nothing without `autoretry_for`"),
            (quote!(retry_backoff), "`retry_backoff` does nothing without `autoretry_for`"),
            (quote!(autoretry_for = ["E"], retry_backoff_max = 9), "does nothing without `retry_backoff`"),
            (quote!(retry_backoff = false, retry_jitter = false), "does nothing without `retry_backoff`"),
            (quote!(rate_limit = 10), "expected string literal"),
            (quote!(rate_limit = "10 per second"), "such as \"10/s\""),
            (quote!(rate_limit = "10/d"), "such as \"10/s\""),
            (quote!(queue = ""), "`queue` has 1 to 255 bytes"),
            (quote!(priority = 256), "`priority` is a whole number from 0 to 255"),
        ];
        for (tokens, expected) in rows {
            let refusal = refusal(tokens.clone());
            assert!(refusal.contains(expected), "{tokens}: {refusal}");
        }
    }

    #[test]
    fn every_option_is_told_to_those_who_misspell_one() {
        let refusal = refusal(quote!(timelimit = 5));
        for line in include_str!("options.rs").lines() {
            if let Some((option, _)) = line.trim().strip_prefix('"').and_then(|line| line.split_once("\" => once(")) {
                assert!(refusal.contains(&format!("`{option}`")), "{option} is not told");
            }
        }
    }
}
