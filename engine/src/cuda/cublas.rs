//! NVIDIA's cuBLAS, for products of many rows: loaded when it is needed.
//!
//! <https://docs.nvidia.com/cuda/cublas/>, types as in `cublas_api.h` of CUDA 12 and 13.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::sync::Arc;

use cuda_driver::{Allocation, Device, Handle, Stream, why_not};
use cuda_kernels::Dtype;
use libloading::Library;

use super::CudaFailure;

/// What the system's loader may know it by, newest first.
const NAMES: [&str; 3] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so"];

/// What NVIDIA recommends for Hopper; older cards need less.
pub const WORKSPACE_BYTES: usize = 32 << 20;

type Status = c_int;

/// The library.
pub struct Cublas {
    functions: Functions,
    // Last, because the functions are in it.
    _library: Library,
}

/// cuBLAS on one stream.
pub struct CublasStream {
    cublas: Arc<Cublas>,
    device: Arc<Device>,
    handle: Handle,
    /// What it may write to while it computes: its own, so that captured work can be run again.
    _workspace: Allocation,
}

/// A product: y `[rows, outputs]` = x `[rows, inputs]` times the transpose of weights `[outputs,
/// inputs]`, all of one type, in device memory. Sums are f32.
#[derive(Clone, Copy, Debug)]
pub struct Gemm {
    /// Rows.
    pub rows: usize,
    /// Elements of a row of y.
    pub outputs: usize,
    /// Elements of a row of x.
    pub inputs: usize,
    /// The address of y.
    pub y: u64,
    /// The address of x.
    pub x: u64,
    /// The address of the weights.
    pub weights: u64,
    /// What all numbers are.
    pub dtype: Dtype,
}

struct Functions {
    create: unsafe extern "C" fn(*mut Handle) -> Status,
    destroy: unsafe extern "C" fn(Handle) -> Status,
    set_stream: unsafe extern "C" fn(Handle, Handle) -> Status,
    set_workspace: unsafe extern "C" fn(Handle, u64, usize) -> Status,
    set_math_mode: unsafe extern "C" fn(Handle, c_int) -> Status,
    status_string: unsafe extern "C" fn(Status) -> *const c_char,
    gemm: GemmFunction,
}

type GemmFunction = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    u64,
    c_int,
    c_int,
    u64,
    c_int,
    c_int,
    *const c_void,
    u64,
    c_int,
    c_int,
    c_int,
    c_int,
) -> Status;

impl Cublas {
    /// Loads the library at `path`, or where none is given, what the system's loader finds. Errors:
    /// there is none: a sentence.
    ///
    /// Of the system's it takes none that is newer than `cuda_max`, the major version of CUDA that the
    /// driver has.
    pub fn load(path: Option<&Path>, cuda_max: u32) -> Result<Arc<Self>, String> {
        let is_usable = |name: &&str| !name.ends_with(".13") || cuda_max >= 13;
        let mut tried = Vec::new();
        let names = match path {
            Some(path) => vec![path],
            None => NAMES.into_iter().filter(is_usable).map(Path::new).collect(),
        };
        for name in names {
            // SAFETY: the library's initialisers are NVIDIA's and do nothing to this process.
            match unsafe { Library::new(name) } {
                Ok(library) => {
                    let functions = Functions::find(&library)?;
                    return Ok(Arc::new(Self { functions, _library: library }));
                }
                Err(error) => tried.push(why_not(&error)),
            }
        }
        Err(format!(
            "no cuBLAS of CUDA {cuda_max} or older is found ({}): install it (`pip install nvidia-cublas`, or \
             nvidia-cublas-cu12; CUDA's toolkit has it too) where the system's loader finds it \
             (LD_LIBRARY_PATH)",
            tried.join("; ")
        ))
    }

    fn check(&self, call: &'static str, status: Status) -> Result<(), CudaFailure> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function takes any number, and returns a string that is never freed.
        let text = unsafe { CStr::from_ptr((self.functions.status_string)(status)) };
        Err(CudaFailure::Cublas { call, status: text.to_string_lossy().into_owned() })
    }
}

impl Functions {
    fn find(library: &Library) -> Result<Self, String> {
        // SAFETY: each has the type that `cublas_api.h` declares.
        unsafe {
            Ok(Self {
                create: find(library, "cublasCreate_v2")?,
                destroy: find(library, "cublasDestroy_v2")?,
                set_stream: find(library, "cublasSetStream_v2")?,
                set_workspace: find(library, "cublasSetWorkspace_v2")?,
                set_math_mode: find(library, "cublasSetMathMode")?,
                status_string: find(library, "cublasGetStatusString")?,
                gemm: find(library, "cublasGemmEx")?,
            })
        }
    }
}

/// # Safety
/// `F` is the function's type.
unsafe fn find<F: Copy>(library: &Library, name: &str) -> Result<F, String> {
    // SAFETY: by the caller's promise.
    let found = unsafe { library.get::<F>(name) };
    found
        .map(|function| *function)
        .map_err(|_| format!("this cuBLAS has no {name}: use CUDA's 12 or 13"))
}

impl CublasStream {
    /// Products that this has computed run on `stream`.
    pub fn new(cublas: &Arc<Cublas>, stream: &Stream) -> Result<Self, CudaFailure> {
        /// `CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION`: partial sums stay f32.
        const WIDE_SUMS: c_int = 16;
        let device = stream.device().clone();
        let workspace = Allocation::new(&device, WORKSPACE_BYTES)?;
        let _current = device.enter()?;
        let mut handle = Handle::NULL;
        let Functions { create, set_stream, set_workspace, set_math_mode, .. } = cublas.functions;
        // SAFETY: the pointer is valid.
        cublas.check("cublasCreate", unsafe { create(&mut handle) })?;
        let (cublas, address) = (cublas.clone(), workspace.address());
        let own = Self { cublas, device: device.clone(), handle, _workspace: workspace };
        // SAFETY: handle, stream and workspace live. The workspace comes after the stream, which
        // takes an earlier one back.
        unsafe {
            own.cublas.check("cublasSetStream", set_stream(handle, stream.handle()))?;
            own.cublas
                .check("cublasSetWorkspace", set_workspace(handle, address, WORKSPACE_BYTES))?;
            own.cublas.check("cublasSetMathMode", set_math_mode(handle, WIDE_SUMS))?;
        }
        Ok(own)
    }

    /// Computes a product.
    ///
    /// # Safety
    /// The addresses are of as many numbers, there until the stream has run.
    pub unsafe fn multiply(&self, gemm: &Gemm) -> Result<(), CudaFailure> {
        const PLAIN: c_int = 0;
        const TRANSPOSED: c_int = 1;
        const COMPUTE_32F: c_int = 68;
        const DEFAULT_ALGORITHM: c_int = -1;
        let dtype = match gemm.dtype {
            Dtype::F32 => 0,
            Dtype::F16 => 2,
            Dtype::Bf16 => 14,
        };
        let (one, zero) = (1.0f32, 0.0f32);
        let [rows, outputs, inputs] =
            [gemm.rows, gemm.outputs, gemm.inputs].map(|count| count as c_int);
        let _current = self.device.enter()?;
        // Columns first, as cuBLAS sees it: y's transpose is weights times x's transpose.
        // SAFETY: the caller's promise; the scalars are read during the call.
        let status = unsafe {
            (self.cublas.functions.gemm)(
                self.handle,
                TRANSPOSED,
                PLAIN,
                outputs,
                rows,
                inputs,
                (&raw const one).cast(),
                gemm.weights,
                dtype,
                inputs,
                gemm.x,
                dtype,
                inputs,
                (&raw const zero).cast(),
                gemm.y,
                dtype,
                outputs,
                COMPUTE_32F,
                DEFAULT_ALGORITHM,
            )
        };
        self.cublas.check("cublasGemmEx", status)
    }
}

impl Drop for CublasStream {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: nobody else has it.
        let _destroyed = unsafe { (self.cublas.functions.destroy)(self.handle) };
    }
}
