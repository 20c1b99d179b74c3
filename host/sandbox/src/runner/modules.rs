//! The modules socket of a runner: one component's code at a time, and the answer to it.

use std::{
    io::{Error, IoSlice, Result},
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::{
    io::retry_on_intr,
    net::{self, AddressFamily, SocketFlags, SocketType, sockopt::Timeout},
};

use crate::{
    Code,
    frames::{Load, LoadAnswer, Loaded},
};

/// How long a runner may take to load one component.
const LOAD_TIME: Duration = Duration::from_secs(30);
/// A [`LoadAnswer`] is at most this long (bytes).
pub(crate) const MAX_ANSWER: usize = 16 << 10;

/// The supervisor's end. Locked from a question to its answer.
#[derive(Debug)]
pub(super) struct Modules(Mutex<OwnedFd>);

impl Modules {
    /// Ours and the child's.
    pub(super) fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, childs) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        for timeout in [Timeout::Recv, Timeout::Send] {
            net::sockopt::set_socket_timeout(&ours, timeout, Some(LOAD_TIME))?;
        }
        Ok((Self(Mutex::new(ours)), childs))
    }

    /// Blocks for [`LOAD_TIME`] at most. After an error the two ends may be out of step, and the runner is of no
    /// more use.
    pub(super) fn load(&self, component: u32, code: &Code) -> Result<Loaded> {
        let socket = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(&socket, &Load { component }, code)?;
        let mut bytes = vec![0; MAX_ANSWER];
        let receive = || net::recv(&*socket, bytes.as_mut_slice(), net::RecvFlags::empty());
        let (length, _) = retry_on_intr(receive)?;
        if length == 0 {
            return Err(Error::other("the runner process has ended"));
        }
        let answer: LoadAnswer = postcard::from_bytes(&bytes[..length]).map_err(Error::other)?;
        if answer.component != component {
            return Err(Error::other("it answered another question"));
        }
        Ok(answer.loaded)
    }
}

fn send(socket: &OwnedFd, load: &Load, code: &Code) -> Result<()> {
    let load = postcard::to_stdvec(load).map_err(Error::other)?;
    let descriptors = [code.descriptor()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::SendAncillaryBuffer::new(&mut space);
    if !control.push(net::SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Error::other("there is no room for a descriptor"));
    }
    let mut send = || net::sendmsg(socket.as_fd(), &[IoSlice::new(&load)], &mut control, net::SendFlags::NOSIGNAL);
    retry_on_intr(&mut send)?;
    Ok(())
}
