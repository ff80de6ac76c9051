//! The direction of dependencies that ARCHITECTURE.md promises.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::Value;

/// What each crate of the workspace may use of the others, and of the libraries that matter.
const ALLOWED: [(&str, &[&str]); 21] = [
    ("protocol", &[]),
    ("testkit", &[]),
    ("messaging", &["protocol"]),
    ("cuda-driver", &[]),
    ("kv-transfer", &["cuda-driver", "cuda-kernels", "protocol"]),
    ("tokenizer", &[]),
    ("topology", &["protocol"]),
    ("grammar", &["tokenizer"]),
    ("gguf", &[]),
    ("cuda-kernels", &[]),
    ("engine", &["cuda-driver", "cuda-kernels", "gguf", "grammar", "kv-transfer", "protocol"]),
    ("chaos", &["testkit"]),
    ("loadtest", &[]),
    ("telemetry", &[]),
    ("router", &["messaging", "protocol"]),
    ("gateway", &["grammar", "messaging", "protocol", "router", "tokenizer"]),
    ("worker", &["engine", "gguf", "grammar", "kv-transfer", "messaging", "protocol", "tokenizer"]),
    (
        "prefill-worker",
        &["decode-worker", "engine", "kv-transfer", "messaging", "protocol", "worker"],
    ),
    ("decode-worker", &["engine", "grammar", "kv-transfer", "messaging", "protocol", "worker"]),
    (
        "stator",
        &[
            "decode-worker",
            "engine",
            "gateway",
            "kv-transfer",
            "loadtest",
            "messaging",
            "prefill-worker",
            "protocol",
            "router",
            "telemetry",
            "topology",
            "worker",
        ],
    ),
    ("e2e", &["stator", "worker"]),
];

/// Libraries that a crate must not know, because of what the crate is.
const FORBIDDEN: [(&str, &[&str]); 3] = [
    ("engine", &["axum", "tonic", "tokio", "reqwest"]),
    ("gateway", &["rayon", "half", "memmap2", "candle-core", "cudarc"]),
    ("kv-transfer", &["axum", "safetensors"]),
];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .expect("cargo runs");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |value: &Value| value["name"].as_str().expect("a name").to_string();
    let used = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies").iter();
        all.filter(|dependency| dependency["kind"].is_null()).map(name).collect()
    };
    packages.iter().map(|package| (name(package), used(package))).collect()
}

#[test]
fn dependencies_point_the_right_way() {
    let dependencies = dependencies();
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(found, ours, "ALLOWED names every crate");
    for (name, allowed) in ALLOWED {
        for used in dependencies[name].iter().filter(|used| ours.contains(used.as_str())) {
            assert!(allowed.contains(&used.as_str()), "{name} must not depend on {used}");
        }
    }
    for (name, forbidden) in FORBIDDEN {
        for library in forbidden {
            assert!(!dependencies[name].contains(*library), "{name} must not know {library}");
        }
    }
}
