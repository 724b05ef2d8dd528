#!/bin/bash
# `molecule test` in every role that has a scenario, three at a time, each line with its role; fails if one of them does.
# They share nothing on the host. The one that boots a guest is the longest and begins first.
set -euo pipefail
cd "$(dirname "$0")/../roles"

scenario() {
  set -o pipefail
  echo "$1: molecule test"
  (cd "$1" && molecule test 2>&1) | sed --unbuffered "s/^/$1: /"
}
export -f scenario
roles=(guests)
for folder in */molecule/default; do
  [[ $folder == guests/* ]] || roles+=("${folder%%/*}")
done
printf '%s\n' "${roles[@]}" | xargs --max-procs=3 --replace bash -c 'scenario {}'
