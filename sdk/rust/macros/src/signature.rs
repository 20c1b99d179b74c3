//! What an annotated function takes, and which functions cannot be tasks.

use syn::{
    Attribute, Error, Expr, FnArg, GenericArgument, GenericParam, Meta, Pat, PatType, PathArguments, Result, Type,
    ext::IdentExt, spanned::Spanned,
};

/// What the function takes, in order, without the context.
pub(crate) struct Signature {
    /// Whether the first parameter is a reference to the context.
    pub(crate) context: Option<Type>,
    pub(crate) parameters: Vec<Parameter>,
}

pub(crate) struct Parameter {
    /// As callers write it: without `r#`.
    pub(crate) name: String,
    pub(crate) ty: Type,
    pub(crate) kind: Kind,
}

/// Where a parameter's value comes from.
pub(crate) enum Kind {
    Required,
    /// `Option<T>`, which is `None` when the argument is absent.
    Optional,
    /// `#[default = expression]`, or `#[default]` for the type's own.
    Default(Option<Expr>),
    /// `#[args]`: the positional arguments that are left.
    Variadic,
    /// `#[kwargs]`: the keyword arguments that are left.
    Keywords,
}

impl Signature {
    /// Reads the signature and takes our attributes off its parameters, even when it is refused: the compiler would
    /// stumble over them.
    pub(crate) fn take(signature: &mut syn::Signature) -> Result<Self> {
        let mut refusals = Refusals(None);
        refusals.note(refuse_kind(signature));
        let mut read = Self { context: None, parameters: Vec::new() };
        for (index, input) in signature.inputs.iter_mut().enumerate() {
            refusals.note(read.input(index, input));
        }
        refusals.note(read.refuse_order());
        refusals.result().map(|()| read)
    }

    fn input(&mut self, index: usize, input: &mut FnArg) -> Result<()> {
        let input = match input {
            FnArg::Typed(input) => input,
            FnArg::Receiver(receiver) => {
                return Err(Error::new_spanned(receiver, "a task is a plain function; it has no `self`"));
            }
        };
        let kind = take_kind(input)?;
        match &*input.ty {
            Type::Reference(reference) if is_context(&reference.elem) && index == 0 => {
                if let Some(mutable) = reference.mutability {
                    return Err(Error::new(mutable.span, "the context is shared: take `&Context`"));
                }
                self.context = Some((*input.ty).clone());
                return Ok(());
            }
            Type::Reference(reference) if is_context(&reference.elem) => {
                return Err(Error::new_spanned(reference, "the context comes first"));
            }
            Type::Reference(reference) => {
                let message = "a task owns its arguments: take `String` for `&str`, `Vec<T>` for `&[T]`";
                return Err(Error::new_spanned(reference, message));
            }
            Type::ImplTrait(generic) => {
                return Err(Error::new_spanned(
                    generic,
                    "a task's parameters have one type each, which `impl Trait` is not",
                ));
            }
            _ => {}
        }
        let (name, ty) = (name(&input.pat)?, (*input.ty).clone());
        let kind = kind.unwrap_or(if is_option(&ty) { Kind::Optional } else { Kind::Required });
        self.parameters.push(Parameter { name, ty, kind });
        Ok(())
    }

    /// `#[args]` and then `#[kwargs]` end the list, as in Python.
    fn refuse_order(&self) -> Result<()> {
        let rank = |kind: &Kind| match kind {
            Kind::Required | Kind::Optional | Kind::Default(_) => 0,
            Kind::Variadic => 1,
            Kind::Keywords => 2,
        };
        for pair in self.parameters.windows(2) {
            let (before, after) = (rank(&pair[0].kind), rank(&pair[1].kind));
            if before > after {
                return Err(Error::new(
                    pair[1].ty.span(),
                    "parameters come in the order: named, `#[args]`, `#[kwargs]`",
                ));
            }
            if before == after && before > 0 {
                return Err(Error::new(pair[1].ty.span(), "a task takes `#[args]` and `#[kwargs]` once each"));
            }
        }
        Ok(())
    }
}

/// Every refusal of one function, so that they are told together.
struct Refusals(Option<Error>);

impl Refusals {
    fn note(&mut self, result: Result<()>) {
        match (&mut self.0, result) {
            (_, Ok(())) => {}
            (Some(first), Err(error)) => first.combine(error),
            (none, Err(error)) => *none = Some(error),
        }
    }

    fn result(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

fn refuse_kind(signature: &syn::Signature) -> Result<()> {
    let mut refusals = Refusals(None);
    if let Some(token) = &signature.asyncness {
        let message = "a task cannot be `async`: it has an instance of its own, and may block in it";
        refusals.note(Err(Error::new_spanned(token, message)));
    }
    if let Some(token) = &signature.unsafety {
        refusals.note(Err(Error::new_spanned(token, "a task cannot be `unsafe`: anyone may call it")));
    }
    for parameter in &signature.generics.params {
        // A lifetime, such as that of the context, chooses no code.
        if !matches!(parameter, GenericParam::Lifetime(_)) {
            let message = "a task cannot be generic: its callers send JSON, which chooses no type";
            refusals.note(Err(Error::new_spanned(parameter, message)));
        }
    }
    refusals.result()
}

/// Our attribute on a parameter, taken off it.
fn take_kind(input: &mut PatType) -> Result<Option<Kind>> {
    let mut kind = None;
    let mut refusals = Refusals(None);
    input.attrs.retain(|attribute| {
        let Some(read) = read_kind(attribute) else {
            return true;
        };
        refusals.note(read.and_then(|read| match kind.replace(read) {
            None => Ok(()),
            Some(_) => {
                Err(Error::new_spanned(attribute, "a parameter has one of `#[default]`, `#[args]`, `#[kwargs]`"))
            }
        }));
        false
    });
    refusals.result().map(|()| kind)
}

fn read_kind(attribute: &Attribute) -> Option<Result<Kind>> {
    let path = attribute.path();
    if path.is_ident("default") {
        return Some(match &attribute.meta {
            Meta::Path(_) => Ok(Kind::Default(None)),
            Meta::NameValue(default) => Ok(Kind::Default(Some(default.value.clone()))),
            Meta::List(list) => Err(Error::new_spanned(list, "write `#[default = value]`")),
        });
    }
    let kind = match () {
        () if path.is_ident("args") => Kind::Variadic,
        () if path.is_ident("kwargs") => Kind::Keywords,
        () => return None,
    };
    Some(attribute.meta.require_path_only().map(|_| kind))
}

fn name(pattern: &Pat) -> Result<String> {
    match pattern {
        Pat::Ident(name) if name.by_ref.is_none() && name.subpat.is_none() => Ok(name.ident.unraw().to_string()),
        other => Err(Error::new_spanned(other, "a task's parameter needs a plain name, by which callers can pass it")),
    }
}

/// A reference to a type of this name is taken for the context; to any other name it would be an argument.
fn is_context(ty: &Type) -> bool {
    last_segment(ty).is_some_and(|segment| segment.ident == "Context")
}

fn is_option(ty: &Type) -> bool {
    last_segment(ty).is_some_and(|segment| {
        let PathArguments::AngleBracketed(arguments) = &segment.arguments else {
            return false;
        };
        segment.ident == "Option" && matches!(arguments.args.first(), Some(GenericArgument::Type(_)))
    })
}

fn last_segment(ty: &Type) -> Option<&syn::PathSegment> {
    match ty {
        Type::Path(path) if path.qself.is_none() => path.path.segments.last(),
        Type::Group(group) => last_segment(&group.elem),
        Type::Paren(group) => last_segment(&group.elem),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use syn::parse_quote;

    fn take(mut signature: syn::Signature) -> Result<Signature> {
        Signature::take(&mut signature)
    }

    #[test]
    fn parameters_are_told_apart() {
        let mut written: syn::Signature = parse_quote! {
            fn f(
                context: &rtask::Context, a: i64, mut b: Option<i64>, #[default = 1] c: i64, #[default] r#type: String,
                #[args] rest: Vec<i64>, #[kwargs] keywords: BTreeMap<String, i64>,
            )
        };
        let read = Signature::take(&mut written).unwrap();
        assert!(read.context.is_some());
        let kinds: Vec<_> = read.parameters.iter().map(|parameter| (&*parameter.name, &parameter.kind)).collect();
        assert!(matches!(
            kinds[..],
            [
                ("a", Kind::Required),
                ("b", Kind::Optional),
                ("c", Kind::Default(Some(_))),
                ("type", Kind::Default(None)),
                ("rest", Kind::Variadic),
                ("keywords", Kind::Keywords),
            ]
        ));
        let attributes =
            written.inputs.iter().filter(|input| matches!(input, FnArg::Typed(input) if !input.attrs.is_empty()));
        assert_eq!(attributes.count(), 0, "our attributes stay on the function");
    }

    #[test]
    fn what_cannot_be_a_task_is_refused_with_the_reason() {
        let rows: Vec<(syn::Signature, &str)> = vec![
            (parse_quote!(async fn f()), "cannot be `async`"),
            (parse_quote!(unsafe fn f()), "cannot be `unsafe`"),
            (parse_quote!(fn f<T>(a: T)), "cannot be generic"),
            (parse_quote!(fn f<const N: usize>()), "cannot be generic"),
            (parse_quote!(fn f(a: impl Into<String>)), "`impl Trait`"),
            (parse_quote!(fn f(&self)), "no `self`"),
            (parse_quote!(fn f(_: i64)), "needs a plain name"),
            (parse_quote!(fn f((a, b): (i64, i64))), "needs a plain name"),
            (parse_quote!(fn f(text: &str)), "owns its arguments"),
            (parse_quote!(fn f(a: i64, context: &Context)), "the context comes first"),
            (parse_quote!(fn f(context: &mut Context)), "take `&Context`"),
            (parse_quote!(fn f(#[args] a: Vec<i64>, b: i64)), "in the order"),
            (parse_quote!(fn f(#[kwargs] a: M, #[args] b: Vec<i64>)), "in the order"),
            (parse_quote!(fn f(#[args] a: Vec<i64>, #[args] b: Vec<i64>)), "once each"),
            (parse_quote!(fn f(#[default(1)] a: i64)), "#[default = value]"),
            (parse_quote!(fn f(#[args] #[default] a: Vec<i64>)), "has one of"),
        ];
        for (signature, expected) in rows {
            let refusal = take(signature).err().expect(expected).to_string();
            assert!(refusal.contains(expected), "{refusal:?} should say {expected:?}");
        }
    }

    #[test]
    fn all_refusals_of_a_function_are_told() {
        let refusal = take(parse_quote!(async fn f<T>(_: T))).err().unwrap();
        assert_eq!(refusal.into_iter().count(), 3);
    }

    #[test]
    fn a_lifetime_is_no_type() {
        assert!(take(parse_quote!(fn f<'a>(context: &'a Context))).is_ok());
    }
}
