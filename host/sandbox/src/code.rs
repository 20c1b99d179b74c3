//! Machine code: held in sealed memory, kept in an authenticated cache.
//!
//! Loading machine code means to trust its bytes. They come from a compiler child, go into anonymous memory that
//! the kernel lets nobody change any more, and reach runners as that memory's descriptor; a runner opens no
//! file. What the cache on disk holds is authenticated with a key that only this account can read.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use hmac::{Hmac, KeyInit, Mac};
use nix::{
    fcntl::{FcntlArg, SealFlag, fcntl},
    sys::memfd::{MFdFlags, memfd_create},
};
use sha2::{Digest, Sha256};

/// Components whose code is kept.
const MAX_ENTRIES: usize = 1_000;
const KEY_FILE: &str = "key";
const KEY_SIZE: usize = 32;
const TAG_SIZE: usize = 32;

/// One component's machine code; clones share it.
#[derive(Clone, Debug)]
pub struct Code {
    memory: Arc<OwnedFd>,
    size: u64,
    engine: u64,
}

impl Code {
    /// Seal `memory`, which holds what a compiler child wrote for the engine with this fingerprint.
    pub(crate) fn seal(memory: OwnedFd, engine: u64) -> std::io::Result<Self> {
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
        let size = nix::sys::stat::fstat(&memory)?.st_size;
        Ok(Self { memory: Arc::new(memory), size: u64::try_from(size).unwrap_or(0), engine })
    }

    /// The machine code's size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut file = File::from(self.memory.try_clone()?);
        let mut bytes = Vec::new();
        // The offset is shared by all descriptors of this memory, so it is set before each reading.
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Anonymous memory that can be sealed.
pub(crate) fn anonymous(name: &str) -> std::io::Result<OwnedFd> {
    Ok(memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?)
}

#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    #[error("failed to use {path} as the cache for machine code: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the cache folder {0} belongs to another user or lets others write; name another one")]
    NotOurs(PathBuf),
}

/// A folder of machine code, one file for each component and engine: a tag of [`TAG_SIZE`] bytes, then the code.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    key: [u8; KEY_SIZE],
    engine: u64,
}

impl Cache {
    pub(crate) fn open(folder: &Path) -> Result<Self, CacheError> {
        let io = |source| CacheError::Io { path: folder.to_owned(), source };
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
        let metadata = std::fs::metadata(folder).map_err(io)?;
        let ours = metadata.uid() == nix::unistd::geteuid().as_raw();
        if !ours || metadata.permissions().mode() & 0o022 != 0 {
            return Err(CacheError::NotOurs(folder.to_owned()));
        }
        let engine = crate::engine::for_compiling().map(|engine| crate::engine::fingerprint(&engine));
        let engine = engine.map_err(|error| io(std::io::Error::other(error.to_string())))?;
        Ok(Self { folder: folder.to_owned(), key: key(&folder.join(KEY_FILE)).map_err(io)?, engine })
    }

    /// None if nothing is kept, or if what is kept is not what this account put there.
    pub(crate) fn get(&self, component: &[u8]) -> Option<Code> {
        let path = self.path(component);
        let kept = std::fs::read(&path).ok()?;
        let (tag, code) = kept.split_at_checked(TAG_SIZE)?;
        if self.mac(component, code).verify_slice(tag).is_err() {
            tracing::warn!(path = %path.display(), "kept machine code was changed by somebody; it is not used");
            return None;
        }
        let memory = anonymous("rtask-code").ok()?;
        let mut file = File::from(memory);
        file.write_all(code).ok()?;
        Code::seal(file.into(), self.engine).ok()
    }

    pub(crate) fn put(&self, component: &[u8], code: &Code) -> std::io::Result<()> {
        if code.engine != self.engine {
            return Ok(());
        }
        let bytes = code.bytes()?;
        let tag = self.mac(component, &bytes).finalize().into_bytes();
        // Renamed into place, so that a reader never meets half a file.
        let path = self.path(component);
        let aside = write_aside(&path, &[&tag, &bytes])?;
        std::fs::rename(&aside, &path)?;
        self.forget_oldest()
    }

    /// Keep the [`MAX_ENTRIES`] newest files; what is forgotten is compiled again when it is needed.
    fn forget_oldest(&self) -> std::io::Result<()> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path != self.folder.join(KEY_FILE) {
                entries.push((std::fs::metadata(&path)?.modified()?, path));
            }
        }
        entries.sort();
        let surplus = entries.len().saturating_sub(MAX_ENTRIES);
        entries.into_iter().take(surplus).try_for_each(|(_, path)| std::fs::remove_file(path))
    }

    fn path(&self, component: &[u8]) -> PathBuf {
        self.folder.join(format!("{}-{:016x}", hex::encode(Sha256::digest(component)), self.engine))
    }

    /// Authenticates the code together with what it was made from and for.
    fn mac(&self, component: &[u8], code: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.key).expect("HMAC takes keys of any length");
        mac.update(&Sha256::digest(component));
        mac.update(&self.engine.to_le_bytes());
        mac.update(code);
        mac
    }
}

/// Read the key, or make one. It appears whole or not at all, and the first one stays.
fn key(path: &Path) -> std::io::Result<[u8; KEY_SIZE]> {
    let mut key = [0; KEY_SIZE];
    if !path.exists() {
        File::open("/dev/urandom")?.read_exact(&mut key)?;
        let aside = write_aside(path, &[&key])?;
        match std::fs::hard_link(&aside, path) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => std::fs::remove_file(&aside)?,
        }
    }
    File::open(path)?.read_exact(&mut key)?;
    Ok(key)
}

/// A file beside `path` with this content; its name is nobody else's, also where process ids are shared.
fn write_aside(path: &Path, parts: &[&[u8]]) -> std::io::Result<PathBuf> {
    let mut name = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut name)?;
    let aside = path.with_extension(format!("{}.new", hex::encode(name)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    for part in parts {
        file.write_all(part)?;
    }
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(bytes: &[u8], engine: u64) -> Code {
        let mut file = File::from(anonymous("test").unwrap());
        file.write_all(bytes).unwrap();
        Code::seal(file.into(), engine).unwrap()
    }

    #[test]
    fn sealed_code_cannot_be_changed() {
        let code = code(b"code", 0);
        let mut file = File::from(code.memory.try_clone().unwrap());
        file.rewind().unwrap();
        assert!(file.write_all(b"evil").is_err());
        assert_eq!(code.bytes().unwrap(), b"code");
    }

    #[test]
    fn the_cache_returns_what_was_put_and_nothing_that_was_changed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(&folder.path().join("cache")).unwrap();
        assert!(cache.get(b"component").is_none());
        cache.put(b"component", &code(b"machine code", cache.engine)).unwrap();
        assert_eq!(cache.get(b"component").unwrap().bytes().unwrap(), b"machine code");

        let path = cache.path(b"component");
        let mut kept = std::fs::read(&path).unwrap();
        *kept.last_mut().unwrap() ^= 1;
        std::fs::write(&path, kept).unwrap();
        assert!(cache.get(b"component").is_none());
    }

    #[test]
    fn one_components_code_is_not_taken_for_anothers() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        cache.put(b"evil", &code(b"evil code", cache.engine)).unwrap();
        std::fs::rename(cache.path(b"evil"), cache.path(b"good")).unwrap();
        assert!(cache.get(b"good").is_none());
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Cache::open(folder.path()), Err(CacheError::NotOurs(_))));
    }
}
