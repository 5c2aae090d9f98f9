#!/bin/sh
# The compiler for `cargo xtask fuzz` (RUSTC_WRAPPER): libFuzzer's instrumentation for steer and the targets, not for dependencies,
# which would take four times as long to build. The flags are those of cargo-fuzz, without a sanitizer, which would need a nightly
# compiler.
rustc=$1
shift
case " $* " in
*" --crate-name steer "* | *" --crate-name steer_common "* | *"/fuzz_targets/"* | *" fuzz_targets/"*)
    exec "$rustc" "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$rustc" "$@" ;;
esac
