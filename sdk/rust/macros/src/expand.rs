//! What an annotated function becomes: itself, and a registration that `rtask` finds at run time.

use proc_macro2::{Span, TokenStream};
use quote::{ToTokens, quote, quote_spanned};
use syn::{
    Attribute, Expr, ExprLit, Ident, ItemFn, Lit, Meta, MetaNameValue, Path, ReturnType, Type, ext::IdentExt,
    parse_quote, parse2, spanned::Spanned,
};

use crate::{
    options::Options,
    signature::{Kind, Parameter, Signature},
    values::{Backoff, MaxRetries},
};

/// The manifest's schema allows no longer documentation (characters).
const MAX_DOC: usize = 10_000;

/// The function, then either its registration or the errors that say why it cannot be a task.
pub(crate) fn task(options: TokenStream, item: TokenStream) -> TokenStream {
    let mut function: ItemFn = match parse2(item) {
        Ok(function) => function,
        Err(error) => {
            return syn::Error::new(error.span(), "a task is a function").into_compile_error();
        }
    };
    let signature = Signature::take(&mut function.sig);
    keep_frame(&mut function);
    let registration = match (Options::parse(options), signature) {
        (Ok(options), Ok(signature)) => registration(&function, &options, &signature),
        (Err(mut error), Err(other)) => {
            error.combine(other);
            error.into_compile_error()
        }
        (Err(error), Ok(_)) | (Ok(_), Err(error)) => error.into_compile_error(),
    };
    quote!(#function #registration)
}

/// A trap's backtrace is to name the task, which the compiler would inline into its only caller.
fn keep_frame(function: &mut ItemFn) {
    if !function.attrs.iter().any(|attribute| attribute.path().is_ident("inline")) {
        function.attrs.push(parse_quote!(#[inline(never)]));
    }
}

fn registration(function: &ItemFn, options: &Options, signature: &Signature) -> TokenStream {
    let rtask = rtask(options.rtask.as_ref());
    let cfg = function.attrs.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    let own_name = function.sig.ident.unraw().to_string();
    let name = match &options.name {
        Some(name) => quote!(#name),
        None => quote!(::core::concat!(::core::env!("CARGO_CRATE_NAME"), ".", #own_name)),
    };
    let doc = documentation(&function.attrs);
    let parameters = signature.parameters.iter().map(|parameter| describe(&rtask, parameter));
    let values = described_options(&rtask, options);
    let call = call(&rtask, function, signature);
    quote! {
        #(#cfg)*
        const _: () = {
            #rtask::inventory::submit! {
                #rtask::Task {
                    name: #name,
                    package: ::core::env!("CARGO_PKG_NAME"),
                    function: #own_name,
                    doc: #doc,
                    parameters: &[#(#parameters),*],
                    options: #rtask::Options { #values },
                    run: #call,
                }
            }
        };
    }
}

fn rtask(path: Option<&Path>) -> TokenStream {
    match path {
        Some(path) => quote!(#path::__private),
        None => quote!(::rtask::__private),
    }
}

/// The fields of `rtask`'s `Options`; the compiler of the task would miss one that is forgotten here.
fn described_options(rtask: &TokenStream, options: &Options) -> TokenStream {
    let fields = [
        ("acks_late", option(&options.acks_late)),
        ("acks_on_failure", option(&options.acks_on_failure)),
        ("acks_on_timeout", option(&options.acks_on_timeout)),
        ("reject_on_worker_lost", option(&options.reject_on_worker_lost)),
        ("ignore_result", option(&options.ignore_result)),
        ("store_errors_even_if_ignored", option(&options.store_errors_even_if_ignored)),
        ("track_started", option(&options.track_started)),
        ("time_limit", option(&options.time_limit)),
        ("soft_time_limit", option(&options.soft_time_limit)),
        ("memory", option(&options.memory)),
        ("max_retries", option(&options.max_retries.map(|limit| max_retries(rtask, limit)))),
        ("default_retry_delay", option(&options.default_retry_delay)),
        ("autoretry_for", list(options.autoretry_for.as_deref())),
        ("dont_autoretry_for", list(options.dont_autoretry_for.as_deref())),
        ("retry_backoff", option(&options.retry_backoff.and_then(factor))),
        ("retry_backoff_max", option(&options.retry_backoff_max)),
        ("retry_jitter", option(&options.retry_jitter)),
        ("rate_limit", option(&options.rate_limit)),
        ("queue", option(&options.queue)),
        ("priority", option(&options.priority)),
        ("expires", option(&options.expires)),
    ];
    let fields = fields.map(|(name, value)| {
        let name = Ident::new(name, Span::call_site());
        quote!(#name: #value)
    });
    quote!(#(#fields),*)
}

fn option<T: ToTokens>(value: &Option<T>) -> TokenStream {
    match value {
        Some(value) => quote!(::core::option::Option::Some(#value)),
        None => quote!(::core::option::Option::None),
    }
}

fn list(names: Option<&[String]>) -> TokenStream {
    let names = names.unwrap_or_default();
    quote!(&[#(#names),*])
}

fn max_retries(rtask: &TokenStream, limit: MaxRetries) -> TokenStream {
    match limit {
        MaxRetries::Times(times) => quote!(#rtask::MaxRetries::Times(#times)),
        MaxRetries::Unlimited => quote!(#rtask::MaxRetries::Unlimited),
    }
}

fn factor(backoff: Backoff) -> Option<f64> {
    match backoff {
        Backoff::Off => None,
        Backoff::Factor(factor) => Some(factor),
    }
}

/// A parameter's entry in the manifest.
fn describe(rtask: &TokenStream, parameter: &Parameter) -> TokenStream {
    let Parameter { name, ty, kind } = parameter;
    let written = written(ty);
    let kind = match kind {
        Kind::Required => quote!(Required),
        Kind::Optional => quote!(Optional),
        Kind::Default(default) => {
            let value = default_value(default.as_ref(), ty);
            quote_spanned!(ty.span()=> Default(|| {
                let value: #ty = #value;
                #rtask::json(&value)
            }))
        }
        Kind::Variadic => quote!(Variadic),
        Kind::Keywords => quote!(Keywords),
    };
    quote!(#rtask::Parameter { name: #name, written: #written, kind: #rtask::Kind::#kind })
}

/// The closure that takes the arguments out of a call, calls the function and turns its result into JSON.
fn call(rtask: &TokenStream, function: &ItemFn, signature: &Signature) -> TokenStream {
    let parameters = || signature.parameters.iter().enumerate();
    let takes = parameters().map(|(index, parameter)| {
        let (name, ty) = (argument(index, parameter), &parameter.ty);
        let value = take(index, parameter);
        quote_spanned!(ty.span()=> let #name: #ty = #value;)
    });
    let context = signature.context.iter().map(|ty| own("_context", ty.span()));
    let passed = context.chain(parameters().map(|(index, parameter)| argument(index, parameter)));
    let function_name = &function.sig.ident;
    let finish = finish(rtask, &function.sig, quote!(#function_name(#(#passed),*)));
    let [context, arguments] = ["_context", "_arguments"].map(|name| own(name, Span::call_site()));
    quote!(|#context, #arguments| { #(#takes)* #finish })
}

/// The expression that takes one argument out of the call.
fn take(index: usize, parameter: &Parameter) -> TokenStream {
    let ty = &parameter.ty;
    let arguments = own("_arguments", ty.span());
    match &parameter.kind {
        Kind::Required => quote_spanned!(ty.span()=> #arguments.required(#index)?),
        Kind::Optional => {
            quote_spanned!(ty.span()=> #arguments.optional(#index)?.unwrap_or_default())
        }
        Kind::Default(default) => {
            let default = default_value(default.as_ref(), ty);
            quote_spanned! {ty.span()=>
                match #arguments.optional(#index)? {
                    ::core::option::Option::Some(given) => given,
                    ::core::option::Option::None => #default,
                }
            }
        }
        Kind::Variadic => quote_spanned!(ty.span()=> #arguments.variadic(#index)?),
        Kind::Keywords => quote_spanned!(ty.span()=> #arguments.keywords()?),
    }
}

/// What is done with what the function returns.
fn finish(rtask: &TokenStream, signature: &syn::Signature, invoke: TokenStream) -> TokenStream {
    let span = match &signature.output {
        ReturnType::Default => signature.ident.span(),
        ReturnType::Type(_, ty) if matches!(**ty, Type::Never(_)) => return invoke,
        ReturnType::Type(_, ty) => ty.span(),
    };
    let [arguments, result] = ["_arguments", "result"].map(|name| own(name, span));
    quote_spanned! {result.span()=>
        use #rtask::{Fallible as _, Plain as _};
        let #result = #invoke;
        (&#result).outcome().finish(#arguments.task(), #result)
    }
}

fn argument(index: usize, parameter: &Parameter) -> Ident {
    own(&format!("argument{index}"), parameter.ty.span())
}

/// A variable of our own: no name of the user's can meet it, and errors point to the user's code at `place`.
fn own(name: &str, place: Span) -> Ident {
    Ident::new(name, Span::mixed_site().located_at(place))
}

/// A default as an expression of the parameter's type; text in quotes may become a `String`.
fn default_value(default: Option<&Expr>, ty: &Type) -> TokenStream {
    match default {
        None => quote_spanned!(ty.span()=> ::core::default::Default::default()),
        Some(text @ Expr::Lit(ExprLit { lit: Lit::Str(_), .. })) => {
            quote_spanned!(text.span()=> ::core::convert::From::from(#text))
        }
        Some(value) => quote!(#value),
    }
}

/// The text of the `///` lines, without the space that follows the slashes.
fn documentation(attributes: &[Attribute]) -> String {
    let lines = attributes.iter().filter_map(|attribute| match &attribute.meta {
        Meta::NameValue(MetaNameValue { path, value: Expr::Lit(ExprLit { lit: Lit::Str(text), .. }), .. })
            if path.is_ident("doc") =>
        {
            Some(text.value())
        }
        _ => None,
    });
    let lines: Vec<String> = lines.map(|line| line.strip_prefix(' ').unwrap_or(&line).to_owned()).collect();
    lines.join("\n").trim().chars().take(MAX_DOC).collect()
}

/// A type as its author would write it; tokens alone are printed with blanks between all of them.
fn written(ty: &Type) -> String {
    let mut text = ty.to_token_stream().to_string();
    for (spaced, tight) in
        [(" :: ", "::"), (" < ", "<"), (" <", "<"), ("< ", "<"), (" >", ">"), (" ,", ","), (" ;", ";"), ("& ", "&")]
    {
        text = text.replace(spaced, tight);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    #[test]
    fn types_are_told_as_they_are_written() {
        let rows: [(Type, &str); 4] = [
            (parse_quote!(Option<Vec<i64>>), "Option<Vec<i64>>"),
            (parse_quote!(std::collections::BTreeMap<String, f64>), "std::collections::BTreeMap<String, f64>"),
            (parse_quote!([u8; 4]), "[u8; 4]"),
            (parse_quote!((i64, String)), "(i64, String)"),
        ];
        for (ty, expected) in rows {
            assert_eq!(written(&ty), expected);
        }
    }

    #[test]
    fn documentation_is_the_text_of_the_comment() {
        let function: ItemFn = parse_quote! {
            /// Divides.
            ///
            ///   An indented line.
            #[must_use]
            fn f() {}
        };
        assert_eq!(documentation(&function.attrs), "Divides.\n\n  An indented line.");
    }

    #[test]
    fn a_refused_function_is_still_there_without_our_attributes() {
        let expanded = task(
            quote!(),
            quote!(
                async fn f(#[default = 1] a: i64) {}
            ),
        )
        .to_string();
        assert!(expanded.contains("async fn f (a : i64) { }"), "{expanded}");
        assert!(expanded.contains("compile_error"), "{expanded}");
    }

    #[test]
    fn anything_but_a_function_is_refused() {
        let expanded = task(
            quote!(),
            quote!(
                struct S;
            ),
        )
        .to_string();
        assert!(expanded.contains("a task is a function"), "{expanded}");
    }

    #[test]
    fn a_condition_on_the_function_holds_for_its_registration() {
        let expanded = task(
            quote!(),
            quote!(
                #[cfg(unix)]
                fn f() {}
            ),
        )
        .to_string();
        assert_eq!(expanded.matches("cfg (unix)").count(), 2, "{expanded}");
    }
}
