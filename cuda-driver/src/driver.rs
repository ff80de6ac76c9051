//! The driver's functions.
//!
//! <https://docs.nvidia.com/cuda/cuda-driver-api/>, types as in `cuda.h` since CUDA 11.4.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use libloading::Library;

use crate::{CudaError, why_not};

/// The driver, by the name that its package gives it on every distribution.
const LIBRARY: &str = "libcuda.so.1";

/// An address in a GPU's memory (`CUdeviceptr`).
pub type DevicePointer = u64;

/// A context, stream or event (`CUcontext`, `CUstream`, `CUevent`): the driver knows what it means.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handle(pub *mut c_void);

// SAFETY: the driver's objects may be used by any thread; whoever holds a handle sees to it that
// they live.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    /// None.
    pub const NULL: Self = Self(std::ptr::null_mut());
}

/// Names memory or an event to another process (`CUipcMemHandle`, `CUipcEventHandle`).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IpcHandle(pub [u8; 64]);

pub(crate) const STREAM_NON_BLOCKING: c_uint = 1;
pub(crate) const EVENT_BLOCKING_SYNC: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`
pub const EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_EVENT_INTERPROCESS`
pub const EVENT_INTERPROCESS: c_uint = 4;
pub(crate) const HOST_PORTABLE: c_uint = 1;
/// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`
pub(crate) const IPC_LAZY_PEER_ACCESS: c_uint = 1;

/// What a call of the driver answered, other than success (`CUresult`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DriverCode {
    /// As in `cuda.h`.
    pub number: u32,
    /// "CUDA_ERROR_…"
    pub name: &'static str,
}

impl fmt::Display for DriverCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.name, self.number)
    }
}

impl fmt::Debug for DriverCode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

macro_rules! functions {
    ($($method:ident: $symbol:ident($($argument:ident: $type:ty),*);)*) => {
        struct Functions {
            $($method: unsafe extern "C" fn($($type),*) -> u32,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Self, CudaError> {
                $(
                    // SAFETY: this is the function's type in `cuda.h`.
                    let found = unsafe {
                        library.get::<unsafe extern "C" fn($($type),*) -> u32>(stringify!($symbol))
                    };
                    let symbol = stringify!($symbol);
                    let $method = *found.map_err(|_| CudaError::OldDriver { symbol })?;
                )*
                Ok(Self { $($method,)* })
            }
        }

        /// One method per function of the driver, with its errors.
        #[allow(dead_code)] // `error_name` is called past its method
        impl Driver {
            $(
                #[doc = concat!("`", stringify!($symbol), "`.\n\n# Safety\nWhat the driver's \
                    documentation asks for: pointers are valid, handles live, and the context is \
                    the right one.")]
                #[allow(clippy::too_many_arguments)] // the driver's
                pub unsafe fn $method(&self, $($argument: $type),*) -> Result<(), CudaError> {
                    // SAFETY: the caller's promise.
                    let code = unsafe { (self.functions.$method)($($argument),*) };
                    self.check(stringify!($symbol), code)
                }
            )*
        }
    };
}

functions! {
    init: cuInit(flags: c_uint);
    driver_version: cuDriverGetVersion(version: *mut c_int);
    error_name: cuGetErrorName(code: u32, name: *mut *const c_char);
    device_count: cuDeviceGetCount(count: *mut c_int);
    device_get: cuDeviceGet(device: *mut c_int, ordinal: c_int);
    can_access_peer: cuDeviceCanAccessPeer(can: *mut c_int, device: c_int, peer: c_int);
    primary_retain: cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int);
    primary_release: cuDevicePrimaryCtxRelease_v2(device: c_int);
    push_current: cuCtxPushCurrent_v2(context: Handle);
    pop_current: cuCtxPopCurrent_v2(context: *mut Handle);
    priority_range: cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int);
    enable_peer: cuCtxEnablePeerAccess(peer: Handle, flags: c_uint);
    attribute: cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int);
    device_name: cuDeviceGetName(name: *mut c_char, length: c_int, device: c_int);
    uuid: cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int);
    memory_info: cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    allocate: cuMemAlloc_v2(pointer: *mut DevicePointer, bytes: usize);
    free: cuMemFree_v2(pointer: DevicePointer);
    allocate_host: cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: c_uint);
    free_host: cuMemFreeHost(pointer: *mut c_void);
    set_bytes: cuMemsetD8_v2(pointer: DevicePointer, value: u8, bytes: usize);
    copy_within: cuMemcpyDtoDAsync_v2(to: DevicePointer, from: DevicePointer, bytes: usize, stream: Handle);
    copy_to_device: cuMemcpyHtoDAsync_v2(to: DevicePointer, from: *const c_void, bytes: usize, stream: Handle);
    copy_to_host: cuMemcpyDtoHAsync_v2(to: *mut c_void, from: DevicePointer, bytes: usize, stream: Handle);
    copy_between_peers: cuMemcpyPeerAsync(to: DevicePointer, to_context: Handle, from: DevicePointer, from_context: Handle, bytes: usize, stream: Handle);
    create_stream: cuStreamCreateWithPriority(stream: *mut Handle, flags: c_uint, priority: c_int);
    destroy_stream: cuStreamDestroy_v2(stream: Handle);
    wait_for_stream: cuStreamSynchronize(stream: Handle);
    stream_waits: cuStreamWaitEvent(stream: Handle, event: Handle, flags: c_uint);
    create_event: cuEventCreate(event: *mut Handle, flags: c_uint);
    record_event: cuEventRecord(event: Handle, stream: Handle);
    wait_for_event: cuEventSynchronize(event: Handle);
    destroy_event: cuEventDestroy_v2(event: Handle);
    load_module: cuModuleLoadData(module: *mut Handle, image: *const c_void);
    unload_module: cuModuleUnload(module: Handle);
    find_function: cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char);
    set_function_attribute: cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int);
    launch: cuLaunchKernel(function: Handle, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint, block_z: c_uint, shared_bytes: c_uint, stream: Handle, parameters: *mut *mut c_void, extra: *mut *mut c_void);
    begin_capture: cuStreamBeginCapture_v2(stream: Handle, mode: c_uint);
    end_capture: cuStreamEndCapture(stream: Handle, graph: *mut Handle);
    instantiate_graph: cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, flags: u64);
    launch_graph: cuGraphLaunch(executable: Handle, stream: Handle);
    destroy_executable: cuGraphExecDestroy(executable: Handle);
    destroy_graph: cuGraphDestroy(graph: Handle);
    ipc_memory: cuIpcGetMemHandle(handle: *mut IpcHandle, pointer: DevicePointer);
    ipc_open_memory: cuIpcOpenMemHandle_v2(pointer: *mut DevicePointer, handle: IpcHandle, flags: c_uint);
    ipc_close_memory: cuIpcCloseMemHandle(pointer: DevicePointer);
    ipc_event: cuIpcGetEventHandle(handle: *mut IpcHandle, event: Handle);
    ipc_open_event: cuIpcOpenEventHandle(event: *mut Handle, handle: IpcHandle);
    flush_remote_writes: cuFlushGPUDirectRDMAWrites(target: c_uint, scope: c_uint);
}

/// `cuMemGetHandleForAddressRange(handle, pointer, bytes, type, flags)`.
pub(crate) type HandleForRange =
    unsafe extern "C" fn(*mut c_void, DevicePointer, usize, c_uint, u64) -> u32;

/// The NVIDIA driver of this machine.
pub struct Driver {
    functions: Functions,
    /// Since CUDA 11.7.
    pub(crate) handle_for_range: Option<HandleForRange>,
    /// Never unloaded: the driver has threads of its own.
    _library: ManuallyDrop<Library>,
}

impl Driver {
    /// Loads and starts the driver. Errors: there is none, or it is too old, or finds no GPU.
    pub fn load() -> Result<Arc<Self>, CudaError> {
        Self::load_from(LIBRARY)
    }

    /// Loads and starts a driver by the path of its library.
    pub fn load_from(path: impl AsRef<OsStr>) -> Result<Arc<Self>, CudaError> {
        // SAFETY: a driver's initialisers may run on any thread at any time.
        let library = unsafe { Library::new(path.as_ref()) };
        let library = library.map_err(|error| CudaError::NoDriver(why_not(&error)))?;
        let library = ManuallyDrop::new(library);
        let functions = Functions::find(&library)?;
        // SAFETY: this is the function's type in `cuda.h`.
        let range = unsafe { library.get::<HandleForRange>("cuMemGetHandleForAddressRange") };
        let handle_for_range = range.ok().map(|found| *found);
        let driver = Self { functions, handle_for_range, _library: library };
        // SAFETY: it takes no pointers.
        unsafe { driver.init(0) }?;
        Ok(Arc::new(driver))
    }

    /// The CUDA version that the driver supports, as (major, minor).
    pub fn version(&self) -> Result<(u32, u32), CudaError> {
        let mut version = 0;
        // SAFETY: the pointer is valid.
        unsafe { self.driver_version(&mut version) }?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }

    /// How many GPUs this process may use.
    pub fn devices(&self) -> Result<usize, CudaError> {
        let mut count = 0;
        // SAFETY: the pointer is valid.
        unsafe { self.device_count(&mut count) }?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    pub(crate) fn check(&self, call: &'static str, code: u32) -> Result<(), CudaError> {
        if code == 0 { Ok(()) } else { Err(CudaError::of(call, self.named(code))) }
    }

    fn named(&self, number: u32) -> DriverCode {
        let mut name = std::ptr::null();
        // SAFETY: the pointer is valid. Not by `error_name`, which would come back here.
        let found = unsafe { (self.functions.error_name)(number, &mut name) };
        let name = if found == 0 && !name.is_null() {
            // SAFETY: names are static in the driver, which is never unloaded.
            unsafe { CStr::from_ptr(name) }.to_str().unwrap_or("an unreadable name")
        } else {
            "a code without a name"
        };
        DriverCode { number, name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        let error = Driver::load_from("libcuda-that-is-not-there.so").err().unwrap();
        assert!(matches!(error, CudaError::NoDriver(_)), "{error:?}");
        let sentence = error.to_string();
        assert!(sentence.contains("libcuda-that-is-not-there.so"), "{sentence}");
    }
}
