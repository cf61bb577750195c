#!/usr/bin/env bash
# From nothing to the tables: ./run.sh DATA [MODEL ...], MODEL of gemma3 and smollm2, both by default.
#
# DATA has nli/ and sts/ (docs/evaluation.md says how STS files are named). Each stage goes on where it was stopped: run
# this again. About two hours a training on two cores; everything comes to lie under $WORK_DIR.
set -euo pipefail

data=$1; shift
models=("$@"); [ $# -gt 0 ] || models=(gemma3 smollm2)
work=${WORK_DIR:-work/real-models}
here=$(cd "$(dirname "$0")" && pwd)
lacos=${LACOS:-lacos-st}
english=("$data/nli/triplets.en.jsonl.gz")
others=("$data/nli/triplets.en.jsonl.gz@0.1" "$work/across.jsonl.gz@0.7")
for language in ar de es fr hi pt ru tr zh id ko vi; do others+=("$data/nli/triplets.$language.jsonl.gz@0.15"); done

mkdir -p "$work"
[ -f "$work/across.jsonl.gz" ] || "${PYTHON:-python}" "$here/across.py" "$data/nli" "$work/across.jsonl.gz"
for name in "${models[@]}"; do
  case $name in
    gemma3) base=gemma3-270m ;;
    smollm2) base=$work/smollm2; "${PYTHON:-python}" "$here/fetch.py" "$base" ;;
  esac
  for kind in en multilingual; do
    [ "$kind" = en ] && sources=("${english[@]}") || sources=("${others[@]}")
    [ -f "$work/$name-$kind/modules.json" ] ||
      $lacos train --config "$here/$name-$kind.yaml" --base "$base" --train-data "${sources[@]}" --output "$work/$name-$kind"
  done
  $lacos evaluate "$base" "$work/$name-en" "$work/$name-multilingual" --data-dir "$data/sts" --output "$work/results-$name"
done
