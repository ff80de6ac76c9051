//! The part of libucp that is used, found at run time.
//!
//! Bindings of our own: a program that is linked with UCX does not start without it, and a handful
//! of functions needs no generator. UCX reads of a structure only what its field mask names, and
//! adds fields at the end, so that the structures of 1.13 hold for all that came since (tried with
//! 1.13 and 1.22; `layout.rs` compares them with a compiler's view of the headers).
//!
//! <https://openucx.readthedocs.io/en/master/api.html>

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;

use cuda_driver::why_not;
use libloading::Library;

/// By the name that packages give it on every distribution.
const LIBRARY: &str = "libucp.so.0";

/// The version whose interface this is; what is older is refused.
pub const API: (c_uint, c_uint) = (1, 13);

/// `ucs_status_t`, an enumeration packed into a byte; errors are below zero.
pub type Status = i8;

/// Done.
pub const OK: Status = 0;
/// Not done yet.
pub const IN_PROGRESS: Status = 1;
/// There is something to be done first.
pub const BUSY: Status = -15;

/// Fields and values of the structures below, by UCX's names.
pub mod flag {
    /// `UCP_PARAM_FIELD_FEATURES`.
    pub const PARAM_FEATURES: u64 = 1;
    /// `UCP_FEATURE_RMA`.
    pub const FEATURE_RMA: u64 = 1 << 1;
    /// `UCP_FEATURE_WAKEUP`.
    pub const FEATURE_WAKEUP: u64 = 1 << 4;
    /// `UCP_WORKER_PARAM_FIELD_THREAD_MODE`.
    pub const WORKER_THREAD_MODE: u64 = 1;
    /// `UCS_THREAD_MODE_SINGLE`.
    pub const THREAD_SINGLE: u32 = 0;
    /// `UCP_MEM_MAP_PARAM_FIELD_ADDRESS`.
    pub const MEMORY_ADDRESS: u64 = 1;
    /// `UCP_MEM_MAP_PARAM_FIELD_LENGTH`.
    pub const MEMORY_LENGTH: u64 = 1 << 1;
    /// `UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE`.
    pub const MEMORY_TYPE: u64 = 1 << 4;
    /// `UCS_MEMORY_TYPE_HOST`.
    pub const MEMORY_HOST: u32 = 0;
    /// `UCS_MEMORY_TYPE_CUDA`.
    pub const MEMORY_CUDA: u32 = 1;
    /// `UCP_ATTR_FIELD_MEMORY_TYPES`.
    pub const CONTEXT_MEMORY_TYPES: u64 = 1 << 2;
    /// `UCP_EP_PARAM_FIELD_REMOTE_ADDRESS`.
    pub const ENDPOINT_ADDRESS: u64 = 1;
    /// `UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE`.
    pub const ENDPOINT_ERROR_MODE: u64 = 1 << 1;
    /// `UCP_EP_PARAM_FIELD_ERR_HANDLER`.
    pub const ENDPOINT_ERROR_HANDLER: u64 = 1 << 2;
    /// `UCP_ERR_HANDLING_MODE_PEER`.
    pub const ERROR_MODE_PEER: u32 = 1;
    /// `UCP_OP_ATTR_FIELD_FLAGS`.
    pub const OPERATION_FLAGS: u32 = 1 << 4;
    /// `UCP_OP_ATTR_FIELD_MEMORY_TYPE`.
    pub const OPERATION_MEMORY_TYPE: u32 = 1 << 6;
    /// `UCP_EP_CLOSE_FLAG_FORCE`.
    pub const CLOSE_FORCE: u32 = 1;
}

/// Something of UCX's that only it looks into.
#[repr(C)]
pub struct Opaque {
    _private: [u8; 0],
}

/// A context, worker, endpoint, key, memory or request.
pub type Handle = *mut Opaque;

/// `ucp_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Params {
    pub field_mask: u64,
    pub features: u64,
    pub request_size: usize,
    pub request_init: Option<unsafe extern "C" fn(*mut c_void)>,
    pub request_cleanup: Option<unsafe extern "C" fn(*mut c_void)>,
    pub tag_sender_mask: u64,
    pub mt_workers_shared: c_int,
    pub estimated_num_eps: usize,
    pub estimated_num_ppn: usize,
    pub name: *const c_char,
}

/// `ucp_context_attr_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ContextAttributes {
    pub field_mask: u64,
    pub request_size: usize,
    pub thread_mode: u32,
    pub memory_types: u64,
    pub name: [c_char; 32],
    pub device_counter_size: usize,
}

/// `ucp_worker_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct WorkerParams {
    pub field_mask: u64,
    pub thread_mode: u32,
    pub cpu_mask: [u64; 16],
    pub events: c_uint,
    pub user_data: *mut c_void,
    pub event_fd: c_int,
    pub flags: u64,
    pub name: *const c_char,
    pub am_alignment: usize,
    pub client_id: u64,
}

/// `ucp_mem_map_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct MemoryParams {
    pub field_mask: u64,
    pub address: *mut c_void,
    pub length: usize,
    pub flags: c_uint,
    pub prot: c_uint,
    pub memory_type: u32,
}

/// `ucp_err_handler_t`: called with its argument when an endpoint fails.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ErrorHandler {
    pub callback: Option<unsafe extern "C" fn(*mut c_void, Handle, Status)>,
    pub argument: *mut c_void,
}

/// `ucs_sock_addr_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SocketAddress {
    pub address: *const c_void,
    pub length: u32,
}

/// `ucp_ep_params_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EndpointParams {
    pub field_mask: u64,
    pub address: *const c_void,
    pub err_mode: u32,
    pub err_handler: ErrorHandler,
    pub user_data: *mut c_void,
    pub flags: c_uint,
    pub sockaddr: SocketAddress,
    pub conn_request: Handle,
    pub name: *const c_char,
    pub local_sockaddr: SocketAddress,
}

/// `ucp_request_param_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RequestParams {
    pub op_attr_mask: u32,
    pub flags: u32,
    pub request: *mut c_void,
    pub callback: *const c_void,
    pub datatype: u64,
    pub user_data: *mut c_void,
    pub reply_buffer: *mut c_void,
    pub memory_type: u32,
    pub recv_info: *mut c_void,
    pub memh: Handle,
}

/// Structures of which UCX reads what their masks name.
pub trait Masked: Copy {
    /// One that names nothing.
    fn empty() -> Self {
        // SAFETY: numbers, null pointers and absent functions are all zero bytes; implemented for
        // structures of nothing else.
        unsafe { std::mem::zeroed() }
    }
}

impl Masked for Params {}
impl Masked for ContextAttributes {}
impl Masked for WorkerParams {}
impl Masked for MemoryParams {}
impl Masked for EndpointParams {}
impl Masked for RequestParams {}

/// Declares the functions as fields of one structure, and how they are found.
macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// libucp's functions, which live as long as the process: UCX is never unloaded.
        #[derive(Clone, Copy)]
        pub struct Functions {
            $(pub $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: these are the functions' types in UCX's headers since `API`.
                Ok(unsafe { Self { $($field: *library.get($symbol)?,)* } })
            }
        }
    };
}

functions! {
    version = "ucp_get_version": fn(*mut c_uint, *mut c_uint, *mut c_uint);
    read_config = "ucp_config_read": fn(*const c_char, *const c_char, *mut Handle) -> Status;
    init = "ucp_init_version":
        fn(c_uint, c_uint, *const Params, Handle, *mut Handle) -> Status;
    query = "ucp_context_query": fn(Handle, *mut ContextAttributes) -> Status;
    create_worker = "ucp_worker_create": fn(Handle, *const WorkerParams, *mut Handle) -> Status;
    worker_address = "ucp_worker_get_address": fn(Handle, *mut *mut u8, *mut usize) -> Status;
    worker_fd = "ucp_worker_get_efd": fn(Handle, *mut c_int) -> Status;
    arm = "ucp_worker_arm": fn(Handle) -> Status;
    progress = "ucp_worker_progress": fn(Handle) -> c_uint;
    map = "ucp_mem_map": fn(Handle, *const MemoryParams, *mut Handle) -> Status;
    pack_key = "ucp_rkey_pack": fn(Handle, Handle, *mut *mut u8, *mut usize) -> Status;
    unpack_key = "ucp_ep_rkey_unpack": fn(Handle, *const u8, *mut Handle) -> Status;
    destroy_key = "ucp_rkey_destroy": fn(Handle);
    connect = "ucp_ep_create": fn(Handle, *const EndpointParams, *mut Handle) -> Status;
    close = "ucp_ep_close_nbx": fn(Handle, *const RequestParams) -> Handle;
    get = "ucp_get_nbx":
        fn(Handle, *mut u8, usize, u64, Handle, *const RequestParams) -> Handle;
    check = "ucp_request_check_status": fn(Handle) -> Status;
    free = "ucp_request_free": fn(Handle);
}

/// Of a library: major, minor, release.
pub type Version = (c_uint, c_uint, c_uint);

/// Loads libucp. Errors: a sentence.
pub fn load() -> Result<(Functions, Version), String> {
    // SAFETY: the library is UCX's by its name; its initialisation may do what it likes in this
    // process, which exists for that.
    let library = unsafe { Library::new(LIBRARY) };
    let library = library.map_err(|error| {
        let why = why_not(&error);
        format!(
            "{LIBRARY} cannot be loaded ({why}); install UCX 1.13 or newer, for example \
            Debian's libucx0, or add its directory to LD_LIBRARY_PATH"
        )
    })?;
    let missing = |error| format!("{LIBRARY} is not UCX 1.13 or newer: {error}");
    let functions = Functions::find(&library).map_err(missing)?;
    std::mem::forget(library);
    let (mut major, mut minor, mut release) = (0, 0, 0);
    // SAFETY: the pointers are valid.
    unsafe { (functions.version)(&mut major, &mut minor, &mut release) };
    if major != API.0 || minor < API.1 {
        let (least_major, least_minor) = API;
        return Err(format!(
            "{LIBRARY} is UCX {major}.{minor}.{release}; {least_major}.{least_minor} or newer is needed"
        ));
    }
    Ok((functions, (major, minor, release)))
}

/// What a call of UCX's that begins something returned: nothing to wait for, a request, or an error.
pub fn begun(returned: Handle) -> Result<Option<NonNull<Opaque>>, Status> {
    // Errors are the last hundred addresses.
    match returned as isize {
        0 => Ok(None),
        status @ -100..0 => Err(status as Status),
        _ => Ok(NonNull::new(returned)),
    }
}

/// A status in words, as far as it says something about a peer.
pub fn describe(status: Status) -> String {
    let known = match status {
        -1 => "no message",
        -3 => "input or output failed",
        -4 => "no memory",
        -5 => "a parameter is invalid",
        -6 => "it cannot be reached",
        -7 => "an address is invalid",
        -14 => "there is no device",
        -16 => "cancelled",
        -20 => "timed out",
        -22 => "not supported",
        -23 => "rejected",
        -24 => "not connected",
        -25 => "the connection was reset",
        -80 => "its endpoint does not answer",
        _ => return format!("UCX status {status}"),
    };
    format!("{known} (UCX status {status})")
}
