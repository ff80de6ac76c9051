//! A GPU that can compute: the driver, our kernels compiled for it, and cuBLAS.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cuda_driver::{Device, Driver, Function, Module, Stream};
use cuda_kernels::{
    KernelCache, KernelShape, Launch, Module as KernelModule, Nvrtc, SHARED_BYTES_WITHOUT_OPT_IN,
};

use super::CudaFailure;
use super::cublas::Cublas;

/// What a GPU's computing is made of.
pub struct Card {
    /// The GPU.
    pub device: Arc<Device>,
    /// For products of many rows.
    pub cublas: Arc<Cublas>,
    nvrtc: Nvrtc,
    /// As "9.0".
    capability: (u32, u32),
}

/// Where to look for NVIDIA's libraries; the system's loader does where nothing is said.
#[derive(Clone, Debug, Default)]
pub struct Libraries {
    /// The driver, `libcuda.so.1`.
    pub driver: Option<PathBuf>,
    /// The run-time compiler, `libnvrtc.so.13`.
    pub nvrtc: Option<PathBuf>,
    /// `libcublas.so.13`.
    pub cublas: Option<PathBuf>,
}

impl Card {
    /// Opens the GPU with this number. Errors: there is none, or a library is missing: a sentence.
    pub fn open(ordinal: u32, libraries: &Libraries) -> Result<Self, String> {
        let driver = match &libraries.driver {
            Some(path) => Driver::load_from(path),
            None => Driver::load(),
        };
        let driver = driver.map_err(|error| error.to_string())?;
        let device = Device::open(&driver, ordinal).map_err(|error| error.to_string())?;
        let capability = device.compute_capability().map_err(|error| error.to_string())?;
        let nvrtc = Nvrtc::load(libraries.nvrtc.as_deref()).map_err(|error| error.to_string())?;
        let cublas = Cublas::load(libraries.cublas.as_deref())?;
        Ok(Self { device, cublas, nvrtc, capability })
    }

    /// As the numerics id has it: `sm90`.
    pub fn kind(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm{major}{minor}")
    }

    /// Compiles the kernels for a shape, unless a cache in `directory` has them, and loads them.
    /// Errors: a sentence.
    pub fn kernels(
        &self,
        shape: &KernelShape,
        directory: Option<&Path>,
    ) -> Result<Kernels, String> {
        let (major, minor) = self.capability;
        let architecture =
            self.nvrtc.architecture(major, minor).map_err(|error| error.to_string())?;
        let cache = directory.map(|directory| KernelCache::new(directory.to_path_buf()));
        let mut functions = HashMap::new();
        for module in [
            KernelModule::Attention,
            KernelModule::Layer,
            KernelModule::Gemv,
            KernelModule::Sampling,
        ] {
            let source = module.source(shape);
            let image = match &cache {
                Some(cache) => cache.image(&self.nvrtc, &source, &architecture),
                None => {
                    let compiled = self.nvrtc.compile(&source, &architecture);
                    compiled.map(|compiled| compiled.image)
                }
            };
            let image = image.map_err(|error| error.to_string())?;
            let loaded = Module::load(&self.device, &image).map_err(|error| error.to_string())?;
            for name in module.kernels() {
                let function = loaded.function(&name).map_err(|error| error.to_string())?;
                let allowed_bytes = AtomicU32::new(SHARED_BYTES_WITHOUT_OPT_IN);
                functions.insert(name, Kernel { function, allowed_bytes });
            }
        }
        Ok(Kernels { functions })
    }
}

/// Our kernels, loaded.
pub struct Kernels {
    functions: HashMap<String, Kernel>,
}

struct Kernel {
    function: Function,
    /// Dynamic shared memory that it may have.
    allowed_bytes: AtomicU32,
}

impl Kernels {
    /// Runs one.
    ///
    /// # Safety
    /// What the launch's addresses point to is as the kernel wants it, until the stream has run.
    pub unsafe fn launch(&self, stream: &Stream, launch: &Launch) -> Result<(), CudaFailure> {
        let kernel = self.functions.get(&launch.kernel);
        let kernel = kernel.ok_or_else(|| CudaFailure::NoKernel(launch.kernel.clone()))?;
        let Kernel { function, allowed_bytes } = kernel;
        if launch.shared_bytes > allowed_bytes.load(Ordering::Relaxed) {
            function.allow_shared_bytes(launch.shared_bytes)?;
            allowed_bytes.store(launch.shared_bytes, Ordering::Relaxed);
        }
        launch.with_parameters(|parameters| {
            let Launch { grid, threads, shared_bytes, .. } = *launch;
            // SAFETY: a launch has the parameters of its kernel; the rest by the caller's promise.
            unsafe { stream.launch(function, grid, threads, shared_bytes, parameters) }
        })?;
        Ok(())
    }
}
