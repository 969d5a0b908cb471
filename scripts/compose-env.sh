#!/usr/bin/env bash
# Writes deploy/.env for deploy/compose.yaml: new secrets, and the address by which browsers and containers both reach
# this machine. Leaves a file that is there alone.
#
#   scripts/compose-env.sh [ADDRESS]     default: the address of this machine's way out
set -euo pipefail
cd "$(dirname "$0")/.."

file=deploy/.env
[ ! -e "$file" ] || { echo "$file is there already; delete it for new secrets (the old database goes with the old ones)" >&2; exit 0; }
host=${1:-$(python3 -c '
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect(("192.0.2.1", 9))  # sends nothing; the kernel chooses the interface
    print(s.getsockname()[0])')}
random() { python3 -c 'import secrets; print(secrets.token_hex(32))'; }
umask 077
cat >"$file.new" <<ENV
HONE_HOST=$host
HONE_API_KEY=hone_sk_$(random)
POSTGRES_PASSWORD=$(random)
AWS_ACCESS_KEY_ID=hone
AWS_SECRET_ACCESS_KEY=$(random)
TOKEN_SIGNING_KEY=$(random)
TRAINER_SERVICE_TOKEN=$(random)
ENV
mv "$file.new" "$file"
echo "$file: http://$host:8700; the API key is HONE_API_KEY in it"
