//! A pool that others read by UCX, and reads of others' pools into it. For one thread, which polls:
//! nothing here waits.

use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{NonNull, null, null_mut};
use std::rc::Rc;

use bytes::{Buf, BufMut};

use super::bindings::{
    self, API, BUSY, ContextAttributes, EndpointParams, ErrorHandler, Functions, Handle,
    IN_PROGRESS, Masked, MemoryParams, OK, Opaque, Params, RequestParams, Status, Version,
    WorkerParams, begun, describe, flag,
};
use super::frames::{Copy, KEYS_BYTES_MAX};
use super::memory::{NoMemory, PoolMemory};
use super::process::{FOR_GPUS_BY_NETWORK, TRANSPORTS};

/// Since this version, and not before, UCX reads GPUs' memory as such where it has to copy it.
const FOR_GPUS: Version = (1, 16, 0);

/// Memory that UCX has registered. It lives as long as the process: UCX gives nothing back, it ends.
pub struct Pool {
    ucp: Functions,
    worker: Handle,
    base: *mut u8,
    memory: PoolMemory,
    keys: Vec<u8>,
}

/// Another process's pool.
pub struct Peer {
    endpoint: Handle,
    key: Handle,
    /// Where its pool begins, in its own address space.
    base: u64,
    bytes: u64,
    /// Set by UCX, which keeps its address, when the endpoint fails.
    error: Rc<Cell<Status>>,
}

/// A read under way.
pub struct Get(NonNull<Opaque>);

/// An endpoint that is being closed.
pub struct Closing {
    peer: Peer,
    request: Option<NonNull<Opaque>>,
}

impl Pool {
    /// Registers memory. Errors: a sentence.
    pub fn register(ucp: Functions, mut memory: PoolMemory) -> Result<Self, NoMemory> {
        let (base, bytes) = (memory.start(), memory.bytes());
        let context = init(&ucp).map_err(for_now)?;
        if memory.is_on_gpu() && !knows_gpus(&ucp, context).map_err(for_now)? {
            return Err(for_good(
                "UCX does not know this GPU's memory: it needs its module for CUDA (libuct_cuda, which \
                 needs libnvidia-ml.so.1), and UCX_TLS, if set, has to name cuda_copy"
                    .into(),
            ));
        }
        let worker = create_worker(&ucp, context).map_err(for_now)?;
        let params = MemoryParams {
            field_mask: flag::MEMORY_ADDRESS | flag::MEMORY_LENGTH | flag::MEMORY_TYPE,
            address: base.cast(),
            length: bytes as usize,
            memory_type: memory_type(&memory),
            ..MemoryParams::empty()
        };
        let mut registered = null_mut();
        // SAFETY: the context is UCX's, the mapping outlives the registration.
        let status = unsafe { (ucp.map)(context, &params, &mut registered) };
        ok(status, "cannot register the KV pool's memory").map_err(for_now)?;
        let mut key = (null_mut(), 0);
        // SAFETY: both handles are UCX's, the pointers valid.
        let status = unsafe { (ucp.pack_key)(context, registered, &mut key.0, &mut key.1) };
        ok(status, "cannot make a key to the KV pool").map_err(for_now)?;
        let mut address = (null_mut(), 0);
        // SAFETY: the worker is UCX's, the pointers valid.
        let status = unsafe { (ucp.worker_address)(worker, &mut address.0, &mut address.1) };
        ok(status, "has no address").map_err(for_now)?;
        // SAFETY: UCX says how long what it allocated is, and nobody frees it.
        let (key, address) = unsafe {
            (
                std::slice::from_raw_parts(key.0, key.1),
                std::slice::from_raw_parts(address.0, address.1),
            )
        };
        if memory.is_on_gpu() && is_left_to_us() && !has_devices_key(key) {
            return Err(for_good(
                "no network device of UCX has registered this GPU's memory: it needs an RDMA device \
                 and its module for that (libuct_ib), or UCX_TLS, which then says by what blocks move"
                    .into(),
            ));
        }
        let keys = encode_keys(base as u64, bytes, address, key);
        if keys.len() > KEYS_BYTES_MAX {
            return Err(for_good(format!(
                "this host has too many network devices for UCX's address of it ({} bytes, at most \
                 {KEYS_BYTES_MAX}); name those to use in UCX_NET_DEVICES",
                keys.len()
            )));
        }
        Ok(Self { ucp, worker, base, memory, keys })
    }

    /// How others reach it.
    pub fn keys(&self) -> &[u8] {
        &self.keys
    }

    /// Readable when there is something to progress, if `arm` said so before.
    pub fn event_fd(&self) -> Result<BorrowedFd<'static>, String> {
        let mut fd = -1;
        // SAFETY: the worker is UCX's, the pointer valid.
        let status = unsafe { (self.ucp.worker_fd)(self.worker, &mut fd) };
        ok(status, "cannot be waited for")?;
        // SAFETY: the worker keeps it open, and is never destroyed.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// Moves what can be moved. Returns whether anything was.
    pub fn progress(&self) -> bool {
        // SAFETY: the worker is UCX's, and this its only thread (`Pool` is not `Send`).
        unsafe { (self.ucp.progress)(self.worker) != 0 }
    }

    /// From now on the file descriptor tells what happens. Returns false where there is something to
    /// progress first.
    pub fn arm(&self) -> Result<bool, String> {
        // SAFETY: as above.
        match unsafe { (self.ucp.arm)(self.worker) } {
            BUSY => Ok(false),
            status => ok(status, "cannot be waited for").map(|()| true),
        }
    }

    /// An endpoint to another pool. That nobody answers there, or that its key is none, shows later.
    pub fn connect(&self, keys: &[u8]) -> Result<Peer, String> {
        let keys = Keys::decode(keys).ok_or("the keys to its pool cannot be understood")?;
        let error = Rc::new(Cell::new(OK));
        let params = EndpointParams {
            field_mask: flag::ENDPOINT_ADDRESS
                | flag::ENDPOINT_ERROR_MODE
                | flag::ENDPOINT_ERROR_HANDLER,
            address: keys.address.as_ptr().cast(),
            err_mode: flag::ERROR_MODE_PEER,
            err_handler: ErrorHandler {
                callback: Some(note_error),
                argument: Rc::as_ptr(&error).cast_mut().cast(),
            },
            ..EndpointParams::empty()
        };
        let mut endpoint = null_mut();
        // SAFETY: the address is as UCX made it, or this process may end; the argument outlives the
        // endpoint, because `Peer` and `Closing` keep it.
        let status = unsafe { (self.ucp.connect)(self.worker, &params, &mut endpoint) };
        ok(status, "cannot connect")?;
        let mut peer =
            Peer { endpoint, key: null_mut(), base: keys.base, bytes: keys.bytes, error };
        // SAFETY: the endpoint is UCX's, the key as UCX made it, as above.
        let status = unsafe { (self.ucp.unpack_key)(endpoint, keys.key.as_ptr(), &mut peer.key) };
        // As an endpoint that failed, it is closed like all others.
        peer.error.set(status);
        Ok(peer)
    }

    /// Begins to read. Returns nothing where all is there already. Errors: a sentence.
    pub fn get(&self, peer: &Peer, copy: Copy) -> Result<Option<Get>, String> {
        if let Some(status) = peer.error() {
            return Err(describe(status));
        }
        let fits = |start: u64, bytes: u64| {
            start.checked_add(copy.bytes).is_some_and(|behind| behind <= bytes)
        };
        if !fits(copy.from, peer.bytes) || !fits(copy.to, self.memory.bytes()) {
            return Err("a pool ends before the blocks that are wanted".into());
        }
        let params = RequestParams {
            op_attr_mask: flag::OPERATION_MEMORY_TYPE,
            memory_type: memory_type(&self.memory),
            ..RequestParams::empty()
        };
        // SAFETY: the endpoint and key are UCX's and belong together; the memory is registered and
        // never unmapped, and the place is in it; that nobody else uses it is the worker's promise.
        let request = unsafe {
            let to = self.base.wrapping_add(copy.to as usize);
            let from = peer.base.wrapping_add(copy.from);
            (self.ucp.get)(peer.endpoint, to, copy.bytes as usize, from, peer.key, &params)
        };
        begun(request).map(|request| request.map(Get)).map_err(describe)
    }

    /// How a read ended, if it has.
    pub fn ended(&self, get: &Get) -> Option<Result<(), Status>> {
        let status = self.ended_request(get.0)?;
        Some(if status == OK { Ok(()) } else { Err(status) })
    }

    /// What reads that have ended brought is there for everybody. Errors: a sentence.
    pub fn settle(&self) -> Result<(), String> {
        self.memory.settle()
    }

    /// Ends all reads from a peer, and forgets it. Until `is_closed` they may still write.
    pub fn close(&self, peer: Peer) -> Closing {
        let params = RequestParams {
            op_attr_mask: flag::OPERATION_FLAGS,
            flags: flag::CLOSE_FORCE,
            ..RequestParams::empty()
        };
        // SAFETY: the endpoint is UCX's, and is not used any more but through `Closing`.
        let request = unsafe { (self.ucp.close)(peer.endpoint, &params) };
        // What cannot even begin to be closed has nothing to wait for.
        Closing { peer, request: begun(request).unwrap_or(None) }
    }

    /// Whether a peer is gone, after which `forget` it.
    pub fn is_closed(&self, closing: &Closing) -> bool {
        closing.request.is_none_or(|request| self.ended_request(request).is_some())
    }

    /// Lets go of what belongs to a peer that is closed.
    pub fn forget(&self, closing: Closing) {
        if !closing.peer.key.is_null() {
            // SAFETY: the key is UCX's, and nothing reads by it any more.
            unsafe { (self.ucp.destroy_key)(closing.peer.key) };
        }
    }

    /// The end of a request, which is then UCX's again: to be asked for until there is one.
    fn ended_request(&self, request: NonNull<Opaque>) -> Option<Status> {
        // SAFETY: the request is UCX's, and was not freed: callers drop it once it has ended.
        let status = unsafe { (self.ucp.check)(request.as_ptr()) };
        if status == IN_PROGRESS {
            return None;
        }
        // SAFETY: as above.
        unsafe { (self.ucp.free)(request.as_ptr()) };
        Some(status)
    }
}

impl Peer {
    /// Why the endpoint is of no use any more, if so.
    pub fn error(&self) -> Option<Status> {
        Some(self.error.get()).filter(|status| *status != OK)
    }
}

/// # Safety
/// UCX calls this from `progress`, with the argument that it was given.
unsafe extern "C" fn note_error(argument: *mut c_void, _endpoint: Handle, status: Status) {
    // SAFETY: the argument is a peer's cell, which outlives its endpoint; one thread uses both.
    unsafe { (*argument.cast::<Cell<Status>>()).set(status) };
}

fn init(ucp: &Functions) -> Result<Handle, String> {
    let (mut config, mut context) = (null_mut(), null_mut());
    // SAFETY: null means UCX's own prefix and file; the pointer is valid.
    let status = unsafe { (ucp.read_config)(null(), null(), &mut config) };
    ok(status, "cannot read its settings from the environment")?;
    let params = Params {
        field_mask: flag::PARAM_FEATURES,
        features: flag::FEATURE_RMA | flag::FEATURE_WAKEUP,
        ..Params::empty()
    };
    // SAFETY: the structure is that of this version, the handles are UCX's.
    let status = unsafe { (ucp.init)(API.0, API.1, &params, config, &mut context) };
    ok(status, "cannot begin; UCX_TLS and UCX_NET_DEVICES must name what this host has")?;
    Ok(context)
}

/// Whether UCX can tell GPUs' memory from the host's.
fn knows_gpus(ucp: &Functions, context: Handle) -> Result<bool, String> {
    let mut attributes =
        ContextAttributes { field_mask: flag::CONTEXT_MEMORY_TYPES, ..ContextAttributes::empty() };
    // SAFETY: the context is UCX's, and the pointer valid.
    let status = unsafe { (ucp.query)(context, &mut attributes) };
    ok(status, "does not say which memory it knows")?;
    Ok(attributes.memory_types & (1 << flag::MEMORY_CUDA) != 0)
}

/// Another try is in vain.
fn for_good(reason: String) -> NoMemory {
    (true, reason)
}

fn for_now(reason: String) -> NoMemory {
    (false, reason)
}

/// Whether nobody but us has said by which transports UCX is to move blocks of GPUs.
fn is_left_to_us() -> bool {
    std::env::var(TRANSPORTS).is_ok_and(|transports| transports == FOR_GPUS_BY_NETWORK)
}

/// Whether a key to memory of a GPU, packed by UCX (since 1.16 at least, `ucp_rkey_pack`), has that of
/// a network device: behind a mask of memory domains (8 bytes) and the type of the memory (1) come, for
/// each domain in the mask, the length of its key (1 byte) and the key, which is empty for those that
/// only copy. Where the key is otherwise, who knows.
fn has_devices_key(mut key: &[u8]) -> bool {
    let (Ok(domains), Ok(_type)) = (key.try_get_u64_le(), key.try_get_u8()) else { return true };
    (0..domains.count_ones()).any(|_| key.try_get_u8().map_or(true, |length| length > 0))
}

fn memory_type(memory: &PoolMemory) -> u32 {
    if memory.is_on_gpu() { flag::MEMORY_CUDA } else { flag::MEMORY_HOST }
}

fn create_worker(ucp: &Functions, context: Handle) -> Result<Handle, String> {
    let params = WorkerParams {
        field_mask: flag::WORKER_THREAD_MODE,
        thread_mode: flag::THREAD_SINGLE,
        ..WorkerParams::empty()
    };
    let mut worker = null_mut();
    // SAFETY: the context is UCX's, the pointers valid.
    let status = unsafe { (ucp.create_worker)(context, &params, &mut worker) };
    ok(status, "cannot open its network devices")?;
    Ok(worker)
}

fn ok(status: Status, what: &str) -> Result<(), String> {
    if status == OK { Ok(()) } else { Err(format!("UCX {what}: {}", describe(status))) }
}

/// How a pool is reached, as it travels: where it begins and how long it is (8 bytes each), the
/// length of UCX's address (4 bytes), the address, and the key.
struct Keys<'a> {
    base: u64,
    bytes: u64,
    address: &'a [u8],
    key: &'a [u8],
}

impl<'a> Keys<'a> {
    fn decode(mut rest: &'a [u8]) -> Option<Self> {
        let (base, bytes) = (rest.try_get_u64_le().ok()?, rest.try_get_u64_le().ok()?);
        let length = rest.try_get_u32_le().ok()? as usize;
        let (address, key) = rest.split_at_checked(length)?;
        (!address.is_empty() && !key.is_empty()).then_some(Self { base, bytes, address, key })
    }
}

fn encode_keys(base: u64, bytes: u64, address: &[u8], key: &[u8]) -> Vec<u8> {
    let mut keys = Vec::with_capacity(20 + address.len() + key.len());
    keys.put_u64_le(base);
    keys.put_u64_le(bytes);
    keys.put_u32_le(address.len() as u32);
    keys.put_slice(address);
    keys.put_slice(key);
    keys
}

/// Loads UCX, and registers memory with it. Errors: whether another try is in vain, and a sentence.
pub fn open(memory: PoolMemory) -> Result<Pool, NoMemory> {
    let (ucp, version) = bindings::load().map_err(|reason| match memory.is_on_gpu() {
        true => for_good(format!("{reason} (for GPUs: 1.16 or newer, built with CUDA and verbs)")),
        false => for_good(reason),
    })?;
    tracing::debug!(?version, "loaded UCX");
    if memory.is_on_gpu() && version < FOR_GPUS {
        let ((major, minor, _), (least_major, least_minor, _)) = (version, FOR_GPUS);
        return Err((
            true,
            format!(
                "UCX {major}.{minor} copies no KV blocks of GPUs; {least_major}.{least_minor} or \
                 newer is needed"
            ),
        ));
    }
    Pool::register(ucp, memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_whether_a_network_device_has_registered_the_memory() {
        let check = |domains: u64, rest: &[u8], expected: bool| {
            let key = [&domains.to_le_bytes()[..], &[1], rest].concat();
            assert_eq!(has_devices_key(&key), expected, "{domains:b} {rest:?}");
        };
        // As UCX 1.22 packs it where nothing but cuda_copy has the memory.
        check(0b10, &[0, 0, 0, 0, 15, 1, 0, 15, 255], false);
        check(0, &[], false);
        check(0b110, &[0, 4, 1, 2, 3, 4], true);
        check(0b1, &[9, 1, 2, 3, 4, 5, 6, 7, 8, 9], true);
        check(0b11, &[0], true);
        assert!(has_devices_key(&[1, 2]));
    }
}
