//! Compiles `proto/*.proto` with a protobuf compiler written in Rust: no `protoc` to install.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["proto/data.proto", "proto/control.proto"];
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed=proto");
    Ok(())
}
