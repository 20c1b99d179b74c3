//! Who signs (`celery/security/key.py`).

use std::fmt;

use jiff::Timestamp;
use rsa::{
    PrivateKey,
    pkcs1::DecodeRsaPrivateKey,
    pkcs8::{self, DecodePrivateKey},
};

use super::{Certificate, Digest, MAX_KEY, MIN_KEY, bits, is_of_size, pem};

/// `security_key` and `security_certificate`, which belong together. The key is wiped on drop, and shown to nobody.
pub struct Signer {
    /// The certificate's.
    pub(super) id: String,
    key: PrivateKey,
    digest: Digest,
}

/// What is wrong with a key. No text in it holds a part of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it holds no `BEGIN PRIVATE KEY`")]
    Missing,
    #[error("it is no RSA key, and Celery signs with nothing else")]
    NotRsa,
    #[error("it has {0} bits, and {MIN_KEY} to {MAX_KEY} are taken")]
    Size(u32),
    #[error("it is encrypted; say with which password in security_key_password")]
    Locked,
    #[error("it is not encrypted; take security_key_password away")]
    NotLocked,
    #[error("security_key_password does not open it")]
    WrongPassword,
    #[error("it is encrypted in a way that is not read here; write it anew with `openssl pkcs8 -topk8 -v2 aes256`")]
    UnknownLock,
    #[error("it is not the key of the certificate")]
    OtherKey,
    #[error("its certificate has expired at {0}, so that nobody would believe what it signs")]
    Expired(Timestamp),
}

impl Signer {
    /// Read a PEM file (PKCS #8, encrypted or not, or PKCS #1), and try it.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn new(
        pem: &str,
        password: Option<&str>,
        certificate: &Certificate,
        digest: Digest,
        now: Timestamp,
    ) -> Result<Self, KeyError> {
        let key = read(pem, password)?;
        if !is_of_size(&key) {
            return Err(KeyError::Size(bits(&key)));
        }
        if certificate.has_expired(now) {
            return Err(KeyError::Expired(certificate.until()));
        }
        let signature = digest.sign(b"", &key).map_err(|_| KeyError::NotRsa)?;
        match certificate.is_of(key.as_ref()) && certificate.has_signed(b"", &signature, digest) {
            true => Ok(Self { id: certificate.id().to_owned(), key, digest }),
            false => Err(KeyError::OtherKey),
        }
    }

    /// Whose signatures they are.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn sign(&self, body: &[u8]) -> Vec<u8> {
        self.digest.sign(body, &self.key).expect("a key that has signed once signs again")
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("id", &self.id).finish_non_exhaustive()
    }
}

fn read(pem: &str, password: Option<&str>) -> Result<PrivateKey, KeyError> {
    const PLAIN: &str = "PRIVATE KEY";
    const LOCKED: &str = "ENCRYPTED PRIVATE KEY";
    const PKCS1: &str = "RSA PRIVATE KEY";
    let (label, der) = pem::block(pem, &[PLAIN, LOCKED, PKCS1]).map_err(|why| match why {
        pem::NoBlock::Missing => KeyError::Missing,
        pem::NoBlock::Damaged => KeyError::NotRsa,
        pem::NoBlock::LockedByOpenSsl => KeyError::UnknownLock,
    })?;
    match (label, password) {
        (LOCKED, None) => Err(KeyError::Locked),
        (LOCKED, Some(password)) => unlock(&der, password),
        (_, Some(_)) => Err(KeyError::NotLocked),
        (PKCS1, None) => PrivateKey::from_pkcs1_der(&der).map_err(|_| KeyError::NotRsa),
        (_, None) => PrivateKey::from_pkcs8_der(&der).map_err(|_| KeyError::NotRsa),
    }
}

fn unlock(der: &[u8], password: &str) -> Result<PrivateKey, KeyError> {
    let locked = pkcs8::EncryptedPrivateKeyInfoRef::try_from(der).map_err(|_| KeyError::UnknownLock)?;
    let plain = locked.decrypt(password).map_err(|_| KeyError::WrongPassword)?;
    PrivateKey::from_pkcs8_der(plain.as_bytes()).map_err(|_| KeyError::NotRsa)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::tests_folder::{read, signer_of};

    const PASSWORD: Option<&str> = Some("open sesame");

    fn failure(key: &str, password: Option<&str>, certificate: &str) -> Option<KeyError> {
        signer_of(&read(key), password, certificate, Digest::Sha256).err()
    }

    #[test]
    fn keys_are_read_in_every_form_that_openssl_writes() {
        for (key, password) in [("signer.key", None), ("signer.pkcs1.key", None), ("signer.locked.key", PASSWORD)] {
            for digest in [Digest::Sha256, Digest::Sha384, Digest::Sha512] {
                let signer = signer_of(&read(key), password, "signer.pem", digest).unwrap();
                let certificate = Certificate::read(&read("signer.pem")).unwrap();
                let signature = signer.sign(b"body");
                assert!(certificate.has_signed(b"body", &signature, digest));
                assert!(!certificate.has_signed(b"other", &signature, digest));
                // The salt is new each time.
                assert_ne!(signature, signer.sign(b"body"));
            }
        }
    }

    #[test]
    fn a_key_that_cannot_be_used_is_refused_with_what_to_do() {
        assert_eq!(failure("signer.pem", None, "signer.pem"), Some(KeyError::Missing));
        assert_eq!(failure("signer.locked.key", None, "signer.pem"), Some(KeyError::Locked));
        assert_eq!(failure("signer.locked.key", Some("wrong"), "signer.pem"), Some(KeyError::WrongPassword));
        assert_eq!(failure("signer.key", PASSWORD, "signer.pem"), Some(KeyError::NotLocked));
        assert_eq!(failure("stranger.key", None, "signer.pem"), Some(KeyError::OtherKey));
        assert!(matches!(failure("signer.key", None, "expired.pem"), Some(KeyError::Expired(_))));
        let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n-----END RSA PRIVATE KEY-----";
        assert_eq!(signer_of(old, PASSWORD, "signer.pem", Digest::Sha256).err(), Some(KeyError::UnknownLock));
    }

    #[test]
    fn a_key_is_shown_to_nobody() {
        let signer = signer_of(&read("signer.key"), None, "signer.pem", Digest::Sha256).unwrap();
        let shown = format!("{signer:?}");
        assert!(shown.starts_with("Signer") && shown.len() < 150, "{shown}");
    }
}
