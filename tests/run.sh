#!/usr/bin/env bash
# Runs every test. The oracles (Python's safetensors, transformers, torch, pyarrow...) are installed into a virtual
# environment first; with SPARSE_TEST_PYTHON set to a python that has them, that one is used and nothing is installed.
# Arguments are handed to `cargo test`.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -z "${SPARSE_TEST_PYTHON:-}" ]; then
    venv="${SPARSE_TEST_VENV:-$PWD/.venv}"
    wanted="$(sha256sum tests/oracles/requirements.txt | cut -d' ' -f1)"
    if [ "$(cat "$venv/.installed" 2>/dev/null || true)" != "$wanted" ]; then
        echo "installing the oracles into $venv"
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet -r tests/oracles/requirements.txt
        echo "$wanted" >"$venv/.installed"
    fi
    export SPARSE_TEST_PYTHON="$venv/bin/python"
fi

cargo test --workspace "$@"
