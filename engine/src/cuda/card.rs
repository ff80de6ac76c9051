//! A GPU that can compute: the driver, our kernels compiled for it, and cuBLAS.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use cuda_driver::{Device, Driver, Function, Module, Stream};
use cuda_kernels::{
    CopyBlocks, KernelCache, KernelShape, Launch, Module as KernelModule, Nvrtc,
    SHARED_BYTES_WITHOUT_OPT_IN, Source,
};

use parking_lot::Mutex;

use super::CudaFailure;
use super::cublas::Cublas;

/// What a GPU's computing is made of.
pub struct Card {
    /// The GPU.
    pub device: Arc<Device>,
    /// For products of many rows.
    pub cublas: Arc<Cublas>,
    nvrtc: Nvrtc,
    /// Major and minor.
    capability: (u32, u32),
    shared_bytes_max: usize,
    kernel_cache: Option<KernelCache>,
    /// Those of this process.
    loaded: Mutex<Vec<Arc<Kernels>>>,
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
    /// Opens the GPU with this number. Compiled kernels are kept in a directory, if one is named.
    /// Errors: there is none, or a library is missing: a sentence.
    pub fn open(
        ordinal: u32,
        libraries: &Libraries,
        kernel_cache: Option<&Path>,
    ) -> Result<Self, String> {
        let device = open_device(ordinal, libraries)?;
        let capability = device.compute_capability().map_err(|error| error.to_string())?;
        let version = device.driver().version().map_err(|error| error.to_string())?;
        let nvrtc = Nvrtc::load(libraries.nvrtc.as_deref(), version.0);
        let nvrtc = nvrtc.map_err(|error| error.to_string())?;
        let cublas = Cublas::load(libraries.cublas.as_deref(), version.0)?;
        let shared_bytes_max = device.shared_bytes_max().map_err(|error| error.to_string())?;
        let kernel_cache = kernel_cache.map(|directory| KernelCache::new(directory.to_path_buf()));
        if let Some(Err(error)) = kernel_cache.as_ref().map(KernelCache::check) {
            tracing::warn!(%error, "compiled kernels cannot be kept: each start compiles them again");
        }
        let loaded = Mutex::default();
        Ok(Self { device, cublas, nvrtc, capability, shared_bytes_max, kernel_cache, loaded })
    }

    /// As the numerics id has it: `sm90`.
    pub fn kind(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm{major}{minor}")
    }

    /// Shared memory that a block of threads may have, in bytes.
    pub fn shared_bytes_max(&self) -> usize {
        self.shared_bytes_max
    }

    /// The kernels for a shape, compiled unless they were before. Errors: a sentence.
    pub fn kernels(&self, shape: &KernelShape) -> Result<Arc<Kernels>, String> {
        let mut all = self.loaded.lock();
        if let Some(kernels) = all.iter().find(|kernels| kernels.shape == *shape) {
            return Ok(kernels.clone());
        }
        let kernels = Arc::new(self.load(shape)?);
        all.push(kernels.clone());
        Ok(kernels)
    }

    fn load(&self, shape: &KernelShape) -> Result<Kernels, String> {
        shape.check().map_err(|error| error.to_string())?;
        let (major, minor) = self.capability;
        let architecture =
            self.nvrtc.architecture(major, minor).map_err(|error| error.to_string())?;
        let mut functions = HashMap::new();
        for module in [
            KernelModule::Attention,
            KernelModule::Layer,
            KernelModule::Gemv,
            KernelModule::Sampling,
            KernelModule::Blocks,
        ] {
            let source = module.source(shape);
            let image = match &self.kernel_cache {
                Some(cache) => cache.image(&self.nvrtc, &source, &architecture),
                None => {
                    let compiled = self.nvrtc.compile(&source, &architecture);
                    compiled.map(|compiled| compiled.image)
                }
            };
            let image = image.map_err(|error| in_a_sentence(&error.to_string()))?;
            let loaded = Module::load(&self.device, &image).map_err(|error| error.to_string())?;
            for name in module.kernels() {
                let function = loaded.function(&name).map_err(|error| error.to_string())?;
                let allowed_bytes = AtomicU32::new(SHARED_BYTES_WITHOUT_OPT_IN);
                functions.insert(name, Kernel { function, allowed_bytes });
            }
        }
        Ok(Kernels { shape: *shape, functions })
    }
}

/// What copies blocks between pools, compiled for a GPU on which there is no model. Errors: a sentence.
pub fn copy_kernel(device: &Arc<Device>) -> Result<Function, String> {
    let (major, _) = device.driver().version().map_err(|error| error.to_string())?;
    let nvrtc = Nvrtc::load(None, major).map_err(|error| error.to_string())?;
    let (major, minor) = device.compute_capability().map_err(|error| error.to_string())?;
    let architecture = nvrtc.architecture(major, minor).map_err(|error| error.to_string())?;
    let compiled = nvrtc.compile(&Source::of_copies(), &architecture);
    let compiled = compiled.map_err(|error| in_a_sentence(&error.to_string()))?;
    let module = Module::load(device, &compiled.image).map_err(|error| error.to_string())?;
    module.function(CopyBlocks::KERNEL).map_err(|error| error.to_string())
}

/// The first lines of what a compiler says, as one.
fn in_a_sentence(error: &str) -> String {
    const LINES_MAX: usize = 4;
    let lines: Vec<&str> =
        error.lines().map(str::trim).filter(|line| !line.is_empty()).take(LINES_MAX).collect();
    lines.join(": ")
}

/// Errors: there is no such GPU: a sentence.
pub fn open_device(ordinal: u32, libraries: &Libraries) -> Result<Arc<Device>, String> {
    let driver = match &libraries.driver {
        Some(path) => Driver::load_from(path),
        None => Driver::load(),
    };
    let device = driver.and_then(|driver| Device::open(&driver, ordinal));
    device.map_err(|error| error.to_string())
}

/// Our kernels, loaded.
pub struct Kernels {
    /// What they were compiled for.
    pub shape: KernelShape,
    functions: HashMap<String, Kernel>,
}

struct Kernel {
    function: Function,
    /// Dynamic shared memory that it may have.
    allowed_bytes: AtomicU32,
}

impl Kernels {
    /// What copies blocks between pools.
    pub fn copies(&self) -> Option<Function> {
        Some(self.functions.get(CopyBlocks::KERNEL)?.function.clone())
    }

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
            unsafe { function.launch(stream.handle(), grid, threads, shared_bytes, parameters) }
        })?;
        Ok(())
    }
}
