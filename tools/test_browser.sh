#!/bin/sh
# The tests of the web page in a real browser, and what they need: Playwright in .venv, Chromium as Debian packages it or as
# Playwright has fetched it, axe-core in build/browser. What is missing is fetched; what cannot be is named, and its tests say
# that they do not run.
#
# usage: tools/test_browser.sh PYTHON [pytest's arguments]
set -eu

python=$1
shift
cd "$(dirname "$0")/.."
folder=$PWD/build/browser
mkdir -p "$folder"

if ! "$python" -c 'import playwright' 2>/dev/null; then
    tools/with_progress.sh "installing Playwright into .venv" \
        "$python" -m pip install --disable-pip-version-check --progress-bar off --editable '.[dev-browser]'
fi
has_chromium() {
    "$python" tests/browser/chromium.py >/dev/null 2>&1
}
if ! has_chromium && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    tools/with_progress.sh "installing Debian's chromium" \
        sh -c 'apt-get -q -q update && apt-get -q -q --yes --no-install-recommends install chromium fonts-dejavu-core' || true
fi
if ! has_chromium; then
    echo "no Chromium here, so these tests are skipped; \`apt-get install chromium\` as root or \`$python -m playwright install" \
        "chromium\` installs one" >&2
fi
if [ ! -e "$folder/package/axe.min.js" ]; then
    if command -v npm >/dev/null; then
        (cd "$folder" && npm pack --silent axe-core@4 >/dev/null && tar -xzf axe-core-*.tgz package/axe.min.js) ||
            echo "axe-core cannot be fetched from npm" >&2
    else
        echo "no npm here, which fetches axe-core" >&2
    fi
fi
exec "$python" -m pytest -m browser tests/browser "$@"
