//! A GPU as this process uses it.

use std::collections::HashMap;
use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::CudaError;
use crate::driver::{
    Driver, EVENT_BLOCKING_SYNC, EVENT_DISABLE_TIMING, Handle, STREAM_NON_BLOCKING,
};
use crate::pinned::Buffer;

/// Streams, and buffers, that are kept for the next pulls; more are given back to the driver.
const KEPT_MAX: usize = 8;

/// A GPU, with its primary context: the one that everything else in this process uses too.
pub struct Device {
    pub(crate) driver: Arc<Driver>,
    ordinal: u32,
    number: i32,
    context: Handle,
    /// Of streams.
    lowest_priority: i32,
    highest_priority: i32,
    /// Whether this GPU reads the memory of that one directly, once that was found out.
    peers: Mutex<HashMap<i32, bool>>,
    lanes: Mutex<Vec<Lane>>,
    pub(crate) buffers: Mutex<Vec<Buffer>>,
}

/// A stream for copies, and the event that says they are done.
#[derive(Clone, Copy)]
pub struct Lane {
    /// `CUstream`
    pub stream: Handle,
    /// `CUevent`
    pub done: Handle,
}

/// This thread uses a device's context until this is dropped. Not to be held while a task waits.
pub struct Current<'a> {
    driver: &'a Driver,
    stays_on_its_thread: PhantomData<*mut ()>,
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut context = Handle::NULL;
        // SAFETY: the pointer is valid. An error changes nothing for us.
        let _popped = unsafe { self.driver.pop_current(&mut context) };
    }
}

impl Device {
    /// Uses the GPU with this number. Errors: there is none, or it is lost or exclusive to others.
    pub fn open(driver: &Arc<Driver>, ordinal: u32) -> Result<Arc<Self>, CudaError> {
        let devices = driver.devices()?;
        if ordinal as usize >= devices {
            return Err(CudaError::NoDevice { ordinal, devices });
        }
        let (mut number, mut context) = (0, Handle::NULL);
        // SAFETY: the pointers are valid, and the device is one that was counted.
        unsafe {
            driver.device_get(&mut number, ordinal as i32)?;
            driver.primary_retain(&mut context, number)?;
        }
        let mut device = Self {
            driver: driver.clone(),
            ordinal,
            number,
            context,
            lowest_priority: 0,
            highest_priority: 0,
            peers: Mutex::default(),
            lanes: Mutex::default(),
            buffers: Mutex::default(),
        };
        (device.lowest_priority, device.highest_priority) = device.find_priorities()?;
        Ok(Arc::new(device))
    }

    /// The number of the GPU, as `CUDA_VISIBLE_DEVICES` leaves it.
    pub fn ordinal(&self) -> u32 {
        self.ordinal
    }

    /// The driver that it is used by.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Its primary context (`CUcontext`).
    pub fn context(&self) -> Handle {
        self.context
    }

    /// Makes the device's context this thread's.
    pub fn enter(&self) -> Result<Current<'_>, CudaError> {
        // SAFETY: the context lives as long as the device.
        unsafe { self.driver.push_current(self.context) }?;
        Ok(Current { driver: &self.driver, stays_on_its_thread: PhantomData })
    }

    fn find_priorities(&self) -> Result<(i32, i32), CudaError> {
        let _current = self.enter()?;
        let (mut lowest, mut highest) = (0, 0);
        // SAFETY: the pointers are valid.
        unsafe { self.driver.priority_range(&mut lowest, &mut highest) }?;
        Ok((lowest, highest))
    }

    pub(crate) fn highest_priority(&self) -> i32 {
        self.highest_priority
    }

    /// Its compute capability: major and minor.
    pub fn compute_capability(&self) -> Result<(u32, u32), CudaError> {
        const MAJOR: i32 = 75;
        const MINOR: i32 = 76;
        Ok((self.attribute(MAJOR)?, self.attribute(MINOR)?))
    }

    /// Shared memory that a block of threads may have, in bytes, when it asks for it.
    pub fn shared_bytes_max(&self) -> Result<usize, CudaError> {
        const MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: i32 = 97;
        Ok(self.attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize)
    }

    pub(crate) fn attribute(&self, attribute: i32) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: the pointer is valid, and the device exists.
        unsafe { self.driver.attribute(&mut value, attribute, self.number) }?;
        Ok(value.unsigned_abs())
    }

    /// What its maker calls it: "NVIDIA H200".
    pub fn name(&self) -> Result<String, CudaError> {
        let mut name = [0 as c_char; 256];
        let length = name.len() as i32;
        // SAFETY: the pointer is valid for so many bytes, and the device exists.
        unsafe { self.driver.device_name(name.as_mut_ptr(), length, self.number) }?;
        // SAFETY: the driver ends it with a zero within its length.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) };
        Ok(name.to_string_lossy().into_owned())
    }

    /// Its UUID, or that of the instance (MIG) that it is, as other libraries know it too, without
    /// their prefix: `8ac1c3ea-9c2a-11ee-8c90-0242ac120002`.
    pub fn uuid(&self) -> Result<String, CudaError> {
        let mut bytes = [0u8; 16];
        // SAFETY: the pointer is valid, and the device exists.
        unsafe { self.driver.uuid(&mut bytes, self.number) }?;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let part = |from: usize, to: usize| &digits[from..to];
        Ok([part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-"))
    }

    /// Free bytes of its memory, of all processes.
    pub fn free_bytes(&self) -> Result<usize, CudaError> {
        let _current = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are valid.
        unsafe { self.driver.memory_info(&mut free, &mut total) }?;
        Ok(free)
    }

    /// Lets this GPU read the memory of another directly, if it can; asks the driver once. Without,
    /// the driver copies between them by way of the host.
    pub fn reaches(&self, other: &Device) -> Result<bool, CudaError> {
        let mut peers = self.peers.lock();
        if let Some(known) = peers.get(&other.number) {
            return Ok(*known);
        }
        let reaches = match self.enable_peer(other) {
            Ok(reaches) => reaches,
            Err(error) if error.is_already_enabled() => true,
            Err(error @ CudaError::PeerRefused { .. }) => {
                let (from, to) = (other.ordinal, self.ordinal);
                tracing::warn!(%error, from, to, "KV blocks go between GPUs by way of the host");
                false
            }
            Err(error) => return Err(error),
        };
        peers.insert(other.number, reaches);
        Ok(reaches)
    }

    fn enable_peer(&self, other: &Device) -> Result<bool, CudaError> {
        let mut can_access = 0;
        // SAFETY: the pointer is valid, and both devices exist.
        unsafe { self.driver.can_access_peer(&mut can_access, self.number, other.number) }?;
        if can_access == 0 {
            return Ok(false);
        }
        let _current = self.enter()?;
        // SAFETY: both contexts live; the other one's device is not this one.
        unsafe { self.driver.enable_peer(other.context, 0) }?;
        Ok(true)
    }

    /// A stream of the lowest priority with nothing on it.
    pub fn take_lane(&self) -> Result<Lane, CudaError> {
        if let Some(lane) = self.lanes.lock().pop() {
            return Ok(lane);
        }
        let _current = self.enter()?;
        let mut lane = Lane { stream: Handle::NULL, done: Handle::NULL };
        let flags = EVENT_DISABLE_TIMING | EVENT_BLOCKING_SYNC;
        // SAFETY: the pointers are valid.
        unsafe {
            self.driver.create_event(&mut lane.done, flags)?;
            let created = self.driver.create_stream(
                &mut lane.stream,
                STREAM_NON_BLOCKING,
                self.lowest_priority,
            );
            if created.is_err() {
                let _destroyed = self.driver.destroy_event(lane.done);
            }
            created?;
        }
        Ok(lane)
    }

    /// Keeps a stream on which nothing is under way.
    pub fn put_lane(&self, lane: Lane) {
        let mut lanes = self.lanes.lock();
        if lanes.len() < KEPT_MAX {
            return lanes.push(lane);
        }
        drop(lanes);
        let _current = self.enter();
        self.destroy_lane(lane);
    }

    /// Errors are of no use here: a lost device has lost its streams.
    fn destroy_lane(&self, lane: Lane) {
        // SAFETY: nobody else has this stream and event, and nothing is under way on them.
        let _destroyed = unsafe {
            (self.driver.destroy_stream(lane.stream), self.driver.destroy_event(lane.done))
        };
    }

    pub(crate) fn keep_buffer(&self, buffer: Buffer) {
        let mut buffers = self.buffers.lock();
        if buffers.len() < KEPT_MAX {
            return buffers.push(buffer);
        }
        drop(buffers);
        self.free_buffer(buffer);
    }

    pub(crate) fn free_buffer(&self, buffer: Buffer) {
        let _current = self.enter();
        // SAFETY: nobody else has this buffer, and no copy from or to it is under way.
        let _freed = unsafe { self.driver.free_host(buffer.start.cast()) };
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        {
            let _current = self.enter();
            for lane in std::mem::take(&mut *self.lanes.lock()) {
                self.destroy_lane(lane);
            }
            for buffer in std::mem::take(&mut *self.buffers.lock()) {
                self.free_buffer(buffer);
            }
        }
        // SAFETY: what this process made in the context through this device is gone: memory, copies
        // and buffers hold the device.
        let _released = unsafe { self.driver.primary_release(self.number) };
    }
}

impl PartialEq for Device {
    /// Whether it is the same GPU of the same driver.
    fn eq(&self, other: &Self) -> bool {
        self.context == other.context
    }
}
