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
    context::{Task, TaskPre},
    instance::State,
};
use crate::{
    contract,
    frames::{Load, LoadAnswer, Loaded},
    runner::MAX_ANSWER,
};

/// The version of a contract that a component names is cut here (bytes).
const MAX_VERSION: usize = 64;

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
            let answer = LoadAnswer { component: load.component, loaded };
            let answer = postcard::to_stdvec(&answer).expect("plain values always serialise");
            if net::send(socket, &answer, net::SendFlags::NOSIGNAL).is_err() {
                return;
            }
        }
    }

    fn load(&self, load: &Load, code: &OwnedFd) -> Loaded {
        match self.prepare(code) {
            Ok(task) => {
                let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
                loaded.insert(load.component, Arc::new(task));
                Loaded::Ready
            }
            Err(refusal) => refusal,
        }
    }

    fn prepare(&self, code: &OwnedFd) -> Result<TaskPre<State>, Loaded> {
        let path = format!("/proc/self/fd/{}", code.as_raw_fd());
        #[expect(unsafe_code, reason = "the only way to load machine code")]
        // SAFETY: the bytes come from the supervisor, which had them from its own compiler child or from its
        // authenticated cache, and sealed the memory so that nobody changes them while they are mapped.
        let component = unsafe { Component::deserialize_file(&self.engine, path) }.map_err(refused)?;
        if component.get_export_index(None, contract::handler()).is_none() {
            return Err(without_handler(&component, &self.engine));
        }
        self.linker.instantiate_pre(&component).and_then(TaskPre::new).map_err(refused)
    }
}

fn without_handler(component: &Component, engine: &Engine) -> Loaded {
    let component = component.component_type();
    let version = component.exports(engine).find_map(|(name, _)| {
        let version = name.strip_prefix(contract::HANDLER)?.strip_prefix('@')?;
        Some(version[..version.floor_char_boundary(MAX_VERSION)].to_owned())
    });
    version.map_or(Loaded::NoHandler, Loaded::OtherVersion)
}

fn refused(error: wasmtime::Error) -> Loaded {
    let mut reason = format!("{error:#}");
    reason.truncate(reason.floor_char_boundary(MAX_ANSWER / 2));
    Loaded::Refused(reason)
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
