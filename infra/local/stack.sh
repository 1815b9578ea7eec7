#!/bin/sh
# An S3 object store (SeaweedFS) and an MLflow server on this machine, for one person or for trying things out.
#
#   infra/local/stack.sh up      start both; everything they keep is below local-stack/
#   infra/local/stack.sh env     print the variables that make histolake use them:  eval "$(infra/local/stack.sh env)"
#   infra/local/stack.sh down    stop both; what they keep stays
#
# Both listen on loopback only. The store's key is made at the first start and kept in local-stack/keys. Settings:
# STACK_DIR (default local-stack), S3_PORT (8333), MLFLOW_PORT (5000). The store is the package of the extra "store".
set -eu
here=$(cd "$(dirname "$0")/../.." && pwd)
dir=${STACK_DIR:-local-stack}
s3_port=${S3_PORT:-8333}
mlflow_port=${MLFLOW_PORT:-5000}
bin=${BIN:-$here/.venv/bin}
PATH="$bin:$PATH"

keys() {
    mkdir -p "$dir"
    if [ ! -f "$dir/keys" ]; then
        (umask 077 && python -c 'import secrets; print("histolake", secrets.token_hex(20))' >"$dir/keys")
    fi
    read -r access secret <"$dir/keys"
}

wait_for() { # NAME URL PID
    tries=0
    until python -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=2)' "$2" >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 60 ] || ! kill -0 "$3" 2>/dev/null; then
            echo "error: $1 did not start, see $dir/$1.log" >&2
            exit 1
        fi
        sleep 1
    done
    echo "$1 answers at $2" >&2
}

running() { [ -f "$dir/$1.pid" ] && kill -0 "$(cat "$dir/$1.pid")" 2>/dev/null; }

up() {
    keys
    mkdir -p "$dir/objects"
    if ! running store; then
        (umask 077 && cat >"$dir/store.json" <<JSON
{"identities": [{"name": "histolake", "credentials": [{"accessKey": "$access", "secretKey": "$secret"}],
  "actions": ["Admin", "Read", "List", "Tagging", "Write"]}]}
JSON
)
        # Ports of the parts that only talk to each other follow the S3 port, so that two stacks can stand side by side.
        weed -logdir="$dir" server -dir="$dir/objects" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
            -master.port=$((s3_port + 1000)) -volume.port=$((s3_port + 1100)) -filer -filer.port=$((s3_port + 1200)) \
            -master.volumeSizeLimitMB=256 -volume.max=0 -master.telemetry=false -master.electionTimeout=1s \
            -volume.preStopSeconds=0 -s3 -s3.port="$s3_port" -s3.port.iceberg=0 -s3.port.lance=0 \
            -s3.config="$dir/store.json" >"$dir/store.log" 2>&1 &
        echo $! >"$dir/store.pid"
    fi
    wait_for store "http://127.0.0.1:$s3_port/healthz" "$(cat "$dir/store.pid")"
    eval "$(show_env)"
    python - <<'PYTHON'
import os, boto3, botocore.exceptions
client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
try:
    client.head_bucket(Bucket="histolake")
except botocore.exceptions.ClientError:
    client.create_bucket(Bucket="histolake")
PYTHON
    if ! running mlflow; then
        # Job execution off: it would start seven consumers that nothing here uses (2 GB of memory).
        MLFLOW_S3_ENDPOINT_URL="$AWS_ENDPOINT_URL" MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true \
            python -m mlflow server --host 127.0.0.1 --port "$mlflow_port" --workers 1 \
            --backend-store-uri "sqlite:///$(cd "$dir" && pwd)/mlflow.db" --artifacts-destination s3://histolake/mlflow \
            >"$dir/mlflow.log" 2>&1 &
        echo $! >"$dir/mlflow.pid"
    fi
    wait_for mlflow "http://127.0.0.1:$mlflow_port/health" "$(cat "$dir/mlflow.pid")"
    echo "use them:  eval \"\$(infra/local/stack.sh env)\"" >&2
}

show_env() {
    keys
    cat <<ENV
export AWS_ACCESS_KEY_ID=$access AWS_SECRET_ACCESS_KEY=$secret AWS_REGION=us-east-1
export AWS_ENDPOINT_URL=http://127.0.0.1:$s3_port
export HISTOLAKE_LAKE=s3://histolake/lake HISTOLAKE_TRACKING__URI=http://127.0.0.1:$mlflow_port
ENV
}

down() {
    for name in mlflow store; do
        if running $name; then
            pid=$(cat "$dir/$name.pid")
            kill "$pid"
            # The store drains for up to half a minute.
            tries=0
            while kill -0 "$pid" 2>/dev/null && [ $tries -lt 60 ]; do
                tries=$((tries + 1))
                sleep 1
            done
            echo "$name stopped" >&2
        fi
        rm -f "$dir/$name.pid"
    done
}

case "${1:-}" in
up) up ;;
env) show_env ;;
down) down ;;
*)
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
