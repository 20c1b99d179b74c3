//! Who signs messages, and whose signatures are believed: Celery's `security_*`.

use std::{
    convert::Infallible,
    fmt,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use glob::MatchOptions;
use jiff::Timestamp;
use rtask_protocol::{
    Accept, ContentName,
    security::{Certificate, CertificateStore, MAX_CERTIFICATES, Signer},
};
use serde::{Serialize, Serializer};
use zeroize::Zeroizing;

use super::{Settings, SettingsError, Text};

/// A key or a certificate is in a file of no more bytes.
const MAX_FILE: u64 = 1 << 20;

/// Shown to nobody, and wiped on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str("secret")
    }
}

impl Settings {
    /// Who signs what is sent, read from its files now; none unless `task_serializer` is `auth`.
    ///
    /// # Errors
    /// As [`Self::needed_signer`].
    pub fn signer(&self) -> Result<Option<Arc<Signer>>, SettingsError> {
        match self.task_serializer {
            Text(ContentName::Signed) => self.needed_signer().map(Some),
            Text(ContentName::Plain(_)) => Ok(None),
        }
    }

    /// Who signs, whatever `task_serializer` says.
    ///
    /// # Errors
    /// Without key and certificate, and for what is wrong with them.
    pub fn needed_signer(&self) -> Result<Arc<Signer>, SettingsError> {
        let needed = |setting: &str, file: &Option<PathBuf>| {
            let reason = "messages cannot be signed (auth) without it; name a PEM file";
            file.clone().ok_or_else(|| SettingsError::invalid(setting, reason))
        };
        let key = needed("security_key", &self.security_key)?;
        let certified = needed("security_certificate", &self.security_certificate)?;
        let certificate = certificate("security_certificate", &certified)?;
        let pem = read("security_key", &key)?;
        let password = self.security_key_password.as_ref().map(|Secret(password)| password.as_str());
        let signer = Signer::new(&pem, password, &certificate, self.security_digest.0, Timestamp::now());
        signer.map(Arc::new).map_err(|error| wrong("security_key", &key, error))
    }

    /// Both sides of a worker's messages: what it reads, and who signs what it sends.
    ///
    /// # Errors
    /// As [`Self::accept`] and [`Self::signer`], and when only signed messages are accepted and none is signed.
    pub fn worker_content(&self) -> Result<(Accept, Option<Arc<Signer>>), SettingsError> {
        let (accept, signer) = (self.accept()?, self.signer()?);
        match (&accept.signed, &signer) {
            (Some(_), None) if accept.is_signed_only() => {
                let reason = "accept_content takes only signed messages (auth), so that workers would refuse what this one \
                              sends; write task_serializer = \"auth\", or accept json too";
                return Err(SettingsError::invalid("task_serializer", reason));
            }
            (Some(store), Some(signer)) if store.get(signer.id()).is_none() => {
                tracing::warn!(id = signer.id(), "security_certificate is not in security_cert_store");
            }
            (Some(_) | None, Some(_) | None) => {}
        }
        if let (Some(_), Some(key)) = (&signer, &self.security_key) {
            warn_of_readers(key);
        }
        Ok((accept, signer))
    }

    pub(super) fn certificate_store(&self) -> Result<CertificateStore, SettingsError> {
        const SETTING: &str = "security_cert_store";
        let Some(pattern) = &self.security_cert_store else {
            let reason = "accept_content has auth, so it must be known whose signatures count; name a folder of PEM files, \
                          or a pattern such as `/etc/rtask/certs/*.pem`";
            return Err(SettingsError::invalid(SETTING, reason));
        };
        let mut certificates = Vec::new();
        for file in matching(SETTING, pattern)? {
            let certificate = certificate(SETTING, &file)?;
            if certificate.has_expired(Timestamp::now()) {
                tracing::warn!(id = certificate.id(), file = %file.display(), "a certificate has expired");
            }
            certificates.push(certificate);
        }
        CertificateStore::new(self.security_digest.0, certificates)
            .map_err(|error| SettingsError::invalid(SETTING, error.to_string()))
    }
}

/// The files of a folder or of a pattern, as Python's `glob` finds them: none that begins with a dot, unless it is asked
/// for.
fn matching(setting: &str, pattern: &str) -> Result<Vec<PathBuf>, SettingsError> {
    let pattern = match Path::new(pattern).is_dir() {
        true => format!("{}/*", glob::Pattern::escape(pattern.trim_end_matches('/'))),
        false => pattern.to_owned(),
    };
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let found = glob::glob_with(&pattern, options)
        .map_err(|error| SettingsError::invalid(setting, format!("`{pattern}` is no pattern: {error}")))?;
    let unreadable = |error: glob::GlobError| wrong(setting, error.path(), error.error());
    let mut files = Vec::new();
    for file in found.take(MAX_CERTIFICATES + 1) {
        files.push(file.map_err(unreadable)?);
    }
    // Kubernetes and others put folders beside what they mount.
    files.retain(|file| !file.is_dir());
    match files.is_empty() {
        true => Err(SettingsError::invalid(setting, format!("`{pattern}` finds no file"))),
        false => Ok(files),
    }
}

fn certificate(setting: &str, path: &Path) -> Result<Certificate, SettingsError> {
    Certificate::read(&read(setting, path)?).map_err(|error| wrong(setting, path, error))
}

fn read(setting: &str, path: &Path) -> Result<Zeroizing<String>, SettingsError> {
    let mut text = Zeroizing::new(String::new());
    let read = File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_string(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_FILE => {
            Err(wrong(setting, path, "it is too long for a key or a certificate"))
        }
        Ok(_) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(wrong(setting, path, "it is no PEM file")),
        Err(error) => Err(wrong(setting, path, error)),
    }
}

fn wrong(setting: &str, path: &Path, reason: impl fmt::Display) -> SettingsError {
    SettingsError::invalid(setting, format!("{}: {reason}", path.display()))
}

/// Who can read the key can sign in its name.
fn warn_of_readers(key: &Path) {
    let mode = key.metadata().map_or(0, |metadata| metadata.permissions().mode());
    if mode & 0o004 != 0 {
        tracing::warn!(file = %key.display(), "everybody on this machine can read security_key; take that away with chmod");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/auth");

    fn settings(text: &str) -> Settings {
        toml::from_str(&text.replace("VECTORS", VECTORS)).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refusal(text: &str) -> String {
        settings(text).worker_content().map(drop).unwrap_err().to_string()
    }

    const KEY: &str = "security_key = 'VECTORS/signer.key'\nsecurity_certificate = 'VECTORS/signer.pem'\n";
    const STORE: &str = "security_cert_store = 'VECTORS/s*.pem'\n";
    const ONLY_SIGNED: &str = "accept_content = ['auth']\ntask_serializer = 'auth'\n";

    #[test]
    fn a_worker_signs_and_believes_as_it_is_told() {
        let plain = settings("").worker_content().unwrap();
        assert!(plain.0.signed.is_none() && plain.1.is_none());
        let (accept, signer) = settings(&[KEY, STORE, ONLY_SIGNED].concat()).worker_content().unwrap();
        let (store, signer) = (accept.signed.clone().unwrap(), signer.unwrap());
        assert!(accept.is_signed_only() && store.get(signer.id()).is_some());
        let both = settings(&[STORE, "accept_content = 'application/data,json'"].concat()).worker_content().unwrap();
        assert!(both.0.signed.is_some() && !both.0.is_signed_only() && both.1.is_none());
        let locked = "security_key = 'VECTORS/signer.locked.key'\nsecurity_key_password = 'open sesame'\n\
                      security_certificate = 'VECTORS/signer.pem'\nsecurity_digest = 'SHA512'\n";
        assert!(settings(&[locked, STORE, ONLY_SIGNED].concat()).worker_content().unwrap().1.is_some());
    }

    #[test]
    fn a_folder_is_the_files_in_it() {
        let folder = tempfile::tempdir().unwrap();
        for (from, to) in [("signer.pem", "a.pem"), ("stranger.pem", "b.crt"), ("make.py", ".hidden")] {
            std::fs::copy(format!("{VECTORS}/{from}"), folder.path().join(to)).unwrap();
        }
        std::fs::create_dir(folder.path().join("inner")).unwrap();
        let text = format!("accept_content = ['auth', 'json']\nsecurity_cert_store = '{}'", folder.path().display());
        assert!(settings(&text).accept().unwrap().signed.is_some());
        std::fs::copy(format!("{VECTORS}/signer.pem"), folder.path().join("again.pem")).unwrap();
        let error = settings(&text).accept().unwrap_err().to_string();
        assert!(error.contains("same issuer and serial number"), "{error}");
    }

    #[test]
    fn what_contradicts_itself_is_refused_with_what_to_do() {
        let certificate = "security_certificate = 'VECTORS/signer.pem'\n";
        let rows = [
            ("accept_content = ['auth']".to_owned(), "`security_cert_store`: accept_content has auth"),
            (["accept_content = ['auth']\n", STORE].concat(), "`task_serializer`: accept_content takes only signed"),
            ("task_serializer = 'auth'".to_owned(), "`security_key`: messages cannot be signed"),
            (
                "task_serializer = 'auth'\nsecurity_key = 'VECTORS/signer.key'".to_owned(),
                "`security_certificate`: messages cannot be signed",
            ),
            (
                [certificate, "task_serializer = 'auth'\nsecurity_key = 'VECTORS/stranger.key'"].concat(),
                "stranger.key: it is not the key of the certificate",
            ),
            (
                [certificate, "task_serializer = 'auth'\nsecurity_key = 'VECTORS/signer.locked.key'"].concat(),
                "signer.locked.key: it is encrypted; say with which password",
            ),
            (
                [certificate, "task_serializer = 'auth'\nsecurity_key = 'VECTORS/none.key'"].concat(),
                "none.key: No such file",
            ),
            ("accept_content = 'auth'\nsecurity_cert_store = 'VECTORS/*.none'".to_owned(), "finds no file"),
            ("accept_content = 'auth'\nsecurity_cert_store = 'VECTORS/***'".to_owned(), "is no pattern"),
            ("accept_content = 'auth'\nsecurity_cert_store = 'VECTORS/make.py'".to_owned(), "BEGIN CERTIFICATE"),
        ];
        for (text, expected) in rows {
            let refusal = refusal(&text);
            assert!(refusal.contains(expected), "{text}: {refusal}");
        }
        for (text, expected) in [("sha1", "broken"), ("shake", "not known")] {
            let error = toml::from_str::<Settings>(&format!("security_digest = '{text}'")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_password_is_shown_to_nobody() {
        let settings = settings("security_key_password = 1234");
        assert!(!format!("{settings:?}").contains("1234"));
        assert!(!serde_json::to_string(&settings).unwrap().contains("1234"));
    }
}
