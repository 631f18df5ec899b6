#!/usr/bin/env bash
# Builds `sparse` and runs its main job on the example models: delta out, the same bytes back.
set -euo pipefail
cd "$(dirname "$0")/.."

# The development profile: the crates that touch every byte are optimised in it too, and the tests use the same build.
# `cargo build --release` optimises DataFusion as well, which takes more than half an hour on two cores.
cargo build --bin sparse
sparse="${CARGO_TARGET_DIR:-target}/debug/sparse"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

for finetune in sft lora-merged; do
    echo
    echo "== examples/models/$finetune as a delta of examples/models/base"
    "$sparse" compress examples/models/base "examples/models/$finetune" -o "$work/$finetune-delta"
    "$sparse" reconstruct examples/models/base "$work/$finetune-delta" -o "$work/$finetune"
    diff -r "examples/models/$finetune" "$work/$finetune"
done

echo
echo "== an edited dataset as a delta of its base"
"$sparse" dataset-compress examples/datasets/wordnet/base examples/datasets/wordnet/derivative -o "$work/words-delta"
"$sparse" dataset-reconstruct "$work/words-delta" -o "$work/words"
"$sparse" dataset-diff examples/datasets/wordnet/derivative "$work/words" --fail-on changed,added,removed,schema

echo
echo "== the same in SQL"
"$sparse" sql -c "
    SELECT tensor, method, bytes, compressed_bytes, round(ratio, 2) AS ratio, status
    FROM sparse_compress('examples/models/base', 'examples/models/sft', '$work/sql-delta')
    ORDER BY compressed_bytes DESC LIMIT 5"
