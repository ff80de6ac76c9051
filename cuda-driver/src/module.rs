//! Kernels that are loaded onto a GPU.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use crate::{CudaError, Device, Handle};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`
const MAX_DYNAMIC_SHARED_BYTES: i32 = 8;

/// Kernels that were compiled together.
pub struct Module {
    device: Arc<Device>,
    handle: Handle,
}

/// One of them.
#[derive(Clone)]
pub struct Function {
    handle: Handle,
    module: Arc<Module>,
}

impl Module {
    /// Loads a compiled image. Errors: it is none for this GPU.
    pub fn load(device: &Arc<Device>, image: &[u8]) -> Result<Arc<Self>, CudaError> {
        let _current = device.enter()?;
        let mut handle = Handle::NULL;
        // The driver reads text to its final 0, and machine code as far as its own header says.
        let image = [image, &[0]].concat();
        // SAFETY: the pointers are valid.
        unsafe { device.driver.load_module(&mut handle, image.as_ptr().cast()) }?;
        Ok(Arc::new(Self { device: device.clone(), handle }))
    }

    /// A kernel by its name. Errors: there is none.
    pub fn function(self: &Arc<Self>, name: &str) -> Result<Function, CudaError> {
        let _current = self.device.enter()?;
        let (mut handle, name) = (Handle::NULL, CString::new(name).unwrap_or_default());
        // SAFETY: the module lives, and the pointers are valid.
        unsafe { self.device.driver.find_function(&mut handle, self.handle, name.as_ptr()) }?;
        Ok(Function { handle, module: self.clone() })
    }
}

impl Function {
    /// Lets it have so much dynamic shared memory. Errors: a block of threads of this GPU cannot have
    /// as much.
    pub fn allow_shared_bytes(&self, bytes: u32) -> Result<(), CudaError> {
        let device = &self.module.device;
        let _current = device.enter()?;
        let (what, bytes) = (MAX_DYNAMIC_SHARED_BYTES, bytes as i32);
        // SAFETY: the function lives with its module.
        unsafe { device.driver.set_function_attribute(self.handle, what, bytes) }
    }

    /// Runs it on a stream (`CUstream`) of its GPU.
    ///
    /// # Safety
    /// `parameters` point to what the kernel takes, of its types; what those point to is there until
    /// it has run, and so is the stream.
    pub unsafe fn launch(
        &self,
        stream: Handle,
        [grid_x, grid_y, grid_z]: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        parameters: &mut [*mut c_void],
    ) -> Result<(), CudaError> {
        let device = &self.module.device;
        let _current = device.enter()?;
        let (parameters, none) = (parameters.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the function lives with its module, and the rest by the caller's promise.
        unsafe {
            device.driver.launch(
                self.handle,
                grid_x,
                grid_y,
                grid_z,
                threads,
                1,
                1,
                shared_bytes,
                stream,
                parameters,
                none,
            )
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _current = self.device.enter();
        // SAFETY: nobody else has it, and what runs of it was waited for. Errors are of no use.
        let _unloaded = unsafe { self.device.driver.unload_module(self.handle) };
    }
}
