#!/usr/bin/env bash
# From text to a packed base: ./run.sh [DATA_DIR]. Without DATA_DIR the text comes from the Hub.
#
# Each stage reads what the ones before left in $WORK_DIR, and goes on where it was stopped: run this again. After a
# change to the text or the tokenizer take another $WORK_DIR. The result is $OUTPUT.
set -euo pipefail

work=${WORK_DIR:-work/bloom-mini}
output=${OUTPUT:-$work/packed}
size=(--work-dir "$work" --hidden "${HIDDEN:-256}" --batch "${BATCH:-2048}")
folder=$(cd "$(dirname "$0")" && pwd)

stage() { "${PYTHON:-python}" "$folder/$1.py" "${@:2}"; }

[ -f "$work/texts.parquet" ] || stage collect --work-dir "$work" ${1:+--data-dir "$1"} --words "${WORDS:-30000}"
[ -d "$work/tokenizer" ] || stage tokenizer --work-dir "$work" --vocabulary "${VOCABULARY:-57344}"
stage teach first --work-dir "$work" ${FIRST_TEACHER:+--model "$FIRST_TEACHER"}
stage teach second --work-dir "$work" ${SECOND_TEACHER:+--model "$SECOND_TEACHER"}
# Token vectors first, which see most sentences in least time; then layers over them.
stage distil static "${size[@]}" --steps "${STATIC_STEPS:-1000}" --english 0.35 --singles 0.4 \
  --lr-table 0.03 --matrix 10 --near 1 --loudness 4
stage distil deep "${size[@]}" --layers "${LAYERS:-3}" --steps "${DEEP_STEPS:-8600}" --lr 1.5e-3 --lr-table 1.5e-3 \
  --cooldown 0.8 --words 1 --english 0.4 --singles 0.12 --keep 0.65 --near 50 --round --loudness 2
stage retrofit "$work/deep" "$work/retrofitted" --work-dir "$work"
stage pack base "$work/retrofitted" --work-dir "$work" --output "$output"
