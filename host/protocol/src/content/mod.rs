//! What a body may be made of: serialisers and compressions (`kombu/serialization.py`, `kombu/compression.py`).
//!
//! Whatever a body came as, it goes on as JSON text ([`unpack`]). What JSON cannot say itself is tagged as kombu's own
//! JSON tags it: `{"__type__": "bytes", "__value__": "..."}` (`kombu/utils/json.py`).

use std::{borrow::Cow, fmt, str::FromStr, sync::Arc};

use crate::security::{self, CertificateStore, Signer};

mod compression;
mod msgpack;
mod text;
mod yaml;

pub use compression::Compression;

/// How deeply a body's values may be nested: as deeply as Python's own parser goes.
pub const MAX_DEPTH: usize = 1000;

/// What a reader takes.
#[derive(Clone, Debug)]
pub struct Accept {
    /// `accept_content`, of messages that nobody signed.
    pub content: ContentTypes,
    /// Whose signed messages are taken, whatever serialiser they were made with (`auth` in `accept_content`); without
    /// it, nobody's.
    pub signed: Option<Arc<CertificateStore>>,
    /// Bytes of a body: as it came, decompressed, and as JSON.
    pub max_body: usize,
}

impl Default for Accept {
    /// JSON, as for Celery, of at most 16 MiB.
    fn default() -> Self {
        Self { content: ContentTypes::default(), signed: None, max_body: 16 << 20 }
    }
}

impl From<&Accept> for Accept {
    fn from(accept: &Accept) -> Self {
        accept.clone()
    }
}

impl Accept {
    /// Whether what nobody signed is refused.
    pub fn is_signed_only(&self) -> bool {
        self.signed.is_some() && self.content.is_empty()
    }
}

/// Celery's default content in bodies of at most so many bytes.
impl From<usize> for Accept {
    fn from(max_body: usize) -> Self {
        Self { max_body, ..Self::default() }
    }
}

/// A set of serialisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentTypes(u8);

impl ContentTypes {
    pub const ALL: Self = Self(Serializer::Json.bit() | Serializer::Yaml.bit() | Serializer::Msgpack.bit());

    pub fn contains(self, serializer: Serializer) -> bool {
        self.0 & serializer.bit() != 0
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl Default for ContentTypes {
    /// Celery's `accept_content`.
    fn default() -> Self {
        Self(Serializer::Json.bit())
    }
}

impl FromIterator<Serializer> for ContentTypes {
    fn from_iter<I: IntoIterator<Item = Serializer>>(serializers: I) -> Self {
        Self(serializers.into_iter().fold(0, |bits, serializer| bits | serializer.bit()))
    }
}

/// What turns values into bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Serializer {
    #[default]
    Json,
    Yaml,
    Msgpack,
}

/// A name in `accept_content`, and what can be named where a serialiser is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentName {
    Plain(Serializer),
    /// Celery's `auth`: JSON, signed.
    Signed,
}

impl Default for ContentName {
    fn default() -> Self {
        Self::Plain(Serializer::default())
    }
}

impl fmt::Display for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(serializer) => serializer.fmt(f),
            Self::Signed => f.write_str("auth"),
        }
    }
}

impl FromStr for ContentName {
    type Err = SerializerError;

    fn from_str(name: &str) -> Result<Self, SerializerError> {
        match name.trim() {
            "auth" | security::CONTENT_TYPE => Ok(Self::Signed),
            name => name.parse().map(Self::Plain),
        }
    }
}

/// Why a name is no serialiser's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SerializerError {
    #[error("pickle runs code of whoever wrote it, so it is never read; use json, yaml or msgpack")]
    Pickle,
    #[error("`{0}` is not known; use json, yaml or msgpack, or auth for what is signed")]
    Unknown(String),
}

impl Serializer {
    const fn bit(self) -> u8 {
        match self {
            Self::Json => 1,
            Self::Yaml => 2,
            Self::Msgpack => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Yaml => "yaml",
            Self::Msgpack => "msgpack",
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/x-yaml",
            Self::Msgpack => "application/x-msgpack",
        }
    }

    /// As kombu sets it beside the content type.
    pub fn content_encoding(self) -> &'static str {
        match self {
            Self::Json | Self::Yaml => "utf-8",
            Self::Msgpack => "binary",
        }
    }

    /// The bytes that say what `json` says. What kombu's JSON tags as bytes becomes bytes again.
    ///
    /// # Errors
    /// When the serialiser has no way to say it: YAML and msgpack know no integer of more than 64 bits here, and
    /// nothing that is nested more than 127 deep.
    pub fn encode(self, json: &str) -> Result<Vec<u8>, ContentError> {
        match self {
            Self::Json => Ok(json.as_bytes().to_vec()),
            Self::Yaml => Ok(yaml::write(&text::tree(json)?).into_bytes()),
            Self::Msgpack => Ok(msgpack::write(&text::tree(json)?)),
        }
    }
}

impl fmt::Display for Serializer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name as in `task_serializer`, or a content type with or without parameters.
impl FromStr for Serializer {
    type Err = SerializerError;

    fn from_str(name: &str) -> Result<Self, SerializerError> {
        let (plain, _) = name.split_once(';').unwrap_or((name, ""));
        match plain.trim() {
            "json" | "application/json" => Ok(Self::Json),
            "yaml" | "application/x-yaml" | "application/yaml" => Ok(Self::Yaml),
            "msgpack" | "application/x-msgpack" | "application/msgpack" => Ok(Self::Msgpack),
            "pickle" | "application/x-python-serialize" => Err(SerializerError::Pickle),
            other => Err(SerializerError::Unknown(other.escape_debug().to_string())),
        }
    }
}

/// Why bytes are not what they were said to be, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("the body is not {serializer}: {reason}")]
    Malformed { serializer: Serializer, reason: String },
    #[error("the body is not {compression}: {reason}")]
    Damaged { compression: Compression, reason: String },
    #[error("the body has more than the {limit} bytes allowed once it is unpacked")]
    TooLarge { limit: usize },
    #[error("the body is nested more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("the body holds {0}, which JSON cannot say")]
    NotJson(&'static str),
    #[error("an integer of more than 64 bits can only be sent as json")]
    WideInteger,
}

/// A body, and what its message's properties say of it.
pub(crate) struct Written {
    pub content_type: &'static str,
    pub content_encoding: &'static str,
    pub bytes: Vec<u8>,
}

impl Written {
    /// What `json` says. What the serialiser cannot say ([`Serializer::encode`]) is written as JSON, which every worker
    /// accepts.
    pub(crate) fn new(json: String, serializer: Serializer, signer: Option<&Signer>) -> Self {
        let (serializer, bytes) = match serializer.encode(&json) {
            Ok(bytes) => (serializer, bytes),
            Err(_) => (Serializer::Json, json.into_bytes()),
        };
        let (content_type, content_encoding) = (serializer.content_type(), serializer.content_encoding());
        match signer {
            None => Self { content_type, content_encoding, bytes },
            Some(signer) => Self {
                content_type: security::CONTENT_TYPE,
                content_encoding: security::CONTENT_ENCODING,
                bytes: signer.seal(content_type, content_encoding, &bytes),
            },
        }
    }
}

/// The JSON text in a body, from the outside in: decompressed, then converted. Never more than `limit` bytes are
/// made, whatever the body claims; its nesting is bounded by [`MAX_DEPTH`].
///
/// # Errors
/// See [`ContentError`].
pub(crate) fn unpack<'a>(
    body: &'a [u8],
    compression: Option<Compression>,
    serializer: Serializer,
    limit: usize,
) -> Result<Cow<'a, [u8]>, ContentError> {
    let plain = decompress(body, compression, limit)?;
    let json = match serializer {
        Serializer::Json => plain,
        Serializer::Yaml => Cow::Owned(yaml::read(&plain, limit)?),
        Serializer::Msgpack => Cow::Owned(msgpack::read(&plain, limit)?),
    };
    match crate::json::is_deeper_than(&json, MAX_DEPTH) {
        true => Err(ContentError::TooDeep),
        false => Ok(json),
    }
}

/// Never more than `limit` bytes.
pub(crate) fn decompress(
    body: &[u8],
    compression: Option<Compression>,
    limit: usize,
) -> Result<Cow<'_, [u8]>, ContentError> {
    match compression {
        None => Ok(Cow::Borrowed(body)),
        Some(compression) => compression.decompress(body, limit).map(Cow::Owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_goes_by_the_names_of_serialisers_and_auth() {
        for (name, expected) in [
            ("auth", ContentName::Signed),
            ("application/data", ContentName::Signed),
            ("msgpack", ContentName::Plain(Serializer::Msgpack)),
            ("application/json; charset=utf-8", ContentName::Plain(Serializer::Json)),
        ] {
            assert_eq!(name.parse(), Ok(expected), "{name}");
            assert_eq!(expected.to_string().parse(), Ok(expected));
        }
        assert_eq!("pickle".parse::<ContentName>(), Err(SerializerError::Pickle));
    }

    #[test]
    fn serialisers_go_by_celerys_names_and_content_types() {
        let rows = [
            ("json", Ok(Serializer::Json)),
            ("application/json; charset=utf-8", Ok(Serializer::Json)),
            ("application/x-yaml", Ok(Serializer::Yaml)),
            ("application/x-msgpack", Ok(Serializer::Msgpack)),
            ("pickle", Err(SerializerError::Pickle)),
            ("application/x-python-serialize", Err(SerializerError::Pickle)),
            ("text/plain", Err(SerializerError::Unknown("text/plain".into()))),
        ];
        for (name, expected) in rows {
            assert_eq!(name.parse::<Serializer>(), expected, "{name}");
        }
        for serializer in [Serializer::Json, Serializer::Yaml, Serializer::Msgpack] {
            assert_eq!(serializer.name().parse(), Ok(serializer));
            assert_eq!(serializer.content_type().parse(), Ok(serializer));
        }
    }

    #[test]
    fn only_json_is_accepted_unless_others_are_named() {
        assert!(Accept::default().content.contains(Serializer::Json));
        assert!(!Accept::default().content.contains(Serializer::Msgpack));
        let named = ContentTypes::from_iter([Serializer::Yaml, Serializer::Msgpack]);
        assert!(named.contains(Serializer::Yaml) && !named.contains(Serializer::Json));
        assert!(ContentTypes::ALL.contains(Serializer::Json));
    }

    #[test]
    fn depth_is_bounded_before_anything_is_parsed() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        let unpack = |json: &str| unpack(json.as_bytes(), None, Serializer::Json, 1 << 20).map(|_| ());
        assert!(unpack(&nested(MAX_DEPTH)).is_ok());
        assert!(matches!(unpack(&nested(100_000)), Err(ContentError::TooDeep)));
    }

    /// What goes out in each serialiser comes back as it was.
    #[test]
    fn values_survive_every_serialiser() {
        let json = r#"[[1,-5,1.5,1e300,18446744073709551615,"é\u0007\u007f \"q\" 😀","yes","1:30","2026-11-24","~",null,true,""],
            {"k":{"__type__":"bytes","__value__":"abc"},"x":{"__type__":"base64","__value__":"/w=="},"":[],"no":{}},{}]"#;
        let expected: serde_json::Value = serde_json::from_str(json).unwrap();
        for serializer in [Serializer::Json, Serializer::Yaml, Serializer::Msgpack] {
            for compression in [None, Some(Compression::Zlib), Some(Compression::Bzip2), Some(Compression::Zstd)] {
                let bytes = serializer.encode(json).unwrap();
                let body = compression.map_or(bytes.clone(), |compression| compression.compress(&bytes));
                let read = unpack(&body, compression, serializer, 4096).unwrap();
                let value: serde_json::Value = serde_json::from_slice(&read).unwrap();
                assert_eq!(value, expected, "{serializer} {compression:?} {}", String::from_utf8_lossy(&bytes));
            }
        }
    }

    #[test]
    fn what_a_serialiser_cannot_say_is_refused_and_not_changed() {
        for serializer in [Serializer::Yaml, Serializer::Msgpack] {
            let error = serializer.encode("[18446744073709551616]").unwrap_err();
            assert!(matches!(error, ContentError::WideInteger), "{error}");
            assert!(serializer.encode(r#"["18446744073709551616", 1e30, 12345678901234567890.5]"#).is_ok());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_outgrow_their_limit(body: Vec<u8>, serializer in 0_u8..3, compression in 0_u8..4) {
            let serializer = [Serializer::Json, Serializer::Yaml, Serializer::Msgpack][usize::from(serializer)];
            let compression = [None, Some(Compression::Zlib), Some(Compression::Bzip2), Some(Compression::Zstd)]
                [usize::from(compression)];
            if let Ok(json) = unpack(&body, compression, serializer, 64) {
                proptest::prop_assert!(json.len() <= 64.max(body.len()));
            }
        }
    }
}
