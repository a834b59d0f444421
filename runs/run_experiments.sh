#!/usr/bin/env bash
# The accuracy runs of this research, by the names people are used to. Each is one call of runs/accuracy.py.
#
#   runs/run_experiments.sh all -m smollm2 -n 20
#   runs/run_experiments.sh binding -m tiny -n 200
#   runs/run_experiments.sh boolean -m Qwen/Qwen3-8B -n 100 -- --backend vllm --scoring logits
set -euo pipefail

usage() {
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  echo "usage: $0 all|range|boolean|integer|binding|exceptions [-m MODEL] [-n PROGRAMS] [-- OPTIONS OF runs/accuracy.py]"
}

[ $# -gt 0 ] || { usage >&2; exit 2; }
which=$1; shift
model=tiny
number=100
while getopts "m:n:h" option; do
  case $option in
    m) model=$OPTARG ;;
    n) number=$OPTARG ;;
    h) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
done
shift $((OPTIND - 1))

root=$(cd "$(dirname "$0")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3

run() {  # name of the MLflow experiment, options
  local name=$1; shift
  echo "== $name"
  "$python" "$root/runs/accuracy.py" --name "$name" --models "$model" --num-seqs "$number" "$@"
}

range() { run range_tracking --task range --seq-lens 2 3 4 5 6 "$@"; }
boolean() { run boolean_logic --task boolean --seq-lens 1 2 3 4 5 6 "$@"; }
integer() { run integer_arithmetic --task integer --seq-lens 1 2 3 4 5 6 "$@"; }
binding() { run variable_binding --task variable_binding --hops 1 2 3 4 --seq-lens 5 17 "$@"; }
exceptions() { run exception_handling --task exception --seq-lens 1 2 3 4 "$@"; }

case $which in
  range | boolean | integer | binding | exceptions) "$which" "$@" ;;
  all)
    failed=()
    for each in range boolean integer binding exceptions; do
      "$each" "$@" || { code=$?; [ $code -ne 130 ] || exit 130; failed+=("$each"); }
    done
    [ ${#failed[@]} -eq 0 ] || { echo "could not be run on $model: ${failed[*]}" >&2; exit 2; }
    ;;
  -h | --help) usage ;;
  *) usage >&2; exit 2 ;;
esac
