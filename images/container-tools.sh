#!/usr/bin/env bash
# Install the named programs from Debian's archive, or say why tests/images are left out. In CI that is a failure.
set -euo pipefail
missing=()
for tool in "$@"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
if [ "$(id -u)" = 0 ] && [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
elif [ "$(id -u)" != 0 ] || [ ${#missing[@]} -gt 0 ]; then
  printf 'tests/images are left out: they need root and %s\nhint: as root on Debian, apt-get install %s\n' "$*" "$*" >&2
  [ -z "${CI:-}" ]
fi
