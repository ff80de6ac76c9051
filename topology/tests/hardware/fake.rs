//! Hosts that are made up.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, process};

use topology::Source;

/// A host of its own, which goes with this value.
pub struct Fake {
    directory: PathBuf,
}

impl Fake {
    /// A host without anything. `name` is that of the test.
    pub fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("stator-{name}-{}", process::id()));
        fs::create_dir_all(&directory).unwrap();
        Self { directory }
    }

    /// Adds a file of the kernel's.
    pub fn file(self, path: &str, text: &str) -> Self {
        let file = self.directory.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        self
    }

    /// Adds a driver with what is special about it (`fake_nvml.c` says what).
    pub fn driver(self, defines: &[&str]) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_nvml.c");
        let mut compiler = Command::new("cc");
        compiler
            .args(["-shared", "-fPIC", "-Wall", "-Wextra", "-o"])
            .arg(self.library())
            .arg(source);
        compiler.args(defines.iter().map(|define| format!("-D{define}")));
        let ended = compiler.status().expect("tests need a C compiler as `cc`");
        assert!(ended.success(), "the driver for tests compiles");
        self
    }

    /// Adds a driver that answers nobody while `wedge` holds.
    pub fn driver_that_wedges(self) -> Self {
        let define = format!("WEDGED={:?}", self.wedge_file(""));
        self.driver(&[&define])
    }

    /// From now on the driver does not answer.
    pub fn wedge(&self) {
        fs::write(self.wedge_file(""), "").unwrap();
    }

    /// From now on it does again.
    pub fn unwedge(&self) {
        fs::remove_file(self.wedge_file("")).unwrap();
    }

    /// Waits until someone waits for the driver ("asked"), or has given it up ("closed").
    #[track_caller]
    pub fn wait_until(&self, what: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.wedge_file(&format!(".{what}")).exists() {
            assert!(Instant::now() < deadline, "the driver is never {what}");
            sleep(Duration::from_millis(1));
        }
    }

    fn wedge_file(&self, end: &str) -> PathBuf {
        self.directory.join(format!("wedged{end}"))
    }

    /// Where to look to find it.
    pub fn source(&self) -> Source {
        Source { root: self.directory.clone(), nvml: Some(self.library()) }
    }

    fn library(&self) -> PathBuf {
        self.directory.join("libnvidia-ml.so.1")
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _left_over = fs::remove_dir_all(&self.directory);
    }
}
