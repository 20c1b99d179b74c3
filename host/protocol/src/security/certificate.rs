//! Who is believed (`celery/security/certificate.py`).

use std::{collections::HashMap, fmt};

use jiff::Timestamp;
use rsa::{PublicKey, pkcs8::DecodePublicKey};
use x509_cert::{
    der::{Decode, Encode, Tag, Tagged, asn1::Any},
    name::Name,
    time::Time,
};

use super::{Digest, MAX_KEY, MIN_KEY, bits, is_of_size, pem};

/// A store holds no more.
pub const MAX_CERTIFICATES: usize = 10_000;
/// An id has no more bytes.
pub(super) const MAX_ID: usize = 4096;

/// Somebody who may sign messages, and until when.
#[derive(Clone)]
pub struct Certificate {
    id: String,
    key: PublicKey,
    from: Timestamp,
    until: Timestamp,
}

/// What is wrong with a certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("it holds no `BEGIN CERTIFICATE`")]
    Missing,
    #[error("it is no X.509 certificate")]
    Damaged,
    #[error("its key is not RSA, and Celery signs with nothing else")]
    NotRsa,
    #[error("its key has {0} bits, and {MIN_KEY} to {MAX_KEY} are taken")]
    KeySize(u32),
    #[error("the name of its issuer is no text, or too long")]
    Issuer,
    #[error("its serial number is negative")]
    SerialNumber,
    #[error("another one has the same issuer and serial number, `{0}`")]
    Duplicate(String),
    #[error("there are more than {MAX_CERTIFICATES}")]
    TooMany,
}

impl Certificate {
    /// Read the first certificate of a PEM file.
    ///
    /// # Errors
    /// See [`CertificateError`]. That it has expired is none: [`Self::has_expired`].
    pub fn read(pem: &str) -> Result<Self, CertificateError> {
        use CertificateError::{Damaged, Issuer, KeySize, Missing, NotRsa};
        let (_, der) = pem::block(pem, &["CERTIFICATE"]).map_err(|why| match why {
            pem::NoBlock::Missing => Missing,
            pem::NoBlock::Damaged | pem::NoBlock::LockedByOpenSsl => Damaged,
        })?;
        let read = x509_cert::Certificate::from_der(&der).map_err(|_| Damaged)?;
        let certificate = read.tbs_certificate();
        let key = certificate.subject_public_key_info().to_der().map_err(|_| Damaged)?;
        let key = PublicKey::from_public_key_der(&key).map_err(|_| NotRsa)?;
        if !is_of_size(&key) {
            return Err(KeySize(bits(&key)));
        }
        let issuer = issuer(certificate.issuer()).ok_or(Issuer)?;
        let id = format!("{issuer} {}", decimal(certificate.serial_number().as_bytes())?);
        let (from, until) = (certificate.validity().not_before, certificate.validity().not_after);
        Ok(Self { id, key, from: timestamp(from), until: timestamp(until) })
    }

    /// What Celery calls it: the values in its issuer's name, and its serial number.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// From when on it is not believed.
    pub fn until(&self) -> Timestamp {
        self.until
    }

    pub fn has_expired(&self, now: Timestamp) -> bool {
        now >= self.until
    }

    pub(super) fn is_valid_yet(&self, now: Timestamp) -> bool {
        now >= self.from
    }

    pub(super) fn is_of(&self, key: &PublicKey) -> bool {
        self.key == *key
    }

    pub(super) fn has_signed(&self, body: &[u8], signature: &[u8], digest: Digest) -> bool {
        digest.is_signature(signature, body, &self.key)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("id", &self.id).field("until", &self.until).finish_non_exhaustive()
    }
}

/// As Celery makes it of what `cryptography` reads: the values in the order of the file, with spaces between them.
fn issuer(name: &Name) -> Option<String> {
    let values: Option<Vec<String>> = name.iter().map(|attribute| text(&attribute.value)).collect();
    values.map(|values| values.join(" ")).filter(|issuer| issuer.len() < MAX_ID - 64)
}

/// `cryptography` takes for UTF-8 what is not the old form of Unicode.
fn text(value: &Any) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::BmpString => {
            let units = bytes.chunks(2).map(|unit| unit.try_into().map(u16::from_be_bytes));
            String::from_utf16(&units.collect::<Result<Vec<_>, _>>().ok()?).ok()
        }
        Tag::BitString => None,
        _ => std::str::from_utf8(bytes).ok().map(str::to_owned),
    }
}

/// Of at most 21 bytes, most significant first, as two's complement.
fn decimal(number: &[u8]) -> Result<String, CertificateError> {
    if number.first().is_some_and(|first| first & 0x80 != 0) {
        return Err(CertificateError::SerialNumber);
    }
    let mut number = number.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|byte| *byte != 0) {
        let remainder = number.iter_mut().fold(0, |carried, byte| {
            let value = carried * 256 + u16::from(*byte);
            *byte = u8::try_from(value / 10).expect("a remainder is below 10, so this is below 256");
            value % 10
        });
        digits.push(char::from(b'0' + u8::try_from(remainder).expect("a remainder is below 10")));
    }
    match digits.is_empty() {
        true => Ok("0".to_owned()),
        false => Ok(digits.into_iter().rev().collect()),
    }
}

/// X.509 knows years up to 9999, which lie in the same calendar but for its last day.
fn timestamp(time: Time) -> Timestamp {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// `security_cert_store`: whose messages are taken, and what their signatures are made of.
#[derive(Debug)]
pub struct CertificateStore {
    pub(super) digest: Digest,
    by_id: HashMap<String, Certificate>,
}

impl CertificateStore {
    /// # Errors
    /// For more than one of the same id, and for more than [`MAX_CERTIFICATES`].
    pub fn new(digest: Digest, certificates: impl IntoIterator<Item = Certificate>) -> Result<Self, CertificateError> {
        let mut by_id = HashMap::new();
        for certificate in certificates {
            if by_id.len() == MAX_CERTIFICATES {
                return Err(CertificateError::TooMany);
            }
            if let Some(other) = by_id.insert(certificate.id.clone(), certificate) {
                return Err(CertificateError::Duplicate(other.id));
            }
        }
        Ok(Self { digest, by_id })
    }

    pub fn get(&self, id: &str) -> Option<&Certificate> {
        self.by_id.get(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::tests_folder::read;

    #[test]
    fn a_certificate_goes_by_celerys_name_for_it() {
        let certificate = Certificate::read(&read("signer.pem")).unwrap();
        // Out of a message of Celery's; openssl shows the number in hexadecimal.
        assert_eq!(certificate.id(), "AT rtask tests, Übung signer 41515961130429696713460751689030128356847");
        assert!(!certificate.has_expired("2125-12-31T23:59:59Z".parse().unwrap()));
        assert!(certificate.has_expired("2126-01-01T00:00:00Z".parse().unwrap()));
        assert!(!certificate.is_valid_yet("2025-12-31T23:59:59Z".parse().unwrap()));
        assert!(certificate.is_valid_yet("2026-01-01T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn serial_numbers_are_written_in_decimal() {
        let rows: [(&[u8], &str); 5] = [
            (&[0], "0"),
            (&[7], "7"),
            (&[0, 255], "255"),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0], "18446744073709551616"),
            (&[0x7f; 20], "727885129180488904360266563744972327436484050815"),
        ];
        for (bytes, expected) in rows {
            assert_eq!(decimal(bytes).as_deref(), Ok(expected));
        }
        assert_eq!(decimal(&[0x80]), Err(CertificateError::SerialNumber));
    }

    #[test]
    fn the_old_form_of_unicode_is_read_in_issuers() {
        let value = |tag: u8, bytes: &[u8]| {
            let encoded = [&[tag, u8::try_from(bytes.len()).unwrap()], bytes].concat();
            Any::from_der(&encoded).ok().and_then(|value| text(&value))
        };
        assert_eq!(value(30, &[0, 0xdc]).as_deref(), Some("Ü"));
        assert_eq!(value(30, &[0]), None);
        assert_eq!(value(12, "Ü".as_bytes()).as_deref(), Some("Ü"));
        assert_eq!(value(12, &[0xff]), None);
        assert_eq!(value(3, &[0, 1]), None);
    }

    #[test]
    fn what_is_no_certificate_is_refused_with_a_reason() {
        assert_eq!(Certificate::read("").err(), Some(CertificateError::Missing));
        assert_eq!(Certificate::read(&read("signer.key")).err(), Some(CertificateError::Missing));
        let empty = "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----";
        assert_eq!(Certificate::read(empty).err(), Some(CertificateError::Damaged));
        let pem = read("signer.pem");
        for cut in (0..pem.find("-----END").unwrap()).step_by(7) {
            assert!(Certificate::read(&(pem[..cut].to_owned() + "\n-----END CERTIFICATE-----")).is_err(), "{cut}");
        }
    }

    #[test]
    fn two_who_go_by_one_name_are_refused() {
        let certificates = ["signer.pem", "impostor.pem"].map(|name| Certificate::read(&read(name)).unwrap());
        let error = CertificateStore::new(Digest::Sha256, certificates).err();
        assert!(matches!(error, Some(CertificateError::Duplicate(id)) if id.contains("signer")));
    }
}
