//! Compiling: one child process, one component in, machine code out.
//!
//! The time and memory of a compilation are chosen by whoever wrote the component, so it happens where both
//! are bounded by the kernel and where nothing is lost with the process.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitCode,
    time::Duration,
};

use nix::sys::{
    resource::{Resource, setrlimit},
    signal::Signal,
};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::{
    Code, SandboxOptions,
    child::{self, Role},
    code, engine,
};

/// What one compilation may use.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CompileLimits {
    /// Bytes of the component.
    pub component: u64,
    pub time: Duration,
    /// Bytes of address space of the child.
    pub memory: u64,
    /// Bytes of machine code.
    pub code: u64,
}

impl Default for CompileLimits {
    /// Room for an interpreter of 40 MiB (CPython), on a slow machine.
    fn default() -> Self {
        Self { component: 64 << 20, time: Duration::from_secs(120), memory: 4 << 30, code: 512 << 20 }
    }
}

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error("it has {actual} bytes, more than the {limit} allowed")]
    TooLarge { actual: u64, limit: u64 },
    #[error("it is not wasm")]
    NotWasm,
    #[error("it is a core module, not a component; build it with `rtask build` or for wasm32-wasip2")]
    CoreModule,
    #[error("it is machine code, which is never accepted; deploy the component (.wasm) that it was made from")]
    MachineCode,
    #[error("it is not valid: {0}")]
    Invalid(String),
    #[error("compiling it took more than {0:?}; the compiler was killed")]
    Time(Duration),
    #[error("compiling it took more than {0} bytes of memory; the compiler was killed")]
    Memory(u64),
    #[error("its machine code would have more than {0} bytes")]
    CodeSize(u64),
    #[error("the compiler died: {0}")]
    Died(String),
    #[error("failed to start a compiler: {0}")]
    NotStarted(#[from] std::io::Error),
}

/// What a compiler child is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    limits: CompileLimits,
}

/// What a compiler child says before it ends with a failure; bounded by [`MAX_COMPLAINT`].
#[derive(Debug, Serialize, Deserialize)]
enum Complaint {
    NotWasm,
    CoreModule,
    MachineCode,
    Invalid(String),
}

const MAX_COMPLAINT: u64 = 16 << 10;

pub(crate) async fn compile(component: &[u8], options: &SandboxOptions) -> Result<Code, CompileError> {
    let limits = &options.compile;
    let actual = component.len() as u64;
    if actual > limits.component {
        return Err(CompileError::TooLarge { actual, limit: limits.component });
    }
    let mut input = File::from(code::anonymous("rtask-component")?);
    input.write_all(component)?;
    input.rewind()?;
    let output = code::anonymous("rtask-code")?;
    let role = Role::Compiler(Settings { limits: limits.clone() });
    let mut compiler = child::spawn(role, options.account.as_ref(), input.into(), output.try_clone()?)?;

    let mut said = Vec::new();
    let complaints = compiler.stderr.take();
    let listen = async {
        if let Some(complaints) = complaints {
            // What was said before a read failed is as good as it gets.
            let _ = complaints.take(MAX_COMPLAINT).read_to_end(&mut said).await;
        }
        compiler.wait().await
    };
    // The child has an alarm of its own; this is for one that is stuck where no signal reaches it.
    let patience = limits.time + Duration::from_secs(5);
    let status = tokio::time::timeout(patience, listen).await.map_err(|_| CompileError::Time(limits.time))??;
    if status.success() { finish(output, &said) } else { Err(explain(status, &said, limits)) }
}

/// A compiler child that ended well said which engine it compiled for.
fn finish(output: OwnedFd, said: &[u8]) -> Result<Code, CompileError> {
    let engine = serde_json::from_slice(said).map_err(|error| CompileError::Died(error.to_string()))?;
    Ok(Code::seal(output, engine)?)
}

fn explain(status: std::process::ExitStatus, said: &[u8], limits: &CompileLimits) -> CompileError {
    let text = String::from_utf8_lossy(said);
    let signal = status.signal().and_then(|number| Signal::try_from(number).ok());
    match (signal, serde_json::from_slice(said)) {
        (Some(Signal::SIGALRM | Signal::SIGXCPU), _) => CompileError::Time(limits.time),
        (Some(Signal::SIGXFSZ), _) => CompileError::CodeSize(limits.code),
        (Some(Signal::SIGABRT | Signal::SIGSEGV | Signal::SIGBUS), _) if text.contains("memory allocation") => {
            CompileError::Memory(limits.memory)
        }
        (Some(Signal::SIGKILL), _) => {
            CompileError::Died("it was killed from outside; is the machine out of memory?".into())
        }
        (Some(signal), _) => CompileError::Died(format!("{signal} {}", text.trim())),
        (None, Ok(Complaint::NotWasm)) => CompileError::NotWasm,
        (None, Ok(Complaint::CoreModule)) => CompileError::CoreModule,
        (None, Ok(Complaint::MachineCode)) => CompileError::MachineCode,
        (None, Ok(Complaint::Invalid(reason))) => CompileError::Invalid(reason),
        (None, Err(_)) => CompileError::Died(format!("{status} {}", text.trim())),
    }
}

/// The child's half: descriptor 0 holds the component, descriptor 1 takes the machine code.
pub(crate) fn child(settings: &Settings) -> ExitCode {
    match compile_here(&settings.limits) {
        Ok(engine) => {
            eprint!("{engine}");
            ExitCode::SUCCESS
        }
        Err(complaint) => {
            eprint!("{}", serde_json::to_string(&complaint).expect("plain values always serialise"));
            ExitCode::FAILURE
        }
    }
}

fn compile_here(limits: &CompileLimits) -> Result<u64, Complaint> {
    let invalid = |error: &dyn std::fmt::Display| Complaint::Invalid(format!("{error:#}"));
    bound(limits).map_err(|error| invalid(&error))?;
    let mut component = Vec::new();
    let mut input = File::from(std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| invalid(&error))?);
    input.read_to_end(&mut component).map_err(|error| invalid(&error))?;
    if component.starts_with(b"\x7fELF") {
        return Err(Complaint::MachineCode);
    }
    if wasmparser::Parser::is_core_wasm(&component) {
        return Err(Complaint::CoreModule);
    }
    if !wasmparser::Parser::is_component(&component) {
        return Err(Complaint::NotWasm);
    }
    refuse_long_names(&component)?;
    let engine = engine::for_compiling().map_err(|error| invalid(&error))?;
    let code = engine.precompile_component(&component).map_err(|error| invalid(&format_args!("{error:#}")))?;
    let mut output = File::from(std::io::stdout().as_fd().try_clone_to_owned().map_err(|error| invalid(&error))?);
    output.write_all(&code).map_err(|error| invalid(&error))?;
    Ok(engine::fingerprint(&engine))
}

/// See [`engine::MAX_FUNCTION_NAME`]. What cannot be parsed here is left to the compiler to complain of.
fn refuse_long_names(component: &[u8]) -> Result<(), Complaint> {
    let too_long = |naming: wasmparser::Naming<'_>| naming.name.len() > engine::MAX_FUNCTION_NAME;
    for payload in wasmparser::Parser::new(0).parse_all(component).flatten() {
        let wasmparser::Payload::CustomSection(section) = payload else { continue };
        let wasmparser::KnownCustom::Name(names) = section.as_known() else { continue };
        for name in names.into_iter().flatten() {
            if let wasmparser::Name::Function(functions) = name
                && functions.into_iter().flatten().any(too_long)
            {
                let limit = engine::MAX_FUNCTION_NAME;
                return Err(Complaint::Invalid(format!("it names a function with more than {limit} bytes")));
            }
        }
    }
    Ok(())
}

/// All of it by the kernel: processor time, wall time, address space, size of the output.
fn bound(limits: &CompileLimits) -> std::io::Result<()> {
    let seconds = limits.time.as_secs().max(1);
    // Tasks go first.
    rustix::process::nice(19)?;
    // Processor time counts all threads, of which there is one a core.
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    setrlimit(Resource::RLIMIT_CPU, seconds * cores, seconds * cores + 1)?;
    setrlimit(Resource::RLIMIT_AS, limits.memory, limits.memory)?;
    setrlimit(Resource::RLIMIT_FSIZE, limits.code, limits.code)?;
    nix::unistd::alarm::set(u32::try_from(seconds).unwrap_or(u32::MAX));
    Ok(())
}
