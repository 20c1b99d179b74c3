//! Signed bodies: Celery's serialiser `auth` (`celery/security`; tests/vectors/auth).
//!
//! The body is signed as its serialiser made it, and nothing besides: the headers, with the task's name and id, are as
//! trustworthy as the broker. Read [`envelope`] for what a signed body looks like, then [`certificate`] (who is
//! believed) and [`key`] (who signs).

mod certificate;
mod envelope;
mod key;
mod pem;

use std::{fmt, str::FromStr};

use rsa::{PrivateKey, Pss, PublicKey, traits::PublicKeyParts};
use sha2::{
    Sha256, Sha384, Sha512,
    digest::{Digest as Hash, FixedOutputReset},
};

pub use certificate::{Certificate, CertificateError, CertificateStore, MAX_CERTIFICATES};
pub use envelope::{CONTENT_ENCODING, CONTENT_TYPE, Untrusted};
pub use key::{KeyError, Signer};

/// Of keys: fewer bits are no protection, more take longer than a message should.
const MIN_KEY: u32 = 2048;
const MAX_KEY: u32 = 8192;

/// `security_digest`: what a signature is made of. Both sides must have the same. Celery 5.7 itself passes over the setting:
/// its other digests are those given to `setup_security(digest=...)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digest {
    #[default]
    Sha256,
    Sha384,
    Sha512,
}

/// Why a name is no digest's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("{0} is broken: others can make what has the same signature; use sha256, sha384 or sha512")]
    Broken(&'static str),
    #[error("`{0}` is not known; use sha256, sha384 or sha512")]
    Unknown(String),
}

/// In either case, as for Celery.
impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(name: &str) -> Result<Self, DigestError> {
        match &*name.to_ascii_lowercase() {
            "sha256" => Ok(Self::Sha256),
            "sha384" => Ok(Self::Sha384),
            "sha512" => Ok(Self::Sha512),
            "sha1" => Err(DigestError::Broken("sha1")),
            "md5" => Err(DigestError::Broken("md5")),
            _ => Err(DigestError::Unknown(name.escape_debug().to_string())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
        })
    }
}

impl Digest {
    fn sign(self, body: &[u8], key: &PrivateKey) -> rsa::Result<Vec<u8>> {
        match self {
            Self::Sha256 => sign::<Sha256>(body, key),
            Self::Sha384 => sign::<Sha384>(body, key),
            Self::Sha512 => sign::<Sha512>(body, key),
        }
    }

    fn is_signature(self, signature: &[u8], body: &[u8], key: &PublicKey) -> bool {
        match self {
            Self::Sha256 => is_signature::<Sha256>(signature, body, key),
            Self::Sha384 => is_signature::<Sha384>(signature, body, key),
            Self::Sha512 => is_signature::<Sha512>(signature, body, key),
        }
    }
}

fn sign<D: Hash + FixedOutputReset>(body: &[u8], key: &PrivateKey) -> rsa::Result<Vec<u8>> {
    let padding = Pss::<D>::new_with_salt(longest_salt::<D>(key));
    key.sign_with_rng(&mut getrandom::SysRng, padding, &D::digest(body))
}

fn is_signature<D: Hash + FixedOutputReset>(signature: &[u8], body: &[u8], key: &PublicKey) -> bool {
    let padding = Pss::<D>::new_with_salt(longest_salt::<D>(key));
    key.verify(padding, &D::digest(body), signature).is_ok()
}

/// In bytes. Celery pads with the longest salt that there is room for, and takes no other (`padding.PSS.MAX_LENGTH`;
/// RFC 8017, 9.1.1: beside it stand the digest and two bytes, in one bit less than the key has).
fn longest_salt<D: Hash>(key: &impl PublicKeyParts) -> usize {
    let encoded = (bits(key) as usize - 1).div_ceil(8);
    encoded - <D as Hash>::output_size() - 2
}

fn bits(key: &impl PublicKeyParts) -> u32 {
    key.n().bit_width()
}

/// Whether it has as many bits as a signature takes here.
fn is_of_size(key: &impl PublicKeyParts) -> bool {
    (MIN_KEY..=MAX_KEY).contains(&bits(key))
}

/// What tests/vectors/auth holds.
#[cfg(test)]
pub(crate) mod tests_folder {
    use super::*;

    pub fn read(name: &str) -> String {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/auth");
        std::fs::read_to_string(format!("{folder}/{name}")).unwrap()
    }

    pub fn signer_of(key: &str, password: Option<&str>, certificate: &str, digest: Digest) -> Result<Signer, KeyError> {
        let certificate = Certificate::read(&read(certificate)).unwrap();
        Signer::new(key, password, &certificate, digest, "2026-11-24T12:00:00Z".parse().unwrap())
    }

    pub fn store(certificates: &[&str], digest: Digest) -> CertificateStore {
        let certificates = certificates.iter().map(|name| Certificate::read(&read(name)).unwrap());
        CertificateStore::new(digest, certificates).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_go_by_pythons_names_and_broken_ones_are_refused() {
        assert_eq!(Digest::default().to_string(), "sha256");
        for digest in [Digest::Sha256, Digest::Sha384, Digest::Sha512] {
            assert_eq!(digest.to_string().parse(), Ok(digest));
            assert_eq!(digest.to_string().to_uppercase().parse(), Ok(digest));
        }
        for (name, reason) in [("sha1", "broken"), ("MD5", "broken"), ("crc32", "not known"), ("", "not known")] {
            let error = name.parse::<Digest>().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("sha256"), "{name}: {error}");
        }
    }
}
