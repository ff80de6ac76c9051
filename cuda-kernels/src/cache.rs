//! Compiled modules in a directory: compiling takes seconds, and a worker should start in less.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::nvrtc::{CompileError, Nvrtc, options};
use crate::source::Source;

/// Files of the directory at most; of more, the oldest go.
const FILES_MAX: usize = 64;
const ENDING: &str = "kernels";
const HASH_BYTES: usize = blake3::OUT_LEN;

/// A directory of compiled modules, which processes may share. A file is named by what it was made
/// from, and begins with the hash of the rest.
pub struct KernelCache {
    directory: PathBuf,
}

impl KernelCache {
    /// In a directory that is made when something is written. It must be writable by nobody who may
    /// not run code here: what lies in it runs on the card.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Errors: nothing can be written there, with the directory's name.
    pub fn check(&self) -> io::Result<()> {
        let probe = self.directory.join(format!("{}.tmp", std::process::id()));
        let written = fs::create_dir_all(&self.directory)
            .and_then(|()| fs::write(&probe, []))
            .and_then(|()| fs::remove_file(&probe));
        let named = |error| io::Error::other(format!("{}: {error}", self.directory.display()));
        written.map_err(named)
    }

    /// The module's image, from the directory or compiled and put there; when that cannot be written,
    /// it is compiled again the next time. Errors: it does not compile.
    pub fn image(
        &self,
        nvrtc: &Nvrtc,
        source: &Source,
        architecture: &str,
    ) -> Result<Vec<u8>, CompileError> {
        let path = self.path(nvrtc.version(), source, architecture);
        if let Some(image) = read_checked(&path) {
            return Ok(image);
        }
        let compiled = nvrtc.compile(source, architecture)?;
        let _ = self.write(&path, &compiled.image);
        Ok(compiled.image)
    }

    fn path(&self, version: (i32, i32), source: &Source, architecture: &str) -> PathBuf {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{version:?} {:?} ", options(source, architecture)).as_bytes());
        hasher.update(source.text.as_bytes());
        let hash = hasher.finalize().to_hex();
        let module = source.module.name();
        self.directory.join(format!("{module}-{architecture}-{}.{ENDING}", &hash[..32]))
    }

    /// Under another name first, so that nobody reads half of it.
    fn write(&self, path: &Path, image: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(blake3::hash(image).as_bytes())?;
            file.write_all(image)
        });
        let moved = written.and_then(|()| fs::rename(&temporary, path));
        if moved.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        moved.and_then(|()| self.remove_oldest())
    }

    fn remove_oldest(&self) -> io::Result<()> {
        let mut files: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.path().extension().is_some_and(|ending| ending == ENDING) {
                files.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        files.sort();
        let surplus = files.len().saturating_sub(FILES_MAX);
        files[..surplus].iter().try_for_each(|(_, path)| fs::remove_file(path))
    }
}

fn read_checked(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (hash, image) = bytes.split_first_chunk::<HASH_BYTES>()?;
    (blake3::hash(image).as_bytes() == hash).then(|| image.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Module;
    use crate::shape::tests::llama_8b;

    fn directory(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("stator-kernels-{name}-{}", std::process::id()))
    }

    #[test]
    fn whatever_changes_a_module_changes_its_file() {
        let cache = KernelCache::new("cache".into());
        let source = Module::Sampling.source(&llama_8b());
        let path = cache.path((13, 0), &source, "sm_90");
        assert!(path.to_string_lossy().starts_with("cache/sampling-sm_90-"));
        let mut others = vec![
            cache.path((12, 9), &source, "sm_90"),
            cache.path((13, 0), &source, "sm_100"),
            cache.path((13, 0), &Module::Blocks.source(&llama_8b()), "sm_90"),
        ];
        let text = format!("{} ", source.text);
        others.push(cache.path((13, 0), &Source { text, ..source.clone() }, "sm_90"));
        let defines = vec!["ACT=f32".into()];
        others.push(cache.path((13, 0), &Source { defines, ..source }, "sm_90"));
        assert!(others.iter().all(|other| *other != path));
    }

    #[test]
    fn what_cannot_be_written_is_told_of() {
        let cache = KernelCache::new(directory("checked"));
        cache.check().unwrap();
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), 0);
        fs::remove_dir(&cache.directory).unwrap();
        fs::write(&cache.directory, "a file").unwrap();
        let sentence = cache.check().unwrap_err().to_string();
        assert!(sentence.contains(&*cache.directory.to_string_lossy()), "{sentence}");
        fs::remove_file(&cache.directory).unwrap();
    }

    #[test]
    fn a_damaged_file_is_as_none_and_the_oldest_go() {
        let cache = KernelCache::new(directory("damaged"));
        let path = cache.directory.join(format!("a.{ENDING}"));
        assert_eq!(read_checked(&path), None);
        cache.write(&path, b"image").unwrap();
        assert_eq!(read_checked(&path).as_deref(), Some(&b"image"[..]));
        let whole = fs::read(&path).unwrap();
        for damaged in [&whole[..whole.len() - 1], &whole[..3], b""] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read_checked(&path), None);
        }
        for index in 0..FILES_MAX + 3 {
            cache.write(&cache.directory.join(format!("{index}.{ENDING}")), b"image").unwrap();
        }
        assert_eq!(fs::read_dir(&cache.directory).unwrap().count(), FILES_MAX);
        fs::remove_dir_all(&cache.directory).unwrap();
    }
}
