#!/bin/sh
# The kernels' contract tests on 64-bit Arm CPUs that qemu plays: one with Arm's dot product, one without.
# Needs Debian (or a relative of it), its package client and pip. What runs there is fetched into build/arm; nothing is
# installed. Some minutes, of which compiling is the most: for when kernels change, not for every change.
#
# usage: tools/test_arm.sh PYTHON [pytest's arguments]
set -eu

python=$1
shift
cd "$(dirname "$0")/.."
folder=$PWD/build/arm
mkdir -p "$folder"

# Debian's client for another architecture, with lists and files of its own: the system's stay as they are.
arm_apt() {
    mkdir -p "$folder/lists/partial" "$folder/debs/archives/partial"
    : >>"$folder/status"
    apt-get -q -q -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User=root \
        -o Dir::State="$folder" -o Dir::State::lists="$folder/lists" -o Dir::State::status="$folder/status" \
        -o Dir::Cache="$folder/debs" "$@"
}

dependencies() {
    "$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")'
    printf '%s\n' pytest pytest-timeout hypothesis psutil
}

if [ ! -e "$folder/fetched" ]; then
    echo "fetching Python and its packages for arm64 into build/arm"
    arm_apt update
    arm_apt --yes --no-install-recommends --download-only install python3 libstdc++6 libgomp1 >/dev/null
    for package in "$folder"/debs/archives/*.deb; do
        dpkg-deb -x "$package" "$folder/root"
    done
    if ! command -v qemu-aarch64-static >/dev/null; then
        (cd "$folder" && apt-get -q -q download qemu-user-static && dpkg-deb -x qemu-user-static_*.deb host)
    fi
    version=$(basename "$(readlink "$folder/root/usr/bin/python3")")
    dependencies >"$folder/dependencies"
    "$python" -m pip download --quiet --disable-pip-version-check --dest "$folder/wheels" --only-binary=:all: \
        --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
        --platform manylinux_2_31_aarch64 \
        --python-version "${version#python}" --requirement "$folder/dependencies"
    for wheel in "$folder"/wheels/*.whl; do
        "$python" -m zipfile -e "$wheel" "$folder/site"
    done
    touch "$folder/fetched"
fi

qemu=$(command -v qemu-aarch64-static || echo "$folder/host/usr/bin/qemu-aarch64-static")
export QEMU_LD_PREFIX="$folder/root" XDG_CACHE_HOME="$folder/cache" OPENBLAS_NUM_THREADS=1
export PYTHONPATH="$PWD:$folder/site" PYTHONDONTWRITEBYTECODE=1

# on CPU FEATURES [pytest's arguments]. Under qemu LLVM cannot see what the CPU has, so it is told.
on() {
    echo "$1"
    QEMU_CPU=$1 NUMBA_CPU_NAME=$1 NUMBA_CPU_FEATURES=$2
    export QEMU_CPU NUMBA_CPU_NAME NUMBA_CPU_FEATURES
    shift 2
    "$qemu" "$folder/root/usr/bin/python3" -m pytest -q -p no:cacheprovider --timeout 1200 tests/contract -k simd "$@"
}

failed=0
on neoverse-n1 +neon,+dotprod "$@" || failed=1
on cortex-a72 +neon "$@" || failed=1
exit $failed
