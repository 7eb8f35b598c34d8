#!/usr/bin/env bash
# Finds Chromium or Chrome, or installs Debian's chromium, for the browser test. Prints the path that the test will take.
#   install_chromium.sh          find, else install
#   install_chromium.sh --find   find only: exits 1 and says why when there is none
# Without a browser the test is skipped with the reason printed here; with CI set, this script fails instead.
set -u

find_browser() {
    local name
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        command -v "$name" && return 0
    done
    for name in "/Applications/Chromium.app/Contents/MacOS/Chromium" \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        [ -x "$name" ] && echo "$name" && return 0
    done
    return 1
}

give_up() {
    echo "no Chromium: $1"
    [ "${2:-}" = find ] || [ -n "${CI:-}" ] || exit 0
    exit 1
}

find_browser && exit 0
[ "${1:-}" = --find ] && give_up "neither chromium nor google-chrome is on the PATH" find
command -v apt-get >/dev/null || give_up "this system has no apt-get; install Chromium or Chrome by hand"

if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    give_up "installing it takes root: sudo apt-get install chromium fonts-dejavu-core"
fi

echo "installing chromium and one small font with apt-get"
log=$(mktemp)
if ! { "${as_root[@]}" apt-get update -qq &&
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >"$log" 2>&1; then
    tail -n 5 "$log"
    give_up "apt-get could not install it"
fi
find_browser || give_up "apt-get installed chromium, but it is not on the PATH"
