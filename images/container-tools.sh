#!/usr/bin/env bash
# Install the named programs from Debian's archive, or say what is missing and fail.
set -euo pipefail
missing=()
for tool in "$@"; do command -v "${tool/#iproute2/ip}" >/dev/null || missing+=("$tool"); done
if [ "$(id -u)" = 0 ] && [ ${#missing[@]} -gt 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
elif [ "$(id -u)" != 0 ] || [ ${#missing[@]} -gt 0 ]; then
  printf 'error: tests/images need root and %s\n\nhint: as root on Debian, apt-get install %s\n' "$*" "$*" >&2
  exit 2
fi
