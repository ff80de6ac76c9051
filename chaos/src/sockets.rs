//! Which process a TCP connection belongs to, as Linux tells it in `/proc`.

use std::net::SocketAddr;

/// Whether the process has a connection whose own end is one of these. False where the system does
/// not say.
pub fn process_has_any(process_id: i32, own_ends: &[SocketAddr]) -> bool {
    let inodes = inodes_of(own_ends);
    if inodes.is_empty() {
        return false;
    }
    let Ok(files) = std::fs::read_dir(format!("/proc/{process_id}/fd")) else { return false };
    let links = files.flatten().filter_map(|file| std::fs::read_link(file.path()).ok());
    links
        .filter_map(|link| link.to_str().map(str::to_string))
        .any(|link| inodes.iter().any(|inode| link == format!("socket:[{inode}]")))
}

fn inodes_of(own_ends: &[SocketAddr]) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let wanted: Vec<String> = own_ends.iter().filter_map(spelled).collect();
    let inode = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_wanted = wanted.iter().any(|end| words.get(1) == Some(&end.as_str()));
        is_wanted.then(|| words.get(9).map(|inode| inode.to_string()))?
    };
    table.lines().filter_map(inode).collect()
}

/// As `/proc/net/tcp` spells an IPv4 address: in the machine's byte order.
fn spelled(address: &SocketAddr) -> Option<String> {
    let SocketAddr::V4(address) = address else { return None };
    let ip = u32::from_ne_bytes(address.ip().octets());
    Some(format!("{ip:08X}:{:04X}", address.port()))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_belongs_to_its_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own_end, this) = (connection.local_addr().unwrap(), std::process::id() as i32);
        assert!(process_has_any(this, &[own_end]));
        assert!(!process_has_any(1, &[own_end]));
        assert!(!process_has_any(this, &[]));
        assert!(!process_has_any(this, &["127.0.0.1:1".parse().unwrap()]));
    }
}
