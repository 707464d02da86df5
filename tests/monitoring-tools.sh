#!/usr/bin/env bash
# Unpack Debian's own Prometheus, Pushgateway and Alertmanager below build/monitoring, unless they are installed.
# Nothing of the system is changed: no service is started, and only `apt-get update` needs root.
# Where that is not possible, say so; the tests that need them then fail, each with its reason.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=build/monitoring
missing() {
  for tool in prometheus prometheus-pushgateway prometheus-alertmanager promtool amtool; do
    command -v "$tool" >/dev/null || [ -x "$folder/usr/bin/$tool" ] || echo "$tool"
  done
}
fetch() {
  (cd "$folder" && apt-get -qq -o APT::Sandbox::User="$(id -un)" download \
    prometheus prometheus-pushgateway prometheus-alertmanager)
}
[ -z "$(missing)" ] && exit 0
if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then
  mkdir -p "$folder"
  fetch 2>/dev/null || { [ "$(id -u)" = 0 ] && apt-get -qq update && fetch; }
  for package in "$folder"/*.deb; do [ -e "$package" ] && dpkg-deb -x "$package" "$folder" && rm "$package"; done
fi
left=$(missing)
if [ -n "$left" ]; then
  printf 'warning: %s cannot be found, and apt could not fetch them: tests/monitoring will fail\n\n' "${left//$'\n'/, }" >&2
  printf 'hint: apt-get install prometheus prometheus-pushgateway prometheus-alertmanager\n' >&2
fi
exit 0
