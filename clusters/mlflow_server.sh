#!/usr/bin/env bash
# An MLflow server for the sweeps of this machine, the head of a cluster: PostgreSQL holds the runs, a password opens it, and only
# this machine reaches it.
# Start: clusters/mlflow_server.sh, as `ray up` does on the head; a server that runs already is left alone
# Watch: ray attach ray_cluster.yaml -p 5000, then http://127.0.0.1:5000 on your machine; what to log in with:
#        ray exec ray_cluster.yaml 'cat ~/.mlflow/credentials'
# Stop:  kill -- -"$(cat ~/.mlflow/server.pid)"; runs and files stay
# Cost:  1 GB of memory; the disk that runs and files take
#
# MLFLOW_PORT                     5000
# MLFLOW_ARTIFACTS_DESTINATION    where files go: ~/.mlflow/artifacts, or a store that this machine may write, as s3://BUCKET/FOLDER
# PGHOST, PGPORT                  PostgreSQL's folder of sockets, and its port: /var/run/postgresql, 5432
set -euo pipefail
umask 077                                # what is written here is for this user alone
export PGHOST="${PGHOST:-/var/run/postgresql}" PGPORT="${PGPORT:-5432}"
venv=$(cd "$(dirname "$0")/.." && pwd)/.venv
own=~/.mlflow credentials=~/.mlflow/credentials
port=${MLFLOW_PORT:-5000}
uri=http://127.0.0.1:$port
runs=tailtune_mlflow users=tailtune_mlflow_users
START_S=180

main() {
    install_missing
    mkdir -p "$own"
    [ -s "$credentials" ] || write_credentials
    chmod 600 "$credentials"
    if [ "$(answer /health)" = 000 ]; then
        start_postgresql
        create_databases
        start_server
    fi
    check_who_gets_in
    name_it_to_shells
    echo "MLflow: $uri on this machine; user and password: $credentials"
}

fail() {
    echo "mlflow_server.sh: $*" >&2
    exit 1
}

as_root() (
    umask 022                            # what a package installs is for everybody
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
)

install_missing() {
    [ -x "$venv/bin/mlflow" ] || fail "$venv is missing; run: make .venv/.ready"
    if command -v curl > /dev/null && command -v psql > /dev/null &&
        { pg_isready -q || compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null; }; then
        return
    fi
    local by_hand="PostgreSQL or curl is missing; install both, start PostgreSQL, and run this again"
    command -v apt-get > /dev/null || fail "$by_hand; this machine has no apt-get"
    as_root true 2> /dev/null || fail "$by_hand: sudo apt-get install postgresql curl; sudo does not work here without a password"
    # On a machine that has just booted, others hold the lock for minutes.
    as_root apt-get -qq -o DPkg::Lock::Timeout=300 update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=300 install postgresql curl > /dev/null
}

write_credentials() {
    printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' "$(secret)" > "$credentials"
}

secret() {
    od -An -tx1 -N24 /dev/urandom | tr -d ' \n'
}

# A value of the file in which MLflow's clients look for user and password.
credential() {
    sed -n "s/^mlflow_tracking_$1 *= *//p" "$credentials"
}

# The HTTP status of a path, 000 when nobody answers. curl reads the password from its input, which no list of processes shows.
answer() {
    curl --silent --noproxy '*' --max-time 10 --output /dev/null --write-out '%{http_code}' --config - "$uri$1" || true
} < <([ "${2:-}" = "" ] || printf 'user = "%s:%s"\n' "$(credential username)" "$2")

start_postgresql() {
    pg_isready -q && return
    as_root service postgresql start > /dev/null || fail "PostgreSQL does not start; run: sudo service postgresql start"
    for _ in $(seq 30); do
        pg_isready -q && return
        sleep 1
    done
    fail "PostgreSQL does not answer in $PGHOST on port $PGPORT"
}

# PostgreSQL asks the kernel who connects (`peer`), so its role, named like this user, needs no password.
create_databases() {
    local role name
    role=$(id -un)
    for name in "$runs" "$users"; do
        psql -qd "$name" -c '' 2> /dev/null && continue
        as_postgres psql -qv ON_ERROR_STOP=1 -v role="$role" -v name="$name" << 'SQL' ||
SELECT format('CREATE ROLE %I LOGIN', :'role') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'role') \gexec
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'role')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
SELECT format('REVOKE ALL ON DATABASE %I FROM PUBLIC', :'name') \gexec
SQL
            fail "PostgreSQL makes no database $name for $role; as its superuser run: createuser $role; createdb -O $role $name"
    done
}

as_postgres() {
    (cd / && as_root runuser -u postgres -- env PGHOST="$PGHOST" PGPORT="$PGPORT" "$@")
}

start_server() {
    # Further users see what they are granted, and nothing else.
    printf '[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = postgresql+psycopg2:///%s\nadmin_username = %s\n' \
        "$users" "$(credential username)" > "$own/basic_auth.ini"
    (
        unset MLFLOW_TRACKING_URI
        # Secrets go by the environment, which others cannot read, unlike the words of a command.
        export MLFLOW_AUTH_CONFIG_PATH=$own/basic_auth.ini MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
        MLFLOW_AUTH_ADMIN_PASSWORD=$(credential password) MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret)
        export MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2:///$runs
        export MLFLOW_ARTIFACTS_DESTINATION=${MLFLOW_ARTIFACTS_DESTINATION:-$own/artifacts}
        export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
        exec setsid "$venv/bin/mlflow" server --app-name basic-auth --host 127.0.0.1 --port "$port" --workers 2 \
            --uvicorn-opts --no-access-log < /dev/null > "$own/server.log" 2>&1
    ) &
    local server=$! since=$SECONDS
    echo "$server" > "$own/server.pid"
    until [ "$(answer /health)" = 200 ]; do
        if ! kill -0 "$server" 2> /dev/null || ((SECONDS - since > START_S)); then
            tail -n 30 "$own/server.log" >&2
            kill -- "-$server" 2> /dev/null || true
            fail "MLflow does not answer at $uri; the lines above are the end of $own/server.log"
        fi
        sleep 1
    done
}

check_who_gets_in() {
    local page='/api/2.0/mlflow/experiments/search?max_results=1'
    [ "$(answer "$page")" = 401 ] || fail "what answers at $uri asks for no password; stop it, or choose another MLFLOW_PORT"
    [ "$(answer "$page" "$(credential password)")" = 200 ] || fail "MLflow at $uri does not take the user and password in" \
        "$credentials; put the right ones there, or choose another MLFLOW_PORT. If they are lost, stop the server and give all" \
        "users up: dropdb -h $PGHOST -p $PGPORT $users"
}

# Ray's commands (attach, exec, the start of the head, and so jobs that are submitted) read ~/.bashrc.
name_it_to_shells() {
    local line="export MLFLOW_TRACKING_URI=\${MLFLOW_TRACKING_URI:-$uri}  # clusters/mlflow_server.sh"
    grep -qsxF "$line" ~/.bashrc && return
    touch ~/.bashrc
    sed -i --follow-symlinks '/# clusters\/mlflow_server.sh$/d' ~/.bashrc
    echo "$line" >> ~/.bashrc
}

main
