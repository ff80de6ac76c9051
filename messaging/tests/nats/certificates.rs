//! A certificate authority, and what it signed.

use std::fs;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// PEM files in a directory of their own, which goes on drop.
pub struct Certificates {
    directory: PathBuf,
}

impl Certificates {
    /// An authority, a server on 127.0.0.1 and a client.
    pub fn new(name: &str) -> Self {
        let directory = format!("certificates-{name}-{}", std::process::id());
        let certificates = Self { directory: std::env::temp_dir().join(directory) };
        fs::create_dir_all(&certificates.directory).unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        fs::write(certificates.path("ca.pem"), authority.pem()).unwrap();
        for (name, host) in [("server", "127.0.0.1"), ("client", "client")] {
            let key = KeyPair::generate().unwrap();
            let signed = CertificateParams::new(vec![host.to_string()]).unwrap();
            let signed = signed.signed_by(&key, &authority).unwrap();
            fs::write(certificates.path(&format!("{name}.pem")), signed.pem()).unwrap();
            fs::write(certificates.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        }
        certificates
    }

    /// `ca.pem`, `server.pem`, `server.key`, `client.pem`, `client.key`.
    pub fn path(&self, file: &str) -> PathBuf {
        self.directory.join(file)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        let _kept = fs::remove_dir_all(&self.directory);
    }
}
