//! Certificate authorities, and what they signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// PEM files in a directory of their own, which goes on drop: for each authority `<name>-ca`, and
/// `<name>-chain` and `<name>-key` of something it signed for localhost, be it server or client.
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// Makes these authorities.
    pub fn new(authorities: &[&str]) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let directory = format!("certificates-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(directory);
        fs::create_dir_all(&directory).expect("a temporary directory");
        let made = Self { directory };
        for authority in authorities {
            made.make(authority).expect("certificates can be made");
        }
        made
    }

    fn make(&self, authority: &str) -> Result<(), rcgen::Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let names = vec!["localhost".to_string(), "127.0.0.1".to_string()];
        let signed = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
        self.write(&format!("{authority}-ca"), &issuer.pem());
        self.write(&format!("{authority}-chain"), &signed.pem());
        self.write(&format!("{authority}-key"), &key.serialize_pem());
        Ok(())
    }

    /// Adds a file of any content.
    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file can be written");
    }

    /// Where a file is, or would be.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.directory.join(name)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _kept = fs::remove_dir_all(&self.directory);
    }
}
