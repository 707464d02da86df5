#!/usr/bin/env bash
# Install Prometheus, Pushgateway and Alertmanager from Debian's archive, or say what is missing; the tests that need
# them then fail, each with its reason. Where systemd runs, Debian would start them as services: that is left to you.
set -uo pipefail
packages=(prometheus prometheus-pushgateway prometheus-alertmanager)
missing() {
  for tool in "${packages[@]}" promtool; do command -v "$tool" >/dev/null || echo "$tool"; done
}
if [ -n "$(missing)" ] && [ "$(id -u)" = 0 ] && [ ! -d /run/systemd/system ] && command -v apt-get >/dev/null; then
  exec 9</var/lib/apt && flock 9 # one apt-get at a time
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
left=$(missing)
[ -z "$left" ] && exit 0
printf 'warning: missing are %s: tests/monitoring will fail\n\n' "${left//$'\n'/, }" >&2
printf 'hint: as root on Debian, apt-get install %s\n' "${packages[*]}" >&2
