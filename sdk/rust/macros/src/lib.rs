//! The attribute macro behind `rtask::task`. Its documentation, with examples that compile, is at the re-export in
//! the crate `rtask`, which is the only one that users name.
//!
//! Read [`expand`] first: what an annotated function becomes. [`options`] reads what stands in the attribute's
//! brackets, [`values`] what an option can be, [`signature`] what the function takes. Nothing here knows how a task is called; that is `rtask`'s.

use proc_macro::TokenStream;

mod expand;
mod options;
mod signature;
mod values;

#[proc_macro_attribute]
pub fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    expand::task(options.into(), item.into()).into()
}
