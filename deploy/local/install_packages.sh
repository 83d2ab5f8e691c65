#!/usr/bin/env bash
# Installs the system packages that are missing, and only those: `install_packages.sh [COMMAND_OR_FILE=PACKAGE …]`.
# Names them first. The daemons that they bring are neither started nor left to start with the machine.
set -euo pipefail

missing=()
units=()
if ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && ! command -v initdb >/dev/null; then
    missing+=(postgresql)
    units+=(postgresql)
fi
if ! command -v redis-server >/dev/null; then
    missing+=(redis-server)
    units+=(redis-server)
fi
if [ ! -x /usr/lib/rabbitmq/bin/rabbitmq-server ] && ! command -v rabbitmq-server >/dev/null; then
    missing+=(rabbitmq-server)
    units+=(rabbitmq-server epmd.service epmd.socket)
fi
python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    missing+=(python3 python3-venv)
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "SkyHigh needs Python 3.11 or newer; $("$python" --version) is here. make PYTHON=… names another." >&2
    exit 1
elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    missing+=(python3-venv)
fi
for more in "$@"; do
    sign=${more%%=*}
    [ -e "$sign" ] || command -v "$sign" >/dev/null || missing+=("${more#*=}")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "SkyHigh needs these system packages, which are missing here: ${missing[*]}"
if ! command -v apt-get >/dev/null; then
    echo "Install them with this system's package manager, then run make again." >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=()
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo -n)
else
    echo "That takes root or passwordless sudo. Have somebody run: apt-get install ${missing[*]}" >&2
    exit 1
fi

# Debian starts daemons when it installs them, unless this file says no. One that is there already is not ours.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
fi
# Where one of many sources is away, what we need may still be there.
"${as_root[@]}" apt-get update -qq || true
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
if [ -d /run/systemd/system ] && [ ${#units[@]} -gt 0 ]; then
    "${as_root[@]}" systemctl disable --quiet --now "${units[@]}" || true
fi
echo "Installed: ${missing[*]}"
