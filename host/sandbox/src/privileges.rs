//! Giving up root, and proving that it is gone.

use nix::unistd::{self, Gid, Uid, User};
use serde::{Deserialize, Serialize};

/// Who a process becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
}

impl Account {
    /// The account of last resort on every Unix; its ids are the kernel's overflow ids.
    pub fn nobody() -> Self {
        account("nobody").unwrap_or(Self { name: "nobody".to_owned(), uid: 65_534, gid: 65_534 })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("there is no user `{0}` on this machine; name an existing one with --user")]
    NoSuchUser(String),
    #[error("user `{0}` is root again; name an unprivileged one with --user")]
    StillRoot(String),
    #[error("failed to {step}: {source}; start rtask as an unprivileged user instead")]
    Refused { step: &'static str, source: nix::Error },
    #[error("root could be regained after dropping it; start rtask as an unprivileged user instead")]
    Regained,
}

/// What this process may do, as the kernel sees it.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Standing {
    /// Real, effective, saved.
    pub uids: [u32; 3],
    pub gids: [u32; 3],
    pub no_new_privs: bool,
}

/// Look an account up by name, or take a plain uid for a name (its gid is the same number then).
///
/// # Errors
/// An unknown name, or one that is root's.
pub fn account(name: &str) -> Result<Account, PrivilegeError> {
    let unknown = || PrivilegeError::NoSuchUser(name.to_owned());
    let found = match User::from_name(name).map_err(|_| unknown())? {
        Some(user) => Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() },
        None => {
            let uid: u32 = name.parse().map_err(|_| unknown())?;
            Account { name: name.to_owned(), uid, gid: uid }
        }
    };
    if found.uid == 0 || found.gid == 0 {
        return Err(PrivilegeError::StillRoot(name.to_owned()));
    }
    Ok(found)
}

/// Whether any of this process's user ids is root's.
pub fn is_root() -> bool {
    standing().uids.contains(&0)
}

pub fn standing() -> Standing {
    let uids = unistd::getresuid().map_or([0; 3], |ids| [ids.real, ids.effective, ids.saved].map(Uid::as_raw));
    let gids = unistd::getresgid().map_or([0; 3], |ids| [ids.real, ids.effective, ids.saved].map(Gid::as_raw));
    let no_new_privs = nix::sys::prctl::get_no_new_privs().unwrap_or(false);
    Standing { uids, gids, no_new_privs }
}

/// Become `to` in all three ids, without supplementary groups, and for good. Call it before the first thread
/// is started, since `no_new_privs` binds only the thread that asks and those that it starts.
///
/// # Errors
/// When the kernel refuses a step, or when root can be had back; the process must not go on then.
pub fn drop_root(to: &Account) -> Result<(), PrivilegeError> {
    let refused = |step| move |source| PrivilegeError::Refused { step, source };
    let (uid, gid) = (Uid::from_raw(to.uid), Gid::from_raw(to.gid));
    unistd::setgroups(&[]).map_err(refused("give up supplementary groups"))?;
    unistd::setresgid(gid, gid, gid).map_err(refused("change the group"))?;
    unistd::setresuid(uid, uid, uid).map_err(refused("change the user"))?;
    gain_nothing()?;
    prove(to)
}

/// No program that this process starts can have more rights than it has (`no_new_privs`).
///
/// # Errors
/// On kernels before 3.5.
pub fn gain_nothing() -> Result<(), PrivilegeError> {
    nix::sys::prctl::set_no_new_privs().map_err(|source| PrivilegeError::Refused { step: "set no_new_privs", source })
}

/// Keep other processes of the same account, such as a runner that was taken over, from reading this one's memory
/// and environment (`PR_SET_DUMPABLE`).
///
/// # Errors
/// When the kernel refuses.
pub fn hide() -> Result<(), PrivilegeError> {
    nix::sys::prctl::set_dumpable(false)
        .map_err(|source| PrivilegeError::Refused { step: "hide this process from others", source })
}

fn prove(to: &Account) -> Result<(), PrivilegeError> {
    let standing = standing();
    let ours = standing.uids == [to.uid; 3] && standing.gids == [to.gid; 3] && standing.no_new_privs;
    let root = Uid::from_raw(0);
    let regained = unistd::seteuid(root).is_ok() || unistd::setresuid(root, root, root).is_ok();
    if ours && !regained && !is_root() { Ok(()) } else { Err(PrivilegeError::Regained) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_no_account_to_become() {
        assert!(matches!(account("root"), Err(PrivilegeError::StillRoot(_))));
        assert!(matches!(account("0"), Err(PrivilegeError::StillRoot(_))));
        assert!(matches!(account("no-such-user"), Err(PrivilegeError::NoSuchUser(_))));
        assert_ne!(account("nobody").unwrap().uid, 0);
        assert_eq!(account("4711").unwrap().gid, 4711);
    }
}
