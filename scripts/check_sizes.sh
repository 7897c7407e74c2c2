#!/usr/bin/env bash
# Fail where a file to be committed is larger than 12 MB.
set -euo pipefail
status=0
for file in "$@"; do
  size=$(wc -c <"$file")
  if [ "$size" -gt 12000000 ]; then
    echo "error: $file: $size bytes; at most 12,000,000 are kept in the repository" >&2
    status=1
  fi
done
exit $status
