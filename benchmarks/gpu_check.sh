#!/usr/bin/env bash
# What can only be known on a GPU, in at most 8 minutes: is cuDNN's attention right, how fast do B/32, B/16 and
# L/14 train against open_clip under torch.compile, is `clip-jax plan` right, and how large a loss is computed.
#
#   PEER_PYTHON=.venv-parity/bin/python benchmarks/gpu_check.sh OUT      # an NVIDIA GPU of 80 GB
#   DRY=1 benchmarks/gpu_check.sh OUT                                    # tiny sizes, on a CPU: only that it works
#
# PYTHON has clip_jax with jax[cuda12] or jax[cuda13], and DALI where its decoding is to be measured too; without
# PEER_PYTHON nothing is compared with. Each stage has a time of its own and leaves its lines in OUT; one that fails
# or is late does not stop the others.
set -uo pipefail

OUT=${1:?the folder for the results}
PYTHON=${PYTHON:-python}
PEER_PYTHON=${PEER_PYTHON:-}
DRY=${DRY:-}
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd) || exit 2
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=0
PATIENCE=${DRY:+20}  # a CPU is slow, and may be busy
PATIENCE=${PATIENCE:-1}

# stage NAME SECONDS COMMAND...: its output goes to OUT/NAME.txt, what it complains of to OUT/NAME.err
stage() {
    local name=$1 seconds=$(($2 * PATIENCE)) began=$SECONDS
    shift 2
    timeout --kill-after 5 "$seconds" "$@" >"$OUT/$name.txt" 2>"$OUT/$name.err"
    local code=$?
    echo "$name: exit $code after $((SECONDS - began)) s"
    if [ $code -ne 0 ]; then
        failed=1
        tail -n 3 "$OUT/$name.err"
    fi
}

if [ -n "$DRY" ]; then
    export JAX_PLATFORMS=cpu
    MODELS=("ViT-test 16 none 1")
    ATTENTION=(--batch 1 --rounds 1)
    LOSS=(--batch 512 --kinds softmax)
    TOPOLOGY=h100:1
    DECODE=(--on cpu --seconds 1)
    STEPS=(--rounds 2 --steps 2)
else
    # Architecture, pairs, remat, blocks in one turn of the loop.
    MODELS=("ViT-B-32 1024 none 12" "ViT-B-16 512 attention 12" "ViT-L-14 256 attention 24")
    ATTENTION=()
    DECODE=()
    LOSS=(--batch 262144 --no-naive --dtype bfloat16 --tile 1024 --kinds softmax)
    TOPOLOGY=$("$PYTHON" -c '
import jax
from clip_jax.hardware import chip_of
kind = jax.devices()[0].device_kind
chip = chip_of(kind)
print(f"{chip.name}:1" if chip and chip.kind == "gpu" else f"unknown: {kind}")') || exit 2
    case $TOPOLOGY in unknown*) echo "no GPU that clip_jax knows, $TOPOLOGY" >&2 && exit 2 ;; esac
    STEPS=(--rounds 4 --steps 5)
    nvidia-smi >"$OUT/nvidia-smi.txt" 2>&1
fi
echo "$TOPOLOGY" >"$OUT/topology.txt"
PEER=()
if [ -n "$PEER_PYTHON" ]; then PEER=(--peer-python "$PEER_PYTHON" --compile); fi

# The plans need processors alone, so they are made beside the rest.
plans() {
    local name batch remat unroll
    for model in "${MODELS[@]}"; do
        read -r name batch remat unroll <<<"$model"
        stage "plan_$name" 150 "$PYTHON" -m clip_jax.cli plan --no-search --steps 20000 --topology "$TOPOLOGY" \
            --model.name "$name" --model.remat "$remat" --model.unroll "$unroll" --data.batch-size "$batch" \
            --json-out "$OUT/plan_$name.json"
    done
    return $failed
}
plans &
planning=$!

stage attention 60 "$PYTHON" benchmarks/gpu_attention.py "${ATTENTION[@]}"
for model in "${MODELS[@]}"; do
    read -r name batch remat unroll <<<"$model"
    stage "train_$name" 120 "$PYTHON" benchmarks/train_step.py --model "$name" --dtype bfloat16 --batch "$batch" \
        --remat "$remat" --unroll "$unroll" "${STEPS[@]}" "${PEER[@]}"
done
if "$PYTHON" -c "import nvidia.dali" 2>/dev/null; then
    stage decode 40 "$PYTHON" benchmarks/device_decode.py "${DECODE[@]}"
fi
stage loss 40 "$PYTHON" benchmarks/loss_memory.py "${LOSS[@]}"
wait "$planning" || failed=1

stage summary 20 "$PYTHON" benchmarks/gpu_summary.py "$OUT"
cat "$OUT/summary.txt"
exit $failed
