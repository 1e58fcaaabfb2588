#!/bin/sh
# Holds Inferspan against this host's CUDA driver: run.sh [OUT]. As root; nothing else is needed. Exit codes: src/main.rs of the crate.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$PWD/gpu-check-out}
fail() { echo "gpu-check: $*" >&2; exit 2; }

[ "$(id -u)" = 0 ] || fail "run it as root: attaching loads BPF programs"
[ "$(uname -sm)" = "Linux x86_64" ] || fail "needs Linux on x86-64, this is $(uname -sm)"
if [ -r "$here/glibc" ]; then
    needed=$(cat "$here/glibc")
    found=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed 's/glibc //') || found=
    [ -n "$found" ] || fail "needs glibc $needed, and this host's C library is another one"
    [ "$(printf '%s\n%s\n' "$needed" "$found" | sort -V | head -n 1)" = "$needed" ] || fail "needs glibc $needed, this is $found"
fi
[ -r /sys/kernel/btf/vmlinux ] || echo "gpu-check: WARNING: the kernel has no BTF" >&2
exec "$here/bin/gpu-check" "$out"
