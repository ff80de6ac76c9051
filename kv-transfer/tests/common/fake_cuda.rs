//! Drivers for tests: `tests/fake_cuda/libcuda.c`, compiled and loaded as often as wanted, each with
//! GPUs, faults and counts of its own.

use std::ffi::{CString, c_char, c_int};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use kv_transfer::KvLayout;
use kv_transfer::cuda::{CudaError, CudaMemory, Device, Driver};
use libloading::Library;

use super::content;

/// What a driver counts while it lives, in the order of the C file.
const COUNTED: [&str; 7] =
    ["contexts", "streams", "events", "pools", "pinned buffers", "mappings", "mapped events"];

/// A driver of this process's own.
pub struct Fake {
    pub driver: Arc<Driver>,
    library: Library,
}

impl Fake {
    pub fn new() -> Self {
        let (fake, driver) = Self::load(None);
        Self { driver: driver.unwrap(), library: fake }
    }

    /// What loading a driver without this function ends with.
    pub fn without(symbol: &str) -> Result<Arc<Driver>, CudaError> {
        Self::load(Some(symbol)).1
    }

    /// Puts the library where a process looks for it that has this folder in LD_LIBRARY_PATH.
    pub fn install(folder: &Path) {
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(folder.join("libcuda.so.1"), compile(None)).unwrap();
    }

    fn load(missing: Option<&str>) -> (Library, Result<Arc<Driver>, CudaError>) {
        static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
        // A file of its own each time: the loader gives one file's variables to all who load it.
        let path = file();
        match missing {
            None => std::fs::write(&path, WHOLE.get_or_init(|| compile(None))).unwrap(),
            Some(symbol) => std::fs::write(&path, compile(Some(symbol))).unwrap(),
        }
        // SAFETY: the library has no initialisers.
        let library = unsafe { Library::new(&path) }.unwrap();
        let driver = Driver::load_from(&path);
        std::fs::remove_file(path).unwrap();
        (library, driver)
    }

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

    /// A kernel, on the device's default stream, that writes a block some time later.
    pub fn write_later(&self, memory: &CudaMemory, block: u32, bytes: &[u8]) {
        assert_eq!(bytes.len(), memory.block_bytes());
        let device = memory.device().ordinal() as c_int;
        let to = memory.base() + u64::from(block) * bytes.len() as u64;
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
    let name = format!("libcuda-{}-{number}.so", std::process::id());
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

/// The library, without one of its functions.
fn compile(missing: Option<&str>) -> Vec<u8> {
    let path = file();
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]);
    compiler.args(missing.map(|symbol| format!("-D{symbol}=absent_{symbol}")));
    compiler.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_cuda/libcuda.c"));
    let compiled = compiler.arg("-o").arg(&path).status();
    let compiled = compiled.expect("`cc`: these tests compile a driver; install gcc or clang");
    assert!(compiled.success(), "the driver for tests does not compile");
    let library = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    library
}

/// A pool on a GPU whose blocks hold their `content`.
pub fn pool_with_content(device: &Arc<Device>, blocks: u32, layout: &KvLayout) -> Arc<CudaMemory> {
    let bytes = layout.block_bytes();
    let memory = CudaMemory::new(device, blocks as usize, bytes).unwrap();
    let all: Vec<u8> = (0..blocks).flat_map(|block| content(block, bytes)).collect();
    // SAFETY: nobody else has this memory yet.
    unsafe { memory.write_blocks(0, &all) }.unwrap();
    Arc::new(memory)
}
