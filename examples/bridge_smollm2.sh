#!/usr/bin/env bash
# Distils SmolLM2-135M, with its published weights, into a small Llama of another tokenizer, inside Megatron-Bridge on CPU.
#
#   examples/bridge_smollm2.sh
#
# Makes its own environment in .venv-bridge; everything else goes to bridge_smollm2/. A second run reuses what is there;
# remove bridge_smollm2/ to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. examples/environment.sh

make_environment .venv-bridge tests/locks/bridge.txt
export PATH="$PWD/.venv-bridge/bin:$PATH" OMP_NUM_THREADS=1
out=bridge_smollm2

# run COMMAND...: shows a command, then runs it.
run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# train NAME [key=value...]: a run of the recipe tiny_cpu, and what came of it as a Hugging Face model.
train() {
  local name=$1
  shift
  if [ -d "$out/$name-exported" ]; then return; fi
  run python -m nemo_xtoken.integrations.bridge.run --device cpu tiny_cpu \
    student=$out/student teacher=$out/teacher data.path=$out/data data.validation_path=$out/held_out \
    data.student_sequence_length=128 data.teacher_sequence_length=128 steps=100 optimizer.lr=3e-3 \
    train.eval_interval=50 train.eval_iters=4 "checkpoint.save=$out/$name" "checkpoint.load=$out/$name" \
    "logger.tensorboard_dir=$out/$name/tensorboard" "$@"
  run python -m nemo_xtoken.integrations.bridge.to_hugging_face --device cpu "$out/$name" $out/student "$out/$name-exported"
}

run python examples/bridge_smollm2.py $out
train distilled
train control 'teachers=[]'
run python examples/bits_per_byte.py $out/held_out.jsonl $out/teacher $out/distilled-exported $out/control-exported
