//! A UCX agent alone, for tests and measurements; workers start `stator ucx-agent`.

fn main() {
    kv_transfer::ucx::run_agent()
}
