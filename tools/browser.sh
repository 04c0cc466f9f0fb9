#!/bin/sh
# A Chromium for tests/browser, by the system's packages. Whatever happens, this ends well: without one those tests are skipped.
for name in "${CHROMIUM:-chromium}" chromium-browser google-chrome-stable google-chrome chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
  echo "tests/browser: installing Debian's package chromium"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  if { apt-get -qq update && apt-get -qq install --yes --no-install-recommends chromium; } >"$log" 2>&1; then
    rm -f "$log"
    exit 0
  fi
  tail -n 3 "$log"
  rm -f "$log"
fi
echo "tests/browser will be skipped: no Chromium. Get one by \`sudo apt-get install chromium\`, or name one: CHROMIUM=/path/to/chrome make test"
