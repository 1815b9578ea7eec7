#!/bin/sh
# Make the Python environment that every `make` target uses, or reuse the one that is there.
#
#   infra/environment.sh [FOLDER]     default .venv, in the repository's root
#
# It needs Python 3.11 or 3.12 (name one with PYTHON=/path/to/python) and the package index that pip is set up with.
# The environment is kept for as long as pyproject.toml and constraints.txt stay as they are: a stamp inside it holds
# their checksum. torch goes in first, by itself, so that pip takes the build (CPU or CUDA) that its own settings offer.
set -eu
cd "$(dirname "$0")/.."
folder=${1:-.venv}
stamp="$folder/histolake-environment"
wanted=$(cat pyproject.toml constraints.txt infra/environment.sh | cksum)

say() { printf '%s\n' "$*" >&2; }

# A name on the PATH may be a launcher for a Python that is not there: only one that runs counts.
fits() {
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if fits "$candidate"; then
            printf '%s' "$candidate"
            return 0
        fi
    done
    say "error: no Python 3.11 or 3.12 that runs was found (tried: ${PYTHON:-python3.11 python3.12 python3 python})." \
        "Install one, or name it: make ${MAKECMDGOALS:-setup} PYTHON=/path/to/python3.11"
    return 1
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && fits "$folder/bin/python"; then
    say "environment: $folder fits pyproject.toml and constraints.txt, reusing it."
    exit 0
fi

python=$(find_python)
if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    say "error: $python has no venv module; on Debian and Ubuntu it is the package python3-venv."
    exit 1
fi
torch=$(grep '^torch==' constraints.txt)

say "environment: setting up $folder with $("$python" --version) ($python). This happens once."
say "  1. an empty virtual environment"
say "  2. $torch, the build that pip's settings offer (about 0.8 GB as a CPU build, several GB as the CUDA build)"
say "  3. histolake with its other dependencies, the versions of constraints.txt (about 2.5 GB)"
say "  Two to five minutes where the packages are near; longer over a slow line."
if [ -f "$folder/pyvenv.cfg" ] && fits "$folder/bin/python"; then
    say "[1/3] $folder is there: bringing it up to date"
    rm -f "$stamp"
else
    say "[1/3] making $folder"
    "$python" -m venv --clear "$folder"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
say "[2/3] installing $torch"
"$folder/bin/python" -m pip install "$torch"
say "[3/3] installing histolake and what it needs"
"$folder/bin/python" -m pip install --constraint constraints.txt --editable '.[dev,store]'
printf '%s\n' "$wanted" >"$stamp"
say "environment: $folder is ready."
