#!/usr/bin/env bash
# Distils a small model into another tokenizer, from two published tokenizers to an HTML report, on two CPU cores.
#
#   examples/quickstart.sh [--full-vocab]
#
# Makes its own environment in .venv; everything else goes to quickstart/. A second run reuses what is there; remove
# quickstart/ to start over. --full-vocab keeps both vocabularies whole (100,000 and 150,000 tokens), which takes hours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. examples/environment.sh

usage() {
  echo "usage: examples/quickstart.sh [--full-vocab]" >&2
  exit 2
}

# quoted WORD...: the words as one would type them.
quoted() {
  local word line=
  for word in "$@"; do
    [[ $word == *[^A-Za-z0-9_./=:,-]* ]] && word="'$word'"
    line+=" $word"
  done
  echo "${line# }"
}

# step TITLE
step() { printf '\n%s== %s%s\n' "$bold" "$1" "$plain"; }

# run COMMAND...: shows a command, then runs it.
run() {
  printf '\n%s$ %s%s\n' "$bold" "$(quoted "$@")" "$plain"
  "$@"
}

# make FILE COMMAND...: runs a command that makes FILE, unless FILE is there.
make() {
  local file=$1
  shift
  if [ -e "$file" ]; then
    printf '\n%s$ %s%s\n%s is there already\n' "$bold" "$(quoted "$@")" "$plain" "$file"
  else
    run "$@"
  fi
}

out=quickstart
case "$#:${1:-}" in
  0:) ;;
  1:--full-vocab) out=quickstart/full-vocab ;;
  *) usage ;;
esac
bold= plain=
if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
sentence='In 2024 the bakery sold 1288 loaves at €3.75 each, 201 more than the year before.'

make_environment .venv tests/locks/base.txt
export PATH="$PWD/.venv/bin:$PATH" OMP_NUM_THREADS=1

step '1. Two tokenizers that disagree on numerals, and a text'
run python examples/fetch_tokenizers.py quickstart/tokenizers
make quickstart/text/prompts.jsonl python examples/make_text.py quickstart/text
student='quickstart/tokenizers/cl100k_base.tiktoken?pattern=cl100k'
teacher='quickstart/tokenizers/qwen.tiktoken?pattern=qwen'

step '2. One sentence, cut twice'
run nemo-xtoken align --student "$student" --teacher "$teacher" --sentence "$sentence"

if [ "$out" = quickstart ]; then
  step 'Only the tokens that the text uses, to be fast on two cores'
  training=(quickstart/text/teacher_train.jsonl quickstart/text/student_train.jsonl)
  make quickstart/tokenizers/student.tiktoken \
    python examples/cut_vocabulary.py "$student" "${training[@]}" --out quickstart/tokenizers/student.tiktoken
  make quickstart/tokenizers/teacher.tiktoken \
    python examples/cut_vocabulary.py "$teacher" "${training[@]}" --out quickstart/tokenizers/teacher.tiktoken
  student='quickstart/tokenizers/student.tiktoken?pattern=cl100k'
  teacher='quickstart/tokenizers/teacher.tiktoken?pattern=qwen'
fi

step '3. Which teacher tokens each student token stands for'
make "$out/projection.safetensors" \
  nemo-xtoken projection build --student "$student" --teacher "$teacher" --out "$out/projection.safetensors"
run nemo-xtoken projection audit "$out/projection.safetensors"

step '4. Text to aligned data'
run nemo-xtoken data prepare quickstart/text/teacher_train.jsonl --student "$teacher" --out "$out/data/teacher_train"
for part in student_train heldout; do
  run nemo-xtoken data prepare "quickstart/text/$part.jsonl" --student "$student" --teacher "$teacher" --out "$out/data/$part"
done

step '5. The teacher, the student, and the same student without a teacher: two processes, tensor parallel'
teacher_overrides=() student_overrides=() control_overrides=(teachers=[])
if [ "$out" != quickstart ]; then
  teacher_overrides=("run_dir=$out/teacher" "data.path=$out/data/teacher_train")
  student_overrides=("run_dir=$out/distilled" "data.path=$out/data/student_train"
    "teachers.0.checkpoint=$out/teacher" "teachers.0.projection=$out/projection.safetensors")
  control_overrides+=("data.path=$out/data/student_train")
fi
run nemo-xtoken train examples/quickstart_teacher.yaml "${teacher_overrides[@]}"
run nemo-xtoken train examples/quickstart.yaml "${student_overrides[@]}"
run nemo-xtoken train examples/quickstart.yaml "${control_overrides[@]}" "run_dir=$out/control"

step '6. What came of it, on text that none of them has read'
for name in distilled control; do
  # A run that was trained further is evaluated again.
  if [ "$out/$name/metrics.jsonl" -nt "$out/$name/evaluation.json" ]; then rm -f "$out/$name/evaluation.json"; fi
  make "$out/$name/evaluation.json" \
    nemo-xtoken evaluate "$out/$name" --data "$out/data/heldout" --prompts quickstart/text/prompts.jsonl
done
run python examples/compare_runs.py "$out/distilled" "$out/control"
run nemo-xtoken report "$out/distilled" --control "$out/control" --sentence "$sentence"
