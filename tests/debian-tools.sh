#!/usr/bin/env bash
# Install packages from Debian's archive when a program is missing, or say which; the tests that need it then fail, each
# with its reason.
#
#   debian-tools.sh TESTS 'PACKAGES' 'PROGRAMS' [no-services]
#
# With no-services nothing is installed where systemd runs, for Debian would start what it installs: that is left to you.
set -uo pipefail
tests=$1 no_services=${4:-}
read -ra packages <<<"$2"
read -ra programs <<<"$3"
missing() {
  for program in "${programs[@]}"; do command -v "$program" >/dev/null || echo "$program"; done
}
if [ -n "$(missing)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null &&
  { [ -z "$no_services" ] || [ ! -d /run/systemd/system ]; }; then
  exec 9</var/lib/apt && flock 9 # one apt-get at a time
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
left=$(missing)
[ -z "$left" ] && exit 0
printf 'warning: missing are %s: %s will fail\n\n' "${left//$'\n'/, }" "$tests" >&2
printf 'hint: as root on Debian, apt-get install %s\n' "${packages[*]}" >&2
