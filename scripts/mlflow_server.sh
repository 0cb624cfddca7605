#!/usr/bin/env bash
# An MLflow tracking server for trying it out, on this machine alone: 127.0.0.1, SQLite, artifacts by proxy.
#
#     scripts/mlflow_server.sh [DIR] [--port N] [--store URI] [--auth]
#
# DIR          where its database and its artifacts go (default: mlflow-server)
# --port N     default: 5000
# --store URI  another database in place of SQLite, e.g. postgresql://user:password@host/name
# --auth       with MLflow's basic auth: user admin, password from MLFLOW_AUTH_ADMIN_PASSWORD
#              (needs Flask-WTF: pip install 'mlflow[auth]')
#
# It prints the line to type where noisebench runs. Ctrl-C stops it.
set -euo pipefail

folder=mlflow-server port=5000 store="" auth=""
while (($#)); do
    case $1 in
        --port) port=${2:?--port: a number is missing} && shift 2 ;;
        --store) store=${2:?--store: an address is missing} && shift 2 ;;
        --auth) auth=1 && shift ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" && exit ;;
        -*) echo "error: $1 is no option; see $0 --help" >&2 && exit 2 ;;
        *) folder=$1 && shift ;;
    esac
done
has() { python -c "import sys; from importlib.util import find_spec; sys.exit(not find_spec('$1'))"; }
if ! has flask || ! has mlflow; then
    echo "error: this Python has no MLflow server: pip install mlflow" >&2
    exit 2
fi
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
case ${store:=sqlite:///$folder/mlflow.db} in
    postgresql://*)
        # Which driver the bare name means depends on SQLAlchemy's version.
        driver=$(python -c "
from importlib.util import find_spec
print(next(filter(find_spec, ('psycopg2', 'psycopg')), ''))")
        if [[ -z $driver ]]; then
            echo "error: PostgreSQL needs psycopg2: pip install 'noisebench[postgres]'" >&2
            exit 2
        fi
        store=postgresql+$driver://${store#postgresql://}
        ;;
esac

options=()
if [[ $auth ]]; then
    if ! has flask_wtf; then
        echo "error: --auth needs Flask-WTF: pip install 'mlflow[auth]'" >&2
        exit 2
    fi
    if [[ ${#MLFLOW_AUTH_ADMIN_PASSWORD} -lt 12 ]]; then
        echo "error: --auth: set MLFLOW_AUTH_ADMIN_PASSWORD, 12 characters or more, before the first start" >&2
        exit 2
    fi
    umask 077
    printf '[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///%s/users.db\nadmin_username = admin\n%s\n' \
        "$folder" "authorization_function = mlflow.server.auth:authenticate_request_basic_auth" >"$folder/auth.ini"
    export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini
    export MLFLOW_FLASK_SERVER_SECRET_KEY=${MLFLOW_FLASK_SERVER_SECRET_KEY:-$(python -c 'import secrets; print(secrets.token_hex())')}
    options+=(--app-name basic-auth)
fi

# Neither jobs nor telemetry: a tracking server needs none, and they are ten processes more.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
echo "Where noisebench runs:"
echo "    export MLFLOW_TRACKING_URI=http://127.0.0.1:$port"
[[ -z $auth ]] || echo "    export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=...   # MLFLOW_AUTH_ADMIN_PASSWORD"
echo "Its database and its artifacts: $folder. Ctrl-C stops it."
exec python -m mlflow server --host 127.0.0.1 --port "$port" --workers 2 --backend-store-uri "$store" \
    --serve-artifacts --artifacts-destination "$folder/artifacts" "${options[@]}"
