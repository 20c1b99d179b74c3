//! What a signed body looks like: base64 of the signer's id (in base64 again), the signature (likewise), the content type
//! and encoding of the body within, and that body, with a separator between them (`celery/security/serialization.py`).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;

use super::{CertificateStore, MAX_KEY, Signer, certificate::MAX_ID};

/// What such a message's properties say.
pub const CONTENT_TYPE: &str = "application/data";
pub const CONTENT_ENCODING: &str = "utf-8";

const SEPARATOR: &[u8] = b"\x00\x01";
/// Of the content type and of the encoding (bytes).
const MAX_NAME: usize = 255;
const MAX_SIGNATURE: usize = MAX_KEY as usize / 8;

/// Why a signed body is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("the body is not signed as Celery signs: {0}")]
    Malformed(&'static str),
    #[error("the body is signed by `{0}`, whose certificate is not in security_cert_store")]
    Unknown(String),
    #[error("the body is signed by `{id}`, whose certificate has expired at {at}")]
    Expired { id: String, at: Timestamp },
    #[error("the body is signed by `{0}`, whose certificate is not valid yet")]
    TooEarly(String),
    #[error("the body was not signed by `{0}`, or was changed since, or is signed with another security_digest")]
    Forged(String),
}

/// A body whose signer is known.
#[derive(Debug, PartialEq)]
pub(crate) struct Opened {
    pub content_type: String,
    pub content_encoding: String,
    pub body: Vec<u8>,
}

impl CertificateStore {
    /// The body within. It takes one look-up, and one signature if its signer is known.
    ///
    /// # Errors
    /// See [`Untrusted`].
    pub(crate) fn open(&self, sealed: &[u8], now: Timestamp) -> Result<Opened, Untrusted> {
        let Fields { signer, signature, content_type, content_encoding, body } = Fields::read(sealed)?;
        let shown = || signer.escape_debug().to_string();
        let certificate = self.get(&signer).ok_or_else(|| Untrusted::Unknown(shown()))?;
        if certificate.has_expired(now) {
            return Err(Untrusted::Expired { id: shown(), at: certificate.until() });
        }
        if !certificate.is_valid_yet(now) {
            return Err(Untrusted::TooEarly(shown()));
        }
        match certificate.has_signed(&body, &signature, self.digest) {
            true => Ok(Opened { content_type, content_encoding, body }),
            false => Err(Untrusted::Forged(shown())),
        }
    }
}

struct Fields {
    signer: String,
    signature: Vec<u8>,
    content_type: String,
    content_encoding: String,
    body: Vec<u8>,
}

impl Fields {
    fn read(sealed: &[u8]) -> Result<Self, Untrusted> {
        let mut rest = STANDARD.decode(sealed).map_err(|_| Untrusted::Malformed("it is not base64"))?;
        let signer = next(&mut rest, packed(MAX_ID), "its signer's name is missing or too long")?;
        let signature = next(&mut rest, packed(MAX_SIGNATURE), "its signature is missing or too long")?;
        let content_type = next(&mut rest, MAX_NAME, "its content type is missing or too long")?;
        let content_encoding = next(&mut rest, MAX_NAME, "its content encoding is missing or too long")?;
        let signer = STANDARD.decode(signer).map_err(|_| Untrusted::Malformed("its signer's name is not base64"))?;
        Ok(Self {
            signer: text(signer)?,
            signature: STANDARD.decode(signature).map_err(|_| Untrusted::Malformed("its signature is not base64"))?,
            content_type: text(content_type)?,
            content_encoding: text(content_encoding)?,
            body: rest,
        })
    }
}

/// Take off what stands before the first separator: at most `longest` bytes.
fn next(rest: &mut Vec<u8>, longest: usize, otherwise: &'static str) -> Result<Vec<u8>, Untrusted> {
    let searched = &rest[..rest.len().min(longest + SEPARATOR.len())];
    let end = searched.windows(SEPARATOR.len()).position(|bytes| bytes == SEPARATOR);
    let end = end.ok_or(Untrusted::Malformed(otherwise))?;
    let after = rest.split_off(end + SEPARATOR.len());
    let mut field = std::mem::replace(rest, after);
    field.truncate(end);
    Ok(field)
}

/// How long so many bytes are in base64.
const fn packed(bytes: usize) -> usize {
    bytes.div_ceil(3) * 4
}

fn text(bytes: Vec<u8>) -> Result<String, Untrusted> {
    String::from_utf8(bytes).map_err(|_| Untrusted::Malformed("a name in it is not UTF-8"))
}

impl Signer {
    /// The envelope around a body of this content type and encoding.
    pub(crate) fn seal(&self, content_type: &str, content_encoding: &str, body: &[u8]) -> Vec<u8> {
        let (signer, signature) = (STANDARD.encode(&self.id), STANDARD.encode(self.sign(body)));
        let fields: [&[u8]; 5] =
            [signer.as_bytes(), signature.as_bytes(), content_type.as_bytes(), content_encoding.as_bytes(), body];
        STANDARD.encode(fields.join(SEPARATOR)).into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::{
        Certificate, Digest,
        tests_folder::{read, signer_of, store},
    };

    fn now() -> Timestamp {
        "2026-11-24T12:00:00Z".parse().unwrap()
    }

    fn sealed(key: &str, certificate: &str) -> Vec<u8> {
        let signer = signer_of(&read(key), None, certificate, Digest::Sha256).unwrap();
        signer.seal("application/json", "utf-8", b"[[\x00\x01], {}, {}]")
    }

    #[test]
    fn what_is_sealed_is_opened_as_it_was() {
        let opened = store(&["signer.pem"], Digest::Sha256).open(&sealed("signer.key", "signer.pem"), now()).unwrap();
        assert_eq!((&*opened.content_type, &*opened.content_encoding), ("application/json", "utf-8"));
        assert_eq!(opened.body, b"[[\x00\x01], {}, {}]");
    }

    #[test]
    fn a_stranger_and_an_impostor_are_not_believed() {
        let store = store(&["signer.pem", "expired.pem"], Digest::Sha256);
        let stranger = store.open(&sealed("stranger.key", "stranger.pem"), now()).unwrap_err();
        assert!(matches!(&stranger, Untrusted::Unknown(id) if id.contains("stranger")), "{stranger}");
        let impostor = store.open(&sealed("stranger.key", "impostor.pem"), now()).unwrap_err();
        assert!(matches!(&impostor, Untrusted::Forged(id) if id.contains("signer")), "{impostor}");
    }

    #[test]
    fn a_signature_holds_as_long_as_its_certificate() {
        let (store, sealed) = (store(&["signer.pem"], Digest::Sha256), sealed("signer.key", "signer.pem"));
        let at = |time: &str| store.open(&sealed, time.parse().unwrap()).map(drop);
        assert!(matches!(at("2025-12-31T23:59:59Z"), Err(Untrusted::TooEarly(_))));
        assert_eq!(at("2026-01-01T00:00:00Z"), Ok(()));
        assert_eq!(at("2125-12-31T23:59:59Z"), Ok(()));
        assert!(matches!(at("2126-01-01T00:00:00Z"), Err(Untrusted::Expired { .. })));
    }

    /// Otherwise whoever can choose the weaker of two digests chooses for both sides.
    #[test]
    fn another_digest_than_the_stores_is_not_believed() {
        let opened = store(&["signer.pem"], Digest::Sha512).open(&sealed("signer.key", "signer.pem"), now());
        assert!(matches!(opened, Err(Untrusted::Forged(_))));
    }

    #[test]
    fn each_changed_byte_of_signer_signature_and_body_is_found_out() {
        let store = store(&["signer.pem"], Digest::Sha256);
        let plain = STANDARD.decode(sealed("signer.key", "signer.pem")).unwrap();
        let separators: Vec<usize> =
            plain.windows(2).enumerate().filter(|(_, bytes)| *bytes == SEPARATOR).map(|(at, _)| at).collect();
        // The content type and encoding are not signed; whoever changes them gets the same bytes read as something else.
        let signed = |at: &usize| *at < separators[1] || *at >= separators[3];
        for at in (0..plain.len()).filter(signed) {
            let mut changed = plain.clone();
            changed[at] ^= 1;
            assert!(store.open(STANDARD.encode(&changed).as_bytes(), now()).is_err(), "{at}");
        }
    }

    #[test]
    fn what_is_not_signed_is_told_from_what_is_forged() {
        let store = store(&["signer.pem"], Digest::Sha256);
        let packed = |fields: &[&[u8]]| STANDARD.encode(fields.join(SEPARATOR)).into_bytes();
        let long = vec![b'A'; 100_000];
        let rows: [(Vec<u8>, &str); 8] = [
            (b"[[], {}, {}]".to_vec(), "not base64"),
            (vec![], "signer's name is missing"),
            (packed(&[b"QQ=="]), "signer's name is missing"),
            (packed(&[&long, b"", b"", b"", b""]), "signer's name is missing or too long"),
            (packed(&[b"QQ==", &long, b"", b"", b""]), "signature is missing or too long"),
            (packed(&[b"QQ==", b"QQ==", b"", b""]), "content encoding is missing"),
            (packed(&[b"?", b"QQ==", b"", b"", b""]), "signer's name is not base64"),
            (packed(&[b"/w==", b"QQ==", b"", b"", b""]), "not UTF-8"),
        ];
        for (sealed, reason) in rows {
            let error = store.open(&sealed, now()).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let signer = Certificate::read(&read("signer.pem")).unwrap();
        let id = STANDARD.encode(signer.id());
        for signature in ["", "QQ==", &STANDARD.encode([0; 256]), &STANDARD.encode([255; 256])] {
            let sealed = packed(&[id.as_bytes(), signature.as_bytes(), b"application/json", b"utf-8", b"[]"]);
            assert!(matches!(store.open(&sealed, now()), Err(Untrusted::Forged(_))), "{signature}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, fields: Vec<Vec<u8>>) {
            let store = store(&[], Digest::Sha256);
            let _ = store.open(&bytes, now());
            let _ = store.open(STANDARD.encode(fields.join(SEPARATOR)).as_bytes(), now());
        }
    }
}
