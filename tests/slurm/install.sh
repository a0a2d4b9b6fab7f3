#!/usr/bin/env bash
# Install what tests/slurm needs: Slurm, munge, and a database for the tests with accounting. For Debian and Ubuntu, as root.
set -euo pipefail
packages=(slurm-wlm munge slurmdbd mariadb-server)
if ! dpkg-query -W -f='${Status}\n' "${packages[@]}" 2>/dev/null | grep -vq 'install ok installed' &&
  dpkg-query -W "${packages[@]}" >/dev/null 2>&1; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "tests/slurm/install.sh: needs root, to install ${packages[*]}" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq -o DPkg::Lock::Timeout=300
# Daemons are started by the tests, never by the packages.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.distillery
chmod +x /usr/sbin/policy-rc.d.distillery
if [ -e /usr/sbin/policy-rc.d ]; then
  rm /usr/sbin/policy-rc.d.distillery
else
  mv /usr/sbin/policy-rc.d.distillery /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
apt-get install -y -qq -o DPkg::Lock::Timeout=300 --no-install-recommends "${packages[@]}" >/dev/null
