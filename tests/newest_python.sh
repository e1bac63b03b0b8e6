#!/usr/bin/env bash
# Prints the newest Python of this machine that is newer than $1 (python3), and nothing where none is.
set -uo pipefail
own=$("${1:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit 1
folder=$(pyenv root 2>/dev/null)/versions
for version in 3.13 3.12; do
  [ "${version#3.}" -le "${own#3.}" ] && exit
  for found in "python$version" "$folder/$version".*/bin/python; do
    # A name is no proof: pyenv puts one on the PATH for versions that it does not run.
    "$found" -c "import ensurepip, sys, venv; print(sys.executable)" 2>/dev/null && exit
  done
done
exit 0
