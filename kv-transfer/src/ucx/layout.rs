//! The bindings' structures and values, compared with what a C compiler makes of UCX's headers.

use std::mem::{offset_of, size_of};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::bindings::{
    BUSY, ContextAttributes, EndpointParams, IN_PROGRESS, MemoryParams, OK, Params, RequestParams,
    Status, WorkerParams, flag,
};

/// C expressions, and what they must be.
fn expected() -> Vec<(String, u64)> {
    let mut all = Vec::new();
    let mut is = |expression: &str, value: u64| all.push((expression.to_string(), value));
    macro_rules! fields {
        ($name:literal, $structure:ty: $($theirs:literal = $field:ident),*) => {
            $(is(concat!("offsetof(", $name, ", ", $theirs, ")"),
                 offset_of!($structure, $field) as u64);)*
        };
    }
    fields!("ucp_params_t", Params: "field_mask" = field_mask, "features" = features,
        "request_size" = request_size, "request_init" = request_init,
        "request_cleanup" = request_cleanup, "tag_sender_mask" = tag_sender_mask,
        "mt_workers_shared" = mt_workers_shared, "estimated_num_eps" = estimated_num_eps,
        "estimated_num_ppn" = estimated_num_ppn, "name" = name);
    fields!("ucp_context_attr_t", ContextAttributes: "field_mask" = field_mask,
        "request_size" = request_size, "thread_mode" = thread_mode,
        "memory_types" = memory_types, "name" = name);
    fields!("ucp_worker_params_t", WorkerParams: "field_mask" = field_mask,
        "thread_mode" = thread_mode, "cpu_mask" = cpu_mask, "events" = events,
        "user_data" = user_data, "event_fd" = event_fd, "flags" = flags, "name" = name,
        "am_alignment" = am_alignment, "client_id" = client_id);
    fields!("ucp_mem_map_params_t", MemoryParams: "field_mask" = field_mask,
        "address" = address, "length" = length, "flags" = flags, "prot" = prot,
        "memory_type" = memory_type);
    fields!("ucp_ep_params_t", EndpointParams: "field_mask" = field_mask, "address" = address,
        "err_mode" = err_mode, "err_handler" = err_handler, "user_data" = user_data,
        "flags" = flags, "sockaddr" = sockaddr, "conn_request" = conn_request, "name" = name,
        "local_sockaddr" = local_sockaddr);
    fields!("ucp_request_param_t", RequestParams: "op_attr_mask" = op_attr_mask,
        "flags" = flags, "request" = request, "cb" = callback, "datatype" = datatype,
        "user_data" = user_data, "reply_buffer" = reply_buffer, "memory_type" = memory_type,
        "recv_info" = recv_info, "memh" = memh);
    is("sizeof(ucs_status_t)", size_of::<Status>() as u64);
    is("sizeof(ucs_cpu_set_t)", size_of::<[u64; 16]>() as u64);
    is("UCS_OK", OK as u64);
    is("UCS_INPROGRESS", IN_PROGRESS as u64);
    is("UCS_ERR_NO_RESOURCE", -2i64 as u64);
    is("UCS_ERR_BUSY", i64::from(BUSY) as u64);
    is("UCS_ERR_CONNECTION_RESET", -25i64 as u64);
    is("UCS_ERR_ENDPOINT_TIMEOUT", -80i64 as u64);
    is("UCS_ERR_LAST", -100i64 as u64);
    is("UCP_PARAM_FIELD_FEATURES", flag::PARAM_FEATURES);
    is("UCP_FEATURE_RMA", flag::FEATURE_RMA);
    is("UCP_FEATURE_WAKEUP", flag::FEATURE_WAKEUP);
    is("UCP_WORKER_PARAM_FIELD_THREAD_MODE", flag::WORKER_THREAD_MODE);
    is("UCS_THREAD_MODE_SINGLE", flag::THREAD_SINGLE.into());
    is("UCP_MEM_MAP_PARAM_FIELD_ADDRESS", flag::MEMORY_ADDRESS);
    is("UCP_MEM_MAP_PARAM_FIELD_LENGTH", flag::MEMORY_LENGTH);
    is("UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE", flag::MEMORY_TYPE);
    is("UCS_MEMORY_TYPE_HOST", flag::MEMORY_HOST.into());
    is("UCS_MEMORY_TYPE_CUDA", flag::MEMORY_CUDA.into());
    is("UCP_ATTR_FIELD_MEMORY_TYPES", flag::CONTEXT_MEMORY_TYPES);
    is("UCP_OP_ATTR_FIELD_MEMORY_TYPE", flag::OPERATION_MEMORY_TYPE.into());
    is("UCP_EP_PARAM_FIELD_REMOTE_ADDRESS", flag::ENDPOINT_ADDRESS);
    is("UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE", flag::ENDPOINT_ERROR_MODE);
    is("UCP_EP_PARAM_FIELD_ERR_HANDLER", flag::ENDPOINT_ERROR_HANDLER);
    is("UCP_ERR_HANDLING_MODE_PEER", flag::ERROR_MODE_PEER.into());
    is("UCP_OP_ATTR_FIELD_FLAGS", flag::OPERATION_FLAGS.into());
    is("UCP_EP_CLOSE_FLAG_FORCE", flag::CLOSE_FORCE.into());
    all
}

/// The functions, declared once more as `bindings` calls them: a compiler refuses what differs.
const CALLS: &str = "
    unsigned number = 0; int fd = 0; size_t bytes = 0; ucs_status_t status = 0; void *data = 0;
    ucp_config_t *config = 0; ucp_context_h context = 0; ucp_worker_h worker = 0;
    ucp_mem_h memory = 0; ucp_rkey_h key = 0; ucp_ep_h endpoint = 0; ucp_address_t *address = 0;
    ucs_status_ptr_t request = 0; ucp_request_param_t param = {0};
    if (number) {
        ucp_get_version(&number, &number, &number);
        status = ucp_config_read((const char *)0, (const char *)0, &config);
        status = ucp_init_version(number, number, (const ucp_params_t *)0, config, &context);
        status = ucp_context_query(context, (ucp_context_attr_t *)0);
        status = ucp_worker_create(context, (const ucp_worker_params_t *)0, &worker);
        status = ucp_worker_get_address(worker, &address, &bytes);
        status = ucp_worker_get_efd(worker, &fd);
        status = ucp_worker_arm(worker);
        number = ucp_worker_progress(worker);
        status = ucp_mem_map(context, (const ucp_mem_map_params_t *)0, &memory);
        status = ucp_rkey_pack(context, memory, &data, &bytes);
        status = ucp_ep_rkey_unpack(endpoint, data, &key);
        ucp_rkey_destroy(key);
        status = ucp_ep_create(worker, (const ucp_ep_params_t *)0, &endpoint);
        request = ucp_ep_close_nbx(endpoint, &param);
        request = ucp_get_nbx(endpoint, data, bytes, (uint64_t)0, key, &param);
        status = ucp_request_check_status(request);
        ucp_request_free(request);
    }
    (void)status;
";

/// Where the headers are: beside the libraries that `make test` installs, or the system's.
fn headers() -> PathBuf {
    if let Some(place) = std::env::var_os("STATOR_UCX_HEADERS") {
        return place.into();
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let pythons = std::fs::read_dir(repository.join("target/venv/lib")).into_iter().flatten();
    let installed = pythons.flatten().map(|python| python.path().join(INSTALLED));
    let mut candidates = installed.chain([PathBuf::from("/usr/include")]);
    candidates.find(|place| place.join("ucp/api/ucp.h").exists()).expect(
        "this test needs UCX's headers: run `make test`, which installs them, or install them \
         (Debian: libucx-dev), or set STATOR_UCX_HEADERS to the directory that has ucp/api/ucp.h",
    )
}

/// In a Python's directory.
const INSTALLED: &str = "site-packages/libucx/include";

#[test]
fn structures_are_as_a_c_compiler_sees_them() {
    let place = std::env::temp_dir().join(format!("ucx-layout-{}", std::process::id()));
    std::fs::create_dir_all(&place).unwrap();
    let (source, program) = (place.join("layout.c"), place.join("layout"));
    let expected = expected();
    let print = |(expression, _): &(String, u64)| {
        format!("    printf(\"%llu\\n\", (unsigned long long)({expression}));\n")
    };
    let prints: String = expected.iter().map(print).collect();
    let text = format!(
        "#include <stddef.h>\n#include <stdio.h>\n#include <ucp/api/ucp.h>\n\
         int main(void) {{\n{prints}{CALLS}    return 0;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new("cc");
    compiler.arg("-Werror=incompatible-pointer-types").arg("-I").arg(headers());
    // What is declared and not called needs no library.
    compiler.args(["-O1", "-o"]).arg(&program).arg(&source);
    let compiled = compiler.output().expect("a C compiler, cc, as Rust needs to link");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let printed = Command::new(&program).output().unwrap();
    let found: Vec<u64> =
        String::from_utf8(printed.stdout).unwrap().lines().map(|n| n.parse().unwrap()).collect();
    std::fs::remove_dir_all(&place).unwrap();
    assert_eq!(found.len(), expected.len());
    for ((expression, expected), found) in expected.iter().zip(found) {
        assert_eq!(*expected, found, "{expression}");
    }
}
