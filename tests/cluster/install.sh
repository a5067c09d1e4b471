#!/bin/bash
# Install real SLURM and OAR from Debian's packages (Debian 12, as root). Starts no daemon:
# slurm_up.sh and oar_up.sh start private ones. Also creates the tests' unprivileged user.
set -euo pipefail
USER_NAME=${DPEVAL_TEST_USER:-dpevaltest}
export DEBIAN_FRONTEND=noninteractive
packages=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core
  oar-server oar-server-pgsql oar-node oar-user oar-user-pgsql
  openssh-server openssh-client postgresql
  bindfs iproute2) # a file system that caches as NFS does, and jobs without internet
missing=()
for p in "${packages[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
if [ ${#missing[@]} -gt 0 ]; then
  # A policy-rc.d that exits with 101 keeps the packages from starting their daemons.
  made_policy=0
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
    made_policy=1
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [ $made_policy = 0 ] || rm -f /usr/sbin/policy-rc.d
fi
id "$USER_NAME" >/dev/null 2>&1 || useradd --create-home --shell /bin/bash "$USER_NAME"
echo "installed: SLURM $(dpkg-query -W -f '${Version}' slurmctld), OAR $(dpkg-query -W -f '${Version}' oar-server)"
