#!/usr/bin/env bash
# Source files stay below 500 lines; what a program generated (schema.rs, fixtures) is excepted.
set -euo pipefail
cd "$(dirname "$0")/.."
long=$(git ls-files --cached --others --exclude-standard -- '*.rs' '*.py' '*.sh' '*.ts' '*.tsx' |
  grep -v -e '/schema\.rs$' -e '/generated/' -e '/fixtures/' |
  while read -r file; do
    if [ -f "$file" ]; then
      lines=$(wc -l <"$file")
      [ "$lines" -le 500 ] || echo "$lines $file"
    fi
  done)
if [ -n "$long" ]; then
  printf 'files over 500 lines (find the seam and split them):\n%s\n' "$long" >&2
  exit 1
fi
