#!/usr/bin/env bash
# Install Chromium and its driver from Debian's archive, or say what is missing; the tests in tests/browser that need
# them then fail, each with its reason.
set -uo pipefail
packages=(chromium chromium-driver fonts-dejavu-core)
missing() {
  for tool in chromium chromedriver; do command -v "$tool" >/dev/null || echo "$tool"; done
}
if [ -n "$(missing)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  exec 9</var/lib/apt && flock 9 # one apt-get at a time
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
left=$(missing)
[ -z "$left" ] && exit 0
printf 'warning: missing are %s: tests/browser will fail\n\n' "${left//$'\n'/, }" >&2
printf 'hint: as root on Debian, apt-get install %s\n' "${packages[*]}" >&2
