#!/bin/bash
# Run an ncnn kit on ARM, in an emulated aarch64 user space: Debian's packages, PyPI's wheels, QEMU. Needs root for apt.
#
#   bash benchmarks/arm.sh [folder]
set -euo pipefail
folder=$(realpath -m "${1:-runs/arm}")
mkdir -p "$folder/root" "$folder/wheels" "$folder/site"
yolo-prune kit model=yolo11n.yaml imgsz=64 runtime=ncnn "out=$folder/kit.pyz"
dpkg --add-architecture arm64
apt-get update -qq
apt-get install -y -qq qemu-user-static
cd "$folder"
apt-get download -qq {python3.11-minimal,libpython3.11-minimal,libpython3.11-stdlib,libc6,libgcc-s1,libstdc++6,zlib1g}:arm64 \
    {libexpat1,libssl3,libffi8,libbz2-1.0,liblzma5,libuuid1}:arm64
dpkg --remove-architecture arm64
for package in ./*.deb; do dpkg -x "$package" root; done
platforms=(--platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64)
pip download -q --only-binary=:all: "${platforms[@]}" --python-version 3.11 -d wheels numpy ncnn
for wheel in wheels/*.whl; do python -m zipfile -e "$wheel" site; done
PYTHONPATH="$folder/site" qemu-aarch64-static -L root root/usr/bin/python3.11 kit.pyz --quick --threads 1
grep -o '"system": "[^"]*"' latency.json
