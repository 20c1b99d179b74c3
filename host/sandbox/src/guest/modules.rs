//! The components of a runner, and the socket on which they arrive.

use std::{
    collections::HashMap,
    os::fd::{AsRawFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
};

use rustix::net;
use wasmtime::{
    Engine,
    component::{Component, Linker},
};

use super::{
    context::{HANDLER, Task, TaskPre},
    instance::State,
};
use crate::{
    frames::{Answer, Load, Loaded},
    runner::MAX_ANSWER,
};

/// What can be run, by the supervisor's number for it.
pub(super) struct Modules {
    engine: Engine,
    linker: Linker<State>,
    loaded: RwLock<HashMap<u32, Arc<TaskPre<State>>>>,
}

impl Modules {
    /// Receive components on `socket` from now on, on a thread of its own, since loading blocks.
    pub(super) fn listen(engine: Engine, socket: OwnedFd) -> wasmtime::Result<Arc<Self>> {
        let mut linker = Linker::new(&engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        Task::add_to_linker::<_, wasmtime::component::HasSelf<_>>(&mut linker, |state| state)?;
        let modules = Arc::new(Self { engine, linker, loaded: RwLock::default() });
        let listening = modules.clone();
        std::thread::Builder::new().name("modules".into()).spawn(move || listening.receive_all(&socket))?;
        Ok(modules)
    }

    pub(super) fn get(&self, component: u32) -> Option<Arc<TaskPre<State>>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(&component).cloned()
    }

    pub(super) fn forget(&self, component: u32) {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(&component);
    }

    fn receive_all(&self, socket: &OwnedFd) {
        while let Ok(Some((load, code))) = receive(socket) {
            let loaded = match code {
                Some(code) => self.load(&load, &code),
                None => Loaded::Refused("the runner has no descriptor left for it".to_owned()),
            };
            let answer = Answer { component: load.component, loaded };
            let answer = postcard::to_stdvec(&answer).expect("plain values always serialise");
            if net::send(socket, &answer, net::SendFlags::NOSIGNAL).is_err() {
                return;
            }
        }
    }

    fn load(&self, load: &Load, code: &OwnedFd) -> Loaded {
        match self.prepare(code) {
            Ok(Some(task)) => {
                let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
                loaded.insert(load.component, Arc::new(task));
                Loaded::Ready
            }
            Ok(None) => Loaded::NoHandler,
            Err(error) => {
                let mut reason = format!("{error:#}");
                reason.truncate(reason.floor_char_boundary(MAX_ANSWER / 2));
                Loaded::Refused(reason)
            }
        }
    }

    /// None if the component exports no handler.
    fn prepare(&self, code: &OwnedFd) -> wasmtime::Result<Option<TaskPre<State>>> {
        let path = format!("/proc/self/fd/{}", code.as_raw_fd());
        #[expect(unsafe_code, reason = "the only way to load machine code")]
        // SAFETY: the bytes come from the supervisor, which had them from its own compiler child or from its
        // authenticated cache, and sealed the memory so that nobody changes them while they are mapped.
        let component = unsafe { Component::deserialize_file(&self.engine, path)? };
        if component.get_export_index(None, HANDLER).is_none() {
            return Ok(None);
        }
        TaskPre::new(self.linker.instantiate_pre(&component)?).map(Some)
    }
}

/// None when the supervisor has closed its end.
fn receive(socket: &OwnedFd) -> std::io::Result<Option<(Load, Option<OwnedFd>)>> {
    let mut bytes = [0; 64];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = net::RecvAncillaryBuffer::new(&mut space);
    let flags = net::RecvFlags::CMSG_CLOEXEC;
    let received = net::recvmsg(socket, &mut [std::io::IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let load = postcard::from_bytes(&bytes[..received.bytes]).map_err(std::io::Error::other)?;
    let code = control.drain().find_map(|message| match message {
        net::RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(Some((load, code)))
}
