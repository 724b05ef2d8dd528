#!/bin/sh
# `molecule test` in every role that has a scenario; stops at the first that fails.
set -eu
cd "$(dirname "$0")/../roles"
for scenario in */molecule/default; do
  role=${scenario%%/*}
  echo "molecule test: $role"
  (cd "$role" && molecule test)
done
