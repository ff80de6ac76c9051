//! Builds and runs kernels as programs of the CPU.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use cuda_kernels::{Argument, Dtype, KernelShape, Launch, Module, Source};
use half::{bf16, f16};

/// A model of no particular family; tests change what they are about.
pub const SHAPE: KernelShape = KernelShape {
    head_dim: 64,
    heads: 4,
    kv_heads: 2,
    block_size: 16,
    kv: Dtype::F32,
    activations: Dtype::F32,
    weights: Dtype::F32,
    neighbours: false,
    shared_bytes_max: 99 << 10,
};

/// With what a program is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// Nothing: fast.
    Nothing,
    /// Accesses outside of buffers and shared memory, misaligned vectors, undefined arithmetic.
    Addresses,
    /// Accesses of two threads that no barrier orders.
    Threads,
}

/// Memory of the card, and what runs on it one after the other.
#[derive(Default)]
pub struct Work {
    buffers: Vec<Vec<u8>>,
    pub launches: Vec<Launch>,
}

/// What lies in memory afterwards.
pub struct Memory(Vec<Vec<u8>>);

pub struct Program(PathBuf);

/// A buffer's number, from 1 on, is in the upper bits of its address.
const BUFFER_SHIFT: u32 = 40;

impl Work {
    pub fn bytes(&mut self, bytes: Vec<u8>) -> u64 {
        self.buffers.push(bytes);
        (self.buffers.len() as u64) << BUFFER_SHIFT
    }

    /// Memory that nobody has written to.
    pub fn room(&mut self, bytes: usize) -> u64 {
        self.bytes(vec![0xff; bytes])
    }

    pub fn floats(&mut self, numbers: &[f32]) -> u64 {
        self.bytes(numbers.iter().flat_map(|number| number.to_ne_bytes()).collect())
    }

    pub fn integers(&mut self, numbers: &[u32]) -> u64 {
        self.bytes(numbers.iter().flat_map(|number| number.to_ne_bytes()).collect())
    }

    /// Numbers as `dtype`.
    pub fn numbers(&mut self, numbers: &[f32], dtype: Dtype) -> u64 {
        self.bytes(stored(numbers, dtype))
    }
}

impl Memory {
    pub fn bytes(&self, address: u64) -> &[u8] {
        &self.0[(address >> BUFFER_SHIFT) as usize - 1]
    }

    pub fn integers(&self, address: u64) -> Vec<u32> {
        self.bytes(address).as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect()
    }

    pub fn floats(&self, address: u64) -> Vec<f32> {
        self.bytes(address).as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect()
    }
}

/// Numbers as they are stored: to nearest, ties to even.
pub fn stored(numbers: &[f32], dtype: Dtype) -> Vec<u8> {
    let numbers = numbers.iter();
    match dtype {
        Dtype::F32 => numbers.flat_map(|number| number.to_ne_bytes()).collect(),
        Dtype::Bf16 => numbers.flat_map(|x| bf16::from_f32(*x).to_ne_bytes()).collect(),
        Dtype::F16 => numbers.flat_map(|x| f16::from_f32(*x).to_ne_bytes()).collect(),
    }
}

/// What is left of numbers that are stored.
pub fn rounded(numbers: &[f32], dtype: Dtype) -> Vec<f32> {
    let round = |number: &f32| match dtype {
        Dtype::F32 => *number,
        Dtype::Bf16 => bf16::from_f32(*number).to_f32(),
        Dtype::F16 => f16::from_f32(*number).to_f32(),
    };
    numbers.iter().map(round).collect()
}

/// Numbers that are stored.
pub fn widened(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    let pairs = || bytes.as_chunks().0.iter().copied();
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|x| f32::from_ne_bytes(*x)).collect(),
        Dtype::Bf16 => pairs().map(|x| bf16::from_ne_bytes(x).to_f32()).collect(),
        Dtype::F16 => pairs().map(|x| f16::from_ne_bytes(x).to_f32()).collect(),
    }
}

/// Runs it in several orders and under both sanitizers.
pub fn run_everywhere(module: Module, shape: &KernelShape, work: &Work) -> Memory {
    let memory = run(module, shape, work);
    let other = Program::of_module(module, shape, Watch::Addresses).run(work, 3);
    assert!(memory.0 == other.0, "{module:?} depends on the order of threads");
    watch_threads(&module.source(shape), &module.kernels(), work).run(3).expect("no race");
    memory
}

/// Work whose blocks have few threads, and the program for it. The thread sanitizer tells 255 threads
/// from each other, and says nothing of what it lost track of.
pub fn watch_threads(source: &Source, kernels: &[String], work: &Work) -> WatchedThreads {
    const THREADS: u32 = 128;
    let mut source = source.clone();
    for wide in ["ROW_THREADS 256", "COPY_THREADS 256", "SAMPLE_THREADS 512"] {
        let name = wide.split(' ').next().expect("a name");
        source.text = source.text.replace(wide, &format!("{name} {THREADS}"));
    }
    let mut work = Work { buffers: work.buffers.clone(), launches: work.launches.clone() };
    for launch in &mut work.launches {
        if launch.kernel == "attend_tiles" && launch.threads > THREADS {
            shrink_tiles(&mut source, launch.threads / THREADS);
        }
        launch.threads = launch.threads.min(THREADS);
    }
    WatchedThreads { program: Program::build(&source, kernels, Watch::Threads), work }
}

/// For work whose tiles have no more queries than that.
fn shrink_tiles(source: &mut Source, times: u32) {
    for define in &mut source.defines {
        if let Some(queries) = define.strip_prefix("TILE_QUERIES=") {
            let queries: u32 = queries.parse().expect("a number");
            *define = format!("TILE_QUERIES={}", queries / times);
        }
    }
}

pub struct WatchedThreads {
    program: Program,
    work: Work,
}

impl WatchedThreads {
    /// Errors: what the thread sanitizer says.
    pub fn run(&self, order: u64) -> Result<(), String> {
        let output = self.program.output(&self.work, order);
        let errors = || String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(errors()) }
    }
}

/// Runs it in several orders.
pub fn run(module: Module, shape: &KernelShape, work: &Work) -> Memory {
    let program = Program::of_module(module, shape, Watch::Nothing);
    let memory = program.run(work, 0);
    for order in [1, 2] {
        let other = program.run(work, order);
        assert!(memory.0 == other.0, "{module:?} depends on the order {order} of threads");
    }
    memory
}

impl Program {
    pub fn of_module(module: Module, shape: &KernelShape, watch: Watch) -> Self {
        shape.check().expect("the kernels can compute the shape");
        Self::build(&module.source(shape), &module.kernels(), watch)
    }

    /// Compiles a source for this CPU, unless it has been.
    pub fn build(source: &Source, kernels: &[String], watch: Watch) -> Self {
        let entries: String =
            kernels.iter().map(|name| format!("emulated_kernel(\"{name}\", {name}),")).collect();
        let text = format!(
            "{}\nconst Kernel emulated_kernels[] = {{{entries}}};\n\
             const int emulated_kernel_count = {};\n",
            source.text,
            kernels.len()
        );
        let emulation = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cuda-driver/fake");
        let [header, runtime, main] =
            ["emulation.h", "emulation.cpp", "program.cpp"].map(|file| emulation.join(file));
        let mut hasher = DefaultHasher::new();
        let files = [&header, &runtime, &main];
        let files = files.map(|file| fs::read(file).expect("the emulation's source"));
        (&text, &source.defines, watch as u32, files, compile_flags(watch)).hash(&mut hasher);
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulation");
        let program = directory.join(format!("{}-{:016x}", source.module.name(), hasher.finish()));
        if program.exists() {
            return Self(program);
        }
        // Tests may build the same at once.
        static BUILDS: AtomicU32 = AtomicU32::new(0);
        let build = BUILDS.fetch_add(1, Ordering::Relaxed);
        let working = directory.join(format!("build-{}-{build}", std::process::id()));
        fs::create_dir_all(&working).expect("a directory to build in");
        fs::write(working.join("kernels.cpp"), text).expect("a source");
        let compile = |arguments: &[&str]| {
            let output = Command::new("g++").current_dir(&working).args(arguments).output();
            let output = output.expect("g++, which runs the kernels on the CPU: install g++");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "g++ {arguments:?}: {errors}");
        };
        let header = header.to_str().expect("a path in UTF-8");
        let defines: Vec<String> =
            source.defines.iter().map(|define| format!("-D{define}")).collect();
        let defines: Vec<&str> = defines.iter().map(String::as_str).collect();
        let flags = compile_flags(watch);
        compile(&[flags, &["-include", header], &defines, &["-c", "kernels.cpp"]].concat());
        // Without a sanitizer's eyes, but knowing that it is there.
        let [runtime, main] = [&runtime, &main].map(|file| file.to_str().expect("a path in UTF-8"));
        compile(&[BASE_FLAGS, runtime_flags(watch), &["-c", runtime, main]].concat());
        let objects = ["kernels.o", "emulation.o", "program.o", "-o", "program"];
        compile(&[link_flags(watch), &objects].concat());
        fs::rename(working.join("program"), &program).expect("the program can be moved");
        fs::remove_dir_all(&working).expect("what it was built from can go");
        Self(program)
    }

    /// What lies in memory after the work, in this order of threads and blocks.
    pub fn run(&self, work: &Work, order: u64) -> Memory {
        let output = self.output(work, order);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{:?}: {errors}", work.launches);
        let mut rest = &output.stdout[..];
        let memory = work.buffers.iter().map(|buffer| {
            let (bytes, behind) = rest.split_at(buffer.len());
            rest = behind;
            bytes.to_vec()
        });
        Memory(memory.collect())
    }

    pub fn output(&self, work: &Work, order: u64) -> Output {
        let output = self.output_of(&mut Command::new(&self.0), work, order);
        // The thread sanitizer has no room for addresses that some systems choose at random.
        if String::from_utf8_lossy(&output.stderr).contains("unexpected memory mapping") {
            return self.output_of(Command::new("setarch").arg("-R").arg(&self.0), work, order);
        }
        output
    }

    fn output_of(&self, command: &mut Command, work: &Work, order: u64) -> Output {
        let mut process = command
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .env("TSAN_OPTIONS", "halt_on_error=1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut input = process.stdin.take().expect("a pipe");
        // It reads everything before it writes anything; one that fails early says why itself.
        let _ = input.write_all(&encoded(work, order));
        drop(input);
        process.wait_with_output().expect("the program ends")
    }
}

const BASE_FLAGS: &[&str] = &["-std=c++17", "-O2", "-g1", "-Wall"];

/// Products are not fused into sums, as on the card.
fn compile_flags(watch: Watch) -> &'static [&'static str] {
    macro_rules! flags {
        ($($more:literal),*) => {
            &[
                "-std=c++17", "-march=native", "-ffp-contract=off", "-fno-strict-aliasing",
                $($more),*
            ]
        };
    }
    match watch {
        Watch::Nothing => flags!("-O2"),
        Watch::Addresses => {
            flags!("-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
        }
        Watch::Threads => flags!("-O1", "-g1", "-fsanitize=thread"),
    }
}

fn runtime_flags(watch: Watch) -> &'static [&'static str] {
    match watch {
        Watch::Nothing => &[],
        Watch::Addresses => &["-DWITH_ASAN"],
        Watch::Threads => &["-DWITH_TSAN"],
    }
}

fn link_flags(watch: Watch) -> &'static [&'static str] {
    match watch {
        Watch::Nothing => &[],
        Watch::Addresses => &["-fsanitize=address,undefined"],
        Watch::Threads => &["-fsanitize=thread"],
    }
}

/// As `program.cpp` reads it.
fn encoded(work: &Work, order: u64) -> Vec<u8> {
    let mut bytes = order.to_ne_bytes().to_vec();
    let number = |bytes: &mut Vec<u8>, number: u32| bytes.extend(number.to_ne_bytes());
    number(&mut bytes, work.buffers.len() as u32);
    for buffer in &work.buffers {
        bytes.extend((buffer.len() as u64).to_ne_bytes());
        bytes.extend(buffer);
    }
    number(&mut bytes, work.launches.len() as u32);
    for launch in &work.launches {
        number(&mut bytes, launch.kernel.len() as u32);
        bytes.extend(launch.kernel.as_bytes());
        launch.grid.iter().for_each(|blocks| number(&mut bytes, *blocks));
        number(&mut bytes, launch.threads);
        number(&mut bytes, launch.shared_bytes);
        number(&mut bytes, launch.arguments.len() as u32);
        for argument in &launch.arguments {
            let (kind, value) = match *argument {
                Argument::Pointer(value) => (b'p', value),
                Argument::U32(value) => (b'u', value.into()),
                Argument::U64(value) => (b'U', value),
                Argument::F32(value) => (b'f', value.to_bits().into()),
            };
            bytes.push(kind);
            bytes.extend(value.to_ne_bytes());
        }
    }
    bytes
}
