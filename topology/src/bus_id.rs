//! PCI addresses, as the kernel writes them.

/// The kernel's form ("0000:3b:00.0") of an address in the driver's ("00000000:3B:00.0"); as it is, where
/// it has another form.
pub fn of_driver(address: &str) -> String {
    let lower = address.to_ascii_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => {
            let (excess, kept) = domain.split_at(domain.len() - 4);
            if excess.bytes().all(|digit| digit == b'0') { format!("{kept}:{rest}") } else { lower }
        }
        _ => lower,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_as_the_kernel_does() {
        let table = [
            ("00000000:3B:00.0", "0000:3b:00.0"),
            ("0000:3b:00.0", "0000:3b:00.0"),
            ("00010000:07:00.0", "00010000:07:00.0"),
            ("7", "7"),
            ("", ""),
            ("ü0000:3B:00.0", "ü0000:3b:00.0"),
        ];
        for (address, expected) in table {
            assert_eq!(of_driver(address), expected);
        }
    }
}
