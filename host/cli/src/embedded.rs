//! The embedded store's files, when a worker that was started as root becomes somebody else.
//!
//! `rtask deploy` as root may have made the store before; the worker then could not open it. What is root's is
//! handed over, but only what nobody could mistake for something else: root's own regular files under the store's
//! names, in a folder that holds nothing but the store.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown},
    path::{Path, PathBuf},
};

use nix::fcntl::OFlag;
use rtask_sandbox::Account;

/// What may stand beside the store in its folder, besides the store's own files.
const NEIGHBOURS: [&str; 1] = ["cache"];

#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    #[error("failed to hand {} over to user `{user}`: {source}", path.display())]
    Io { path: PathBuf, user: String, source: io::Error },
    #[error(
        "user `{user}` may not write to the folder {}, which cannot be given away: it is not root's, or it holds more \
         than the store; name a store in a folder of its own (sqlite:PATH), or another user with --user",
        folder.display()
    )]
    SharedFolder { folder: PathBuf, user: String },
}

/// Let `to` write the store at `path`, whether its file exists or not.
///
/// # Errors
/// When root may not change the owner, and for a folder that root uses for other things.
pub fn hand_over(path: &Path, to: &Account) -> Result<(), HandOverError> {
    let folder = folder_of(path);
    make_folder(folder, to)?;
    let failed = |path: &Path, source| HandOverError::Io { path: path.to_owned(), user: to.name.clone(), source };
    let opened = open(folder, OFlag::O_DIRECTORY).map_err(|error| failed(folder, error))?;
    // The folder that was opened, whatever its path leads to by now.
    let inside = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
    let metadata = opened.metadata().map_err(|error| failed(folder, error))?;
    let name = path.file_name().unwrap_or_default();
    if !may_write(&metadata, to) {
        let is_its_own = holds_only(&inside, name).map_err(|error| failed(folder, error))?;
        if metadata.uid() != 0 || !is_its_own {
            let (folder, user) = (folder.to_owned(), to.name.clone());
            return Err(HandOverError::SharedFolder { folder, user });
        }
        fchown(&opened, Some(to.uid), Some(to.gid)).map_err(|error| failed(folder, error))?;
    }
    for entry in fs::read_dir(&inside).map_err(|error| failed(folder, error))?.flatten() {
        if belongs_to(name, &entry.file_name()) {
            let handed_over = hand_over_file(&entry.path(), to);
            handed_over.map_err(|error| failed(&folder.join(entry.file_name()), error))?;
        }
    }
    Ok(())
}

/// Make the folders of `folder` that do not exist yet, for `to` alone.
///
/// # Errors
/// When one cannot be made or handed over.
pub fn make_folder(folder: &Path, to: &Account) -> Result<(), HandOverError> {
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
    for folder in missing.into_iter().rev() {
        let made = DirBuilder::new()
            .mode(0o700)
            .create(folder)
            .and_then(|()| fchown(open(folder, OFlag::O_DIRECTORY)?, Some(to.uid), Some(to.gid)));
        made.map_err(|source| HandOverError::Io { path: folder.to_owned(), user: to.name.clone(), source })?;
    }
    Ok(())
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        Some(_) | None => Path::new("."),
    }
}

/// Never through a link in the last place, and without waiting for the other end of a pipe.
fn open(path: &Path, also: OFlag) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | also;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

fn may_write(folder: &fs::Metadata, account: &Account) -> bool {
    let write_and_search = if folder.uid() == account.uid {
        0o300
    } else if folder.gid() == account.gid {
        0o030
    } else {
        0o003
    };
    folder.mode() & write_and_search == write_and_search
}

/// Whether the store is all there is in its folder.
fn holds_only(folder: &Path, name: &OsStr) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let found = entry?.file_name();
        if !belongs_to(name, &found) && !NEIGHBOURS.iter().any(|neighbour| found == *neighbour) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The database itself, and what SQLite and rtask put beside it: `NAME-wal`, `NAME-bell` and the like.
fn belongs_to(name: &OsStr, found: &OsStr) -> bool {
    let rest = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"-"))
}

/// A file that has another name elsewhere may be something that root never meant to give away.
fn hand_over_file(path: &Path, to: &Account) -> io::Result<()> {
    let file = open(path, OFlag::empty())?;
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.uid() == 0 && metadata.nlink() == 1 {
        fchown(&file, Some(to.uid), Some(to.gid))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_stores_own_files_belong_to_it() {
        let rows = [
            ("rtask.db", true),
            ("rtask.db-wal", true),
            ("rtask.db-bell", true),
            ("rtask.db.backup", false),
            ("other.db", false),
        ];
        for (found, expected) in rows {
            assert_eq!(belongs_to("rtask.db".as_ref(), found.as_ref()), expected, "{found}");
        }
    }

    #[test]
    fn a_folder_with_other_things_in_it_is_told_from_a_stores_own() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["rtask.db", "rtask.db-wal", "cache"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(holds_only(folder.path(), "rtask.db".as_ref()).unwrap());
        fs::write(folder.path().join(".bashrc"), "").unwrap();
        assert!(!holds_only(folder.path(), "rtask.db".as_ref()).unwrap());
    }

    #[test]
    fn a_link_is_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        fs::write(&target, "").unwrap();
        symlink(&target, &link).unwrap();
        assert!(open(&target, OFlag::empty()).is_ok());
        assert!(open(&link, OFlag::empty()).is_err());
    }

    #[test]
    fn a_store_of_ones_own_needs_no_handing_over() {
        let folder = tempfile::tempdir().unwrap();
        let metadata = fs::metadata(folder.path()).unwrap();
        let me = Account { name: "me".to_owned(), uid: metadata.uid(), gid: metadata.gid() };
        let stranger = Account { name: "stranger".to_owned(), uid: me.uid + 1, gid: me.gid + 1 };
        assert!(may_write(&metadata, &me) && !may_write(&metadata, &stranger));
        let store = folder.path().join("new/deep/rtask.db");
        hand_over(&store, &me).unwrap();
        assert!(store.parent().unwrap().is_dir());
    }
}
