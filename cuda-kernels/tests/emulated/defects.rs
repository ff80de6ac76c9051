//! The emulation notices what it is for: a missing barrier, an access out of bounds, threads that wait
//! for each other in vain, sums that depend on an order.

use cuda_kernels::{Argument, Launch, Module, Source};

use crate::emulator::{Program, Watch, Work};

/// 64 threads with 8 bytes of shared memory each, and as much to write to.
fn run(body: &str, watch: Watch, order: u64) -> (bool, String, Vec<u8>) {
    let text = format!(
        "{}{}extern \"C\" __global__ void probe(u32* out, u32* more) {{\n\
         DYNAMIC_SHARED(shared); u32* cells = (u32*)shared; u32 thread = threadIdx.x;\n\
         (void)cells, (void)thread, (void)out, (void)more;\n{body}\n}}\n",
        include_str!("../../kernels/prelude.cuh"),
        include_str!("../../kernels/tensor_cores.cuh"),
    );
    let source = Source { module: Module::Blocks, text, defines: Vec::new() };
    let program = Program::build(&source, &["probe".into()], watch);
    let mut work = Work::default();
    let (out, more) = (work.bytes(vec![0; 4 * 64]), work.bytes(vec![0; 4 * 64]));
    work.launches = vec![Launch {
        kernel: "probe".into(),
        grid: [2, 1, 1],
        threads: 64,
        shared_bytes: 8 * 64,
        arguments: vec![Argument::Pointer(out), Argument::Pointer(more)],
    }];
    let output = program.output(&work, order);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.success(), errors, output.stdout)
}

#[track_caller]
fn check_noticed(body: &str, watch: Watch, expected: &str) {
    let (is_fine, errors, _) = run(body, watch, 0);
    assert!(!is_fine && errors.contains(expected), "{watch:?} says {errors:?}");
}

#[track_caller]
fn check_fine(body: &str) -> Vec<u8> {
    let outputs = [(Watch::Nothing, 0), (Watch::Addresses, 1), (Watch::Threads, 2)];
    let outputs = outputs.map(|(watch, order)| {
        let (is_fine, errors, output) = run(body, watch, order);
        assert!(is_fine, "{watch:?} says {errors}");
        output
    });
    assert!(outputs[0] == outputs[1] && outputs[0] == outputs[2]);
    outputs[0].clone()
}

#[test]
fn barriers_and_shuffles_do_what_a_card_does() {
    let reversed = "cells[thread] = thread * 3; __syncthreads();\n\
                    if (blockIdx.x == 0) out[thread] = cells[63 - thread];\n\
                    u32 sum = thread; for (int w = 16; w > 0; w /= 2)\n\
                    sum += __shfl_xor_sync(EVERYONE, sum, w);\n\
                    u32 below = __shfl_up_sync(EVERYONE, thread, 1);\n\
                    u32 odd = __ballot_sync(EVERYONE, thread % 2);\n\
                    if (blockIdx.x == 1) more[thread] = sum + below + odd;";
    let numbers: Vec<u32> =
        check_fine(reversed).as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes)).collect();
    for (thread, [reversed, sum]) in
        (0..64).zip(numbers[..64].iter().zip(&numbers[64..]).map(|(a, b)| [*a, *b]))
    {
        assert_eq!(reversed, (63 - thread) * 3);
        let of_warp: u32 = (thread / 32 * 32..thread / 32 * 32 + 32).sum();
        let below = if thread % 32 == 0 { thread } else { thread - 1 };
        assert_eq!(sum, (of_warp + below).wrapping_add(0xaaaa_aaaa));
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let without = "cells[thread] = thread; out[thread] = cells[63 - thread] + blockIdx.x * 0;";
    check_noticed(without, Watch::Threads, "data race");
    let orders = [0, 1].map(|order| run(without, Watch::Nothing, order).2);
    assert!(orders[0] != orders[1], "and another order has another result");
    // Threads of a warp are no more in step than others.
    let warp = "cells[thread] = thread; more[thread] = cells[thread ^ 1];";
    check_noticed(warp, Watch::Threads, "data race");
    // Neither do blocks know of each other.
    check_noticed("out[thread] = blockIdx.x;", Watch::Threads, "data race");
}

#[test]
fn accesses_out_of_bounds_are_noticed() {
    check_noticed("out[thread + 1] = 1;", Watch::Addresses, "heap-buffer-overflow");
    check_noticed("cells[2 * thread + 2] = 1;", Watch::Addresses, "heap-buffer-overflow");
    check_noticed("out[0] = more[thread - 1u];", Watch::Addresses, "Sanitizer");
    check_noticed("*(uint4*)(cells + thread) = {0, 0, 0, 0};", Watch::Addresses, "misaligned");
}

#[test]
fn threads_that_do_not_meet_are_noticed() {
    let vain = "wait for others that do not come";
    let one_left = "if (thread == 40) return; __syncwarp();";
    check_noticed(one_left, Watch::Nothing, vain);
    let elsewhere = "if (thread % 2) __syncwarp(); else __shfl_sync(EVERYONE, 1, 0);";
    check_noticed(elsewhere, Watch::Nothing, vain);
}

/// A [16, 16] has row + column / 16, B [16, 8] the unit matrix of rows 8 to 15: the product is A's right
/// half. B comes from memory where its columns are consecutive, by way of copies.
#[test]
fn products_of_warps_are_those_of_matrices() {
    let multiply = "Address at = address_of(shared); const u32 lane = thread % WARP;\n\
                    if (thread >= WARP) return;\n\
                    for (u32 i = lane; i < 16 * 8; i += WARP)\n\
                    narrow(i / 8 == i % 8 + 8 ? 1.0f : 0.0f, ((bf16*)shared)[i]);\n\
                    __syncwarp();\n\
                    u32 a[4], tiles[4]; float sums[4] = {1.0f, 1.0f, 1.0f, 1.0f};\n\
                    for (u32 i = 0; i < 4; i++) {\n\
                    float row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;\n\
                    a[i] = narrow_pair(row + column / 16, row + (column + 1) / 16, bf16{}); }\n\
                    load_transposed(tiles, at + lane % 16 * 16);\n\
                    multiply_add(sums, a, tiles[0], tiles[1], bf16{});\n\
                    if (blockIdx.x == 0) for (u32 i = 0; i < 2; i++)\n\
                    out[2 * lane + i] = __float_as_uint(sums[i]);\n\
                    else for (u32 i = 0; i < 2; i++)\n\
                    more[2 * lane + i] = __float_as_uint(sums[i + 2]);";
    let output = check_fine(multiply);
    let numbers = output.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes));
    for (i, number) in numbers.enumerate() {
        let (row, column) = (i / 8, i % 8);
        assert_eq!(number, 1.0 + row as f32 + (8 + column) as f32 / 16.0, "{row} {column}");
    }
}

#[test]
fn copies_come_when_they_are_waited_for() {
    let copies = "Address to = address_of(shared) + thread * 8;\n\
                  copy_later<8>(to, more + thread / 2 * 2, thread % 2 == 0); end_copies();\n";
    let check = |wait: &str, expected: u32| {
        let numbers = check_fine(&format!(
            "{copies}{wait}if (blockIdx.x == 0) out[thread] = cells[2 * thread];"
        ));
        let numbers = numbers.as_chunks().0.iter().map(|bytes| u32::from_ne_bytes(*bytes));
        assert!(numbers.take(64).all(|number| number == expected), "{wait}");
    };
    check("wait_for_copies<0>();", 0);
    check("wait_for_copies<1>();", u32::MAX);
    check("end_copies(); wait_for_copies<1>();", 0);
    // Others' need a barrier as well.
    let of_another = "wait_for_copies<0>(); out[thread] = cells[2 * (63 - thread)];";
    check_noticed(&format!("{copies}{of_another}"), Watch::Threads, "data race");
}

#[test]
fn misaligned_rows_and_copies_are_noticed() {
    let rows = "u32 tiles[4]; load_transposed(tiles, address_of(shared) + 8);";
    check_noticed(rows, Watch::Nothing, "a matrix's row is misaligned");
    let copy = "copy_later<16>(address_of(shared) + 8, more, true);";
    check_noticed(copy, Watch::Nothing, "a copy is misaligned");
    let endless = "for (;;) copy_later<8>(address_of(shared), more, false);";
    check_noticed(endless, Watch::Nothing, "it waits for no copies");
}
