//! CUDA for tests: the libraries of `fake/`, which compute on the CPU. A driver can be loaded as often
//! as wanted, each with GPUs, faults and counts of its own.

// A test fails by panicking.
#![allow(clippy::unwrap_used)]

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use libloading::Library;

use crate::{CudaError, Device, Driver};

/// What a driver counts while it lives, in the order of the C file.
const COUNTED: [&str; 9] = [
    "contexts",
    "streams",
    "events",
    "pools",
    "pinned buffers",
    "mappings",
    "mapped events",
    "modules",
    "graphs",
];

/// The compiler and cuBLAS, in the folder of `libraries`.
pub const NVRTC: &str = "libnvrtc.so.13";
/// As `NVRTC`.
pub const CUBLAS: &str = "libcublas.so.13";
/// As `NVRTC`.
pub const DRIVER: &str = "libcuda.so.1";

/// A folder with a driver, a compiler and a cuBLAS, for LD_LIBRARY_PATH. Panics where they do not
/// compile.
pub fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fake-cuda");
        build(&folder, None, None);
        folder.canonicalize().expect("it was built")
    })
}

/// A folder with an NVML that has no GPUs, for LD_LIBRARY_PATH.
pub fn nvml() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = libraries().join("nvml");
        build(&folder, Some("libnvidia-ml.so.1"), None);
        folder
    })
}

/// A driver of this process's own.
pub struct Fake {
    /// It.
    pub driver: Arc<Driver>,
    library: Library,
    path: PathBuf,
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _removed = std::fs::remove_file(&self.path);
    }
}

#[allow(clippy::new_without_default)] // loading is no default
impl Fake {
    /// Loads one.
    pub fn new() -> Self {
        let (path, library, driver) = Self::load(None);
        Self { driver: driver.unwrap(), library, path }
    }

    /// Its file, for who loads drivers by their path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What loading a driver without this function ends with.
    pub fn without(symbol: &str) -> Result<Arc<Driver>, CudaError> {
        let (path, _library, driver) = Self::load(Some(symbol));
        std::fs::remove_file(path).unwrap();
        driver
    }

    /// Puts the library where a process looks for it that has this folder in LD_LIBRARY_PATH.
    pub fn install(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::copy(libraries().join(DRIVER), folder.join(DRIVER)).unwrap();
    }

    fn load(missing: Option<&str>) -> (PathBuf, Library, Result<Arc<Driver>, CudaError>) {
        // A file of its own each time: the loader gives one file's variables to all who load it.
        let path = file();
        match missing {
            None => std::fs::copy(libraries().join(DRIVER), &path).map(|_bytes| ()).unwrap(),
            Some(symbol) => std::fs::write(&path, compile(symbol)).unwrap(),
        }
        // SAFETY: the library has no initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let driver = Driver::load_from(&path);
        (path, library, driver)
    }

    /// One of its two GPUs.
    pub fn device(&self, ordinal: u32) -> Arc<Device> {
        Device::open(&self.driver, ordinal).unwrap()
    }

    /// The `after`th call of this name from now on fails with the code; each one if `after` is 0.
    pub fn fail(&self, call: &str, after: i32, code: i32) {
        let call = CString::new(call).unwrap();
        // SAFETY: this is the function's type.
        unsafe {
            let fail: unsafe extern "C" fn(*const c_char, c_int, c_int) =
                *self.library.get("fake_cuda_fail").unwrap();
            fail(call.as_ptr(), after, code);
        }
    }

    /// What it says of how network cards' writes are ordered, and of how they can be flushed.
    pub fn order_remote_writes(&self, order: i32, options: i32) {
        // SAFETY: this is the function's type.
        unsafe {
            let set: unsafe extern "C" fn(c_int, c_int) =
                *self.library.get("fake_cuda_order_remote_writes").unwrap();
            set(order, options);
        }
    }

    /// Whether its GPUs reach each other.
    pub fn allow_peers(&self, allowed: bool) {
        self.set("fake_cuda_allow_peers", allowed);
    }

    /// While held, no copy ends.
    pub fn hold(&self, is_held: bool) {
        self.set("fake_cuda_hold", is_held);
    }

    fn set(&self, function: &str, value: bool) {
        // SAFETY: this is the function's type.
        unsafe {
            let set: unsafe extern "C" fn(c_int) = *self.library.get(function).unwrap();
            set(value.into());
        }
    }

    /// The calls since it was asked the last time.
    pub fn calls(&self) -> Vec<String> {
        let mut text = vec![0u8; 1 << 20];
        // SAFETY: this is the function's type, and the buffer is as long as it says.
        let bytes = unsafe {
            let calls: unsafe extern "C" fn(*mut u8, usize) -> usize =
                *self.library.get("fake_cuda_calls").unwrap();
            calls(text.as_mut_ptr(), text.len())
        };
        text.truncate(bytes);
        String::from_utf8(text).unwrap().lines().map(String::from).collect()
    }

    /// How many of `calls` were of this name.
    pub fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|called| *called == call).count()
    }

    /// What lives, and how often the driver was used wrongly: nothing and never, if this is empty.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        // SAFETY: these are the functions' types.
        unsafe {
            let live: unsafe extern "C" fn(c_int) -> c_int =
                *self.library.get("fake_cuda_live").unwrap();
            for (index, what) in COUNTED.iter().enumerate() {
                match live(index as c_int) {
                    0 => {}
                    count => left.push(format!("{count} {what}")),
                }
            }
            let violations: unsafe extern "C" fn() -> c_int =
                *self.library.get("fake_cuda_violations").unwrap();
            match violations() {
                0 => {}
                count => left.push(format!("{count} violations")),
            }
        }
        left
    }

    /// A kernel, on the device's default stream, that writes bytes some time later.
    pub fn write_later(&self, device: &Device, to: u64, bytes: &[u8]) {
        let device = device.ordinal() as c_int;
        // SAFETY: this is the function's type, and the bytes are as many as it says.
        unsafe {
            let write: unsafe extern "C" fn(c_int, u64, *const u8, usize) =
                *self.library.get("fake_cuda_write_later").unwrap();
            write(device, to, bytes.as_ptr(), bytes.len());
        }
    }
}

/// Where a library can be put, other than all before.
fn file() -> PathBuf {
    static FILES: AtomicU32 = AtomicU32::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("libcuda-{}-{number}.so", std::process::id()))
}

/// The driver, without one of its functions.
fn compile(missing: &str) -> Vec<u8> {
    let folder = file();
    build(&folder, Some(DRIVER), Some(missing));
    let library = std::fs::read(folder.join(DRIVER)).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    library
}

/// Compiles one library, or all.
fn build(folder: &Path, library: Option<&str>, missing: Option<&str>) {
    std::fs::create_dir_all(folder).expect("a folder for libraries");
    let mut builder = Command::new("sh");
    builder.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/fake/build.sh")).arg(folder).args(library);
    missing.map(|symbol| builder.env("MISSING", symbol));
    let output = builder.output().expect("sh, which compiles libraries for tests");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the libraries for tests need gcc and g++: {errors}");
}
