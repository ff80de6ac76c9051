//! NVIDIA's run-time compiler, loaded when it is needed: a machine without it runs everything else.

use std::error::Error;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use crate::source::Source;

/// What the system's loader may know it by, newest first.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// Earlier versions do not know the language and the cards that the sources are written for.
const VERSION_MIN: (i32, i32) = (12, 0);

type Program = *mut c_void;
type Code = c_int;

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    version: (i32, i32),
    /// As `major * 10 + minor` of compute capabilities, ascending.
    architectures: Vec<u32>,
    // Last, because the functions are in them.
    _library: Library,
    _builtins: Option<Library>,
}

/// A module for a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// What `cuModuleLoadData` takes: a cubin, or PTX (with its final 0) for a card that is newer than
    /// the compiler.
    pub image: Vec<u8>,
    /// What the compiler said: registers and spills of each kernel, and warnings.
    pub log: String,
}

/// Why there is no module.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// No library.
    #[error(
        "NVIDIA's run-time compiler is not found ({tried}): install it (`pip install \
         nvidia-cuda-nvrtc`, or where the driver has CUDA 12 `nvidia-cuda-nvrtc-cu12`, CUDA's toolkit has it too) where the system's loader \
         finds it (LD_LIBRARY_PATH)"
    )]
    Missing {
        /// What was tried, with the loader's words.
        tried: String,
    },
    /// A library without a function.
    #[error("{library} has no {function}: it is not the run-time compiler of CUDA 12 or 13")]
    Function {
        /// Which library.
        library: String,
        /// What it has not.
        function: &'static str,
    },
    /// An old library.
    #[error("the run-time compiler is of CUDA {major}.{minor}, and must be of 12.0 or newer")]
    Version {
        /// Its version.
        major: i32,
        /// Its version.
        minor: i32,
    },
    /// A card that no module can be made for.
    #[error(
        "the run-time compiler of CUDA {major}.{minor} makes nothing that a card of compute \
         capability {capability} runs: kernels need 8.0 or newer"
    )]
    Card {
        /// The compiler's version.
        major: i32,
        /// The compiler's version.
        minor: i32,
        /// The card's, as text.
        capability: String,
    },
    /// The compiler failed.
    #[error("{module} does not compile for {architecture}: {reason}\n{log}")]
    Failed {
        /// Which source.
        module: &'static str,
        /// `--gpu-architecture`.
        architecture: String,
        /// The compiler's word for it.
        reason: String,
        /// What it said.
        log: String,
    },
}

/// The functions that are used, as `nvrtc.h` declares them.
struct Functions {
    error_string: unsafe extern "C" fn(Code) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Code,
    destroy: unsafe extern "C" fn(*mut Program) -> Code,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Code,
    ptx: Output,
    cubin: Output,
    log: Output,
}

/// Functions that say how long something is, and copy it.
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> Code,
    copy: unsafe extern "C" fn(Program, *mut c_char) -> Code,
}

impl Nvrtc {
    /// Loads the library at `path`, or where none is given, what the system's loader finds. Errors:
    /// there is none, or it is too old.
    ///
    /// Of the system's it takes none that is newer than `cuda_max`, the major version of CUDA that the
    /// driver has: what it made would not load.
    pub fn load(path: Option<&Path>, cuda_max: u32) -> Result<Self, CompileError> {
        let is_usable = |name: &&str| !name.ends_with(".13") || cuda_max >= 13;
        let names = match path {
            Some(path) => vec![path.to_path_buf()],
            None => NAMES.into_iter().filter(is_usable).map(PathBuf::from).collect(),
        };
        let mut tried = Vec::new();
        for name in &names {
            let builtins = builtins_beside(name);
            // SAFETY: the library's initialisers are NVIDIA's and do nothing to this process.
            match unsafe { Library::new(name) } {
                Ok(library) => return Self::from_library(library, builtins, name),
                Err(error) => tried.push(why_not(&error)),
            }
        }
        Err(CompileError::Missing { tried: tried.join("; ") })
    }

    fn from_library(
        library: Library,
        builtins: Option<Library>,
        name: &Path,
    ) -> Result<Self, CompileError> {
        let (functions, version, architectures) = {
            let find = Finder { library: &library, name };
            // SAFETY: each has the type that `nvrtc.h` of CUDA 12 and 13 declares.
            unsafe {
                let functions = Functions {
                    error_string: find.function("nvrtcGetErrorString")?,
                    create: find.function("nvrtcCreateProgram")?,
                    destroy: find.function("nvrtcDestroyProgram")?,
                    compile: find.function("nvrtcCompileProgram")?,
                    ptx: find.output("nvrtcGetPTXSize", "nvrtcGetPTX")?,
                    cubin: find.output("nvrtcGetCUBINSize", "nvrtcGetCUBIN")?,
                    log: find.output("nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?,
                };
                (functions, find.version()?, find.architectures()?)
            }
        };
        let (major, minor) = version;
        if version < VERSION_MIN {
            return Err(CompileError::Version { major, minor });
        }
        Ok(Self { functions, version, architectures, _library: library, _builtins: builtins })
    }

    /// Its CUDA version.
    pub fn version(&self) -> (i32, i32) {
        self.version
    }

    /// What a card is compiled for: its own machine code (`sm_90`), or where the compiler does not
    /// know the card yet, PTX that its driver goes on with (`compute_120`). Errors: the card is too
    /// old.
    pub fn architecture(&self, major: u32, minor: u32) -> Result<String, CompileError> {
        const OLDEST: u32 = 80;
        let card = 10 * major + minor;
        let usable = |architecture: &&u32| (OLDEST..=card).contains(architecture);
        match self.architectures.iter().filter(usable).max() {
            Some(best) if *best == card => Ok(format!("sm_{card}")),
            Some(best) => Ok(format!("compute_{best}")),
            None => {
                let (of, minor_of) = self.version;
                let capability = format!("{major}.{minor}");
                Err(CompileError::Card { major: of, minor: minor_of, capability })
            }
        }
    }

    /// Compiles for an `architecture` (what `architecture()` said). Errors: with the compiler's log.
    pub fn compile(&self, source: &Source, architecture: &str) -> Result<Compiled, CompileError> {
        let failed = |reason: String, log: String| CompileError::Failed {
            module: source.module.name(),
            architecture: architecture.into(),
            reason,
            log,
        };
        let text = CString::new(source.text.as_str());
        let options: Result<Vec<CString>, _> =
            options(source, architecture).into_iter().map(CString::new).collect();
        let (Ok(text), Ok(options)) = (text, options) else {
            return Err(failed("the source has a zero byte".into(), String::new()));
        };
        let program = OpenProgram::new(&self.functions, &text)
            .map_err(|code| failed(self.error_text(code), String::new()))?;
        let compiled = program.compile(&options);
        let log = program.read(&self.functions.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_string();
        let is_machine_code = architecture.starts_with("sm_");
        let output = if is_machine_code { &self.functions.cubin } else { &self.functions.ptx };
        match compiled.and_then(|()| program.read(output)) {
            Ok(image) => Ok(Compiled { image, log }),
            Err(code) => Err(failed(self.error_text(code), log)),
        }
    }

    fn error_text(&self, code: Code) -> String {
        // SAFETY: the function takes any number, and returns a string that is never freed.
        let text = unsafe { CStr::from_ptr((self.functions.error_string)(code)) };
        text.to_string_lossy().into_owned()
    }
}

/// What the compiler is told. Arithmetic stays as it is written: products are not fused into sums, and
/// subnormal numbers, quotients and roots are IEEE's.
pub(crate) fn options(source: &Source, architecture: &str) -> Vec<String> {
    let fixed = [
        "--std=c++17",
        "--device-as-default-execution-space",
        "--fmad=false",
        "--ftz=false",
        "--prec-div=true",
        "--prec-sqrt=true",
        "--ptxas-options=--verbose",
        // Not every module uses all of the prelude.
        "--diag-suppress=177",
    ];
    let defines = source.defines.iter().map(|define| format!("--define-macro={define}"));
    let architecture = format!("--gpu-architecture={architecture}");
    fixed.map(String::from).into_iter().chain([architecture]).chain(defines).collect()
}

/// The compiler opens a second library by its name alone, which the system's loader finds where it is
/// loaded already.
fn builtins_beside(library: &Path) -> Option<Library> {
    let files = std::fs::read_dir(library.parent()?).ok()?.flatten();
    let is_builtins = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins.so.")
    };
    let path = files.map(|file| file.path()).find(is_builtins)?;
    // SAFETY: as the compiler would.
    unsafe { Library::new(path) }.ok()
}

/// In the system's words, where it has some.
fn why_not(error: &libloading::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

struct Finder<'a> {
    library: &'a Library,
    name: &'a Path,
}

impl Finder<'_> {
    /// # Safety
    /// `F` is the function's type.
    unsafe fn function<F: Copy>(&self, function: &'static str) -> Result<F, CompileError> {
        // SAFETY: by the caller's promise.
        let found = unsafe { self.library.get::<F>(function) };
        let library = self.name.display().to_string();
        Ok(*found.map_err(|_| CompileError::Function { library, function })?)
    }

    /// # Safety
    /// The functions have these types.
    unsafe fn output(
        &self,
        size: &'static str,
        copy: &'static str,
    ) -> Result<Output, CompileError> {
        // SAFETY: by the caller's promise.
        unsafe { Ok(Output { size: self.function(size)?, copy: self.function(copy)? }) }
    }

    fn version(&self) -> Result<(i32, i32), CompileError> {
        type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Code;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the type of `nvrtc.h`, and two numbers to write to.
        unsafe { self.function::<Version>("nvrtcVersion")?(&mut major, &mut minor) };
        Ok((major, minor))
    }

    fn architectures(&self) -> Result<Vec<u32>, CompileError> {
        type Numbers = unsafe extern "C" fn(*mut c_int) -> Code;
        let mut count = 0;
        // SAFETY: the type of `nvrtc.h`, and a number to write to.
        unsafe { self.function::<Numbers>("nvrtcGetNumSupportedArchs")?(&mut count) };
        let mut numbers = vec![0; count.max(0) as usize];
        // SAFETY: the type of `nvrtc.h`, and as many numbers to write to as it said.
        unsafe { self.function::<Numbers>("nvrtcGetSupportedArchs")?(numbers.as_mut_ptr()) };
        Ok(numbers.into_iter().map(|number| number.max(0) as u32).collect())
    }
}

/// A program that is destroyed on drop.
struct OpenProgram<'a> {
    functions: &'a Functions,
    program: Program,
}

impl<'a> OpenProgram<'a> {
    fn new(functions: &'a Functions, text: &CStr) -> Result<Self, Code> {
        let (mut program, none) = (std::ptr::null_mut(), std::ptr::null());
        let name = c"kernels.cu".as_ptr();
        // SAFETY: strings that end in 0, and no headers.
        let code = unsafe { (functions.create)(&mut program, text.as_ptr(), name, 0, none, none) };
        if code == 0 { Ok(Self { functions, program }) } else { Err(code) }
    }

    fn compile(&self, options: &[CString]) -> Result<(), Code> {
        let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let count = options.len() as c_int;
        // SAFETY: the program lives, and so do as many strings as are said.
        let code = unsafe { (self.functions.compile)(self.program, count, options.as_ptr()) };
        if code == 0 { Ok(()) } else { Err(code) }
    }

    fn read(&self, output: &Output) -> Result<Vec<u8>, Code> {
        let mut size = 0;
        // SAFETY: the program lives, and there is a number to write to.
        let code = unsafe { (output.size)(self.program, &mut size) };
        if code != 0 {
            return Err(code);
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: as many bytes to write to as it said.
        let code = unsafe { (output.copy)(self.program, bytes.as_mut_ptr().cast()) };
        if code == 0 { Ok(bytes) } else { Err(code) }
    }
}

impl Drop for OpenProgram<'_> {
    fn drop(&mut self) {
        // SAFETY: it lives, and nobody uses it after this.
        unsafe { (self.functions.destroy)(&mut self.program) };
    }
}
