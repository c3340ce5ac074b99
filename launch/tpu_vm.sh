#!/usr/bin/env bash
# Train on Cloud TPU VMs: one host, a pod slice, or several slices; on demand, spot or queued.
#
#   launch/tpu_vm.sh create --name N --zone Z --type v5litepod-256 [--spot] [--queued] [--slices K]
#   launch/tpu_vm.sh setup  --name N                     copy this code there and install it
#   launch/tpu_vm.sh run    --name N -- train --config FILE --workdir gs://BUCKET/RUN ...
#   launch/tpu_vm.sh watch  --name N [--recreate K]      until the run is complete or has failed
#   launch/tpu_vm.sh status --name N                     state of the machines, last lines of the log
#   launch/tpu_vm.sh delete --name N [--confirm N]       what create made, and nothing else
#
#   --project P     of Google Cloud (default: gcloud's own)
#   --version V     of the TPU's software (default: by the type)
#   --recreate K    times that watch creates preempted machines again, at most (default 50)
#   --interval S    seconds between two looks of watch (default 60)
#   --dry-run       print the commands, and run none
#
# create notes what it made in runs/.launch/NAME.tpu (or the folder CLIP_JAX_NOTES); all other commands only work on what is noted
# there. A run restarts itself on its machines (launch/local.sh); watch is for lost machines.
set -euo pipefail
cd "$(dirname "$0")/.."

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "launch/tpu_vm.sh"; }
fail() {
  printf 'tpu_vm.sh: %s (see --help)\n' "$*" >&2
  exit 2
}
log() { printf 'tpu_vm.sh: %s\n' "$*" >&2; }
run() { # a command that changes something
  if [[ -n $dry_run ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}
matches() { # OPTION VALUE PATTERN MEANING
  [[ $2 =~ ^($3)$ ]] || fail "$1=$2 must be $4"
}

command=${1-}
case $command in
  create | setup | run | watch | status | delete) shift ;;
  --help | -h) help && exit 0 ;;
  *) fail "the first word must be create, setup, run, watch, status or delete, not '$command'" ;;
esac

name='' zone='' type='' project='' version='' spot='' queued='' slices=1
recreate=50 interval=60 confirm='' dry_run='' arguments=()
while (($#)); do
  case $1 in
    --name | --zone | --type | --project | --version | --slices | --recreate | --interval | --confirm)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --name) matches "$1" "$2" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' 'lower-case letters, digits and -' && name=$2 ;;
        --zone) matches "$1" "$2" '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-west4-a' && zone=$2 ;;
        --type) matches "$1" "$2" '(v[0-9]+[a-z]*|v5litepod|tpu7x)-[0-9]+' 'a type such as v5litepod-256' && type=$2 ;;
        --project) matches "$1" "$2" '[a-z][-a-z0-9:.]+' 'the id of a project' && project=$2 ;;
        --version) matches "$1" "$2" '[a-z0-9][-a-z0-9.]+' 'a software version' && version=$2 ;;
        --slices) matches "$1" "$2" '[1-9][0-9]{0,3}' 'a whole number, at least 1' && slices=$2 ;;
        --recreate) matches "$1" "$2" '[0-9]{1,6}' 'a whole number' && recreate=$2 ;;
        --interval) matches "$1" "$2" '[0-9]{1,6}' 'whole seconds' && interval=$2 ;;
        --confirm) confirm=$2 ;;
      esac
      shift 2
      ;;
    --spot) spot=yes && shift ;;
    --queued) queued=yes && shift ;;
    --dry-run) dry_run=yes && shift ;;
    --help | -h) help && exit 0 ;;
    --) shift && arguments=("$@") && break ;;
    *) fail "unknown option $1" ;;
  esac
done
[[ -n $name ]] || fail "--name is missing"
[[ $command == run || ${#arguments[@]} -eq 0 ]] || fail "only run takes what stands after --"

note=${CLIP_JAX_NOTES:-runs/.launch}/$name.tpu
if [[ $command == create ]]; then
  [[ -n $zone ]] || fail "--zone is missing"
  [[ -n $type ]] || fail "--type is missing"
  [[ ! -e $note ]] || fail "$note exists: '$name' was created before; delete it first, or take another name"
  # Google's Cloud TPU API serves types up to v6e; TPU7x is made by GKE or Compute Engine.
  [[ $type != tpu7x-* ]] || fail "--type=$type: the Cloud TPU API does not serve TPU7x; launch/gke.sh makes it"
  if ((slices > 1)) && [[ -z $queued ]]; then fail "--slices=$slices needs --queued"; fi
  case $type in
    v5litepod-* | v5e-*) version=${version:-v2-alpha-tpuv5-lite} ;;
    v5p-*) version=${version:-v2-alpha-tpuv5} ;;
    v6e-*) version=${version:-v2-alpha-tpuv6e} ;;
    v4-* | v3-* | v2-*) version=${version:-tpu-ubuntu2204-base} ;;
  esac
  [[ -n $version ]] || fail "--version is missing: none is known for --type=$type"
elif [[ -e $note ]]; then
  [[ -z $zone$type$project$version$spot$queued ]] || fail "only create takes --zone, --type, --project, --version, --spot and --queued; the others read them from $note"
  # shellcheck source=/dev/null
  source "$note"
else
  fail "$note does not exist: create made no '$name'"
fi
[[ -n $dry_run ]] || command -v gcloud >/dev/null || fail "gcloud is not installed"

where=(--zone "$zone")
[[ -z $project ]] || where+=(--project "$project")
tpu=(gcloud compute tpus)

nodes() { # one name a line
  local number
  if ((slices == 1)); then
    echo "$name"
  else
    for ((number = 0; number < slices; number++)); do echo "$name-$number"; done
  fi
}
on_hosts() { # COMMAND, on every host of every slice
  local node
  for node in $(nodes); do
    run "${tpu[@]}" tpu-vm ssh "$node" "${where[@]}" --worker=all --command "$1" || return
  done
}

make() {
  local flags=()
  [[ -z $spot ]] || flags=(--spot)
  if [[ -z $queued ]]; then
    run "${tpu[@]}" tpu-vm create "$name" "${where[@]}" \
      --accelerator-type "$type" --version "$version" ${flags[@]+"${flags[@]}"}
    return
  fi
  if ((slices == 1)); then
    flags+=(--node-id "$name")
  else
    flags+=(--node-count "$slices" --node-prefix "$name")
  fi
  run "${tpu[@]}" queued-resources create "$name" "${where[@]}" \
    --accelerator-type "$type" --runtime-version "$version" "${flags[@]}"
}
unmake() {
  if [[ -n $queued ]]; then
    run "${tpu[@]}" queued-resources delete "$name" "${where[@]}" --force --quiet
  else
    run "${tpu[@]}" tpu-vm delete "$name" "${where[@]}" --quiet
  fi
}
state() { # READY, CREATING, PREEMPTED ...; MISSING; or UNKNOWN, where Google Cloud could not be asked
  local words=(tpu-vm describe) field='value(state)' errors
  [[ -z $queued ]] || words=(queued-resources describe) field='value(state.state)'
  errors=$(mktemp)
  if ! "${tpu[@]}" "${words[@]}" "$name" "${where[@]}" --format="$field" 2>"$errors"; then
    if grep -q NOT_FOUND "$errors"; then
      echo MISSING
    else
      log "asking again in $interval s, as gcloud said: $(tail -n 1 "$errors")"
      echo UNKNOWN
    fi
  fi
  rm "$errors"
}

install() {
  local code node
  code=$(mktemp -d)/clip_jax.tar.gz
  tar -czf "$code" --exclude=__pycache__ clip_jax configs launch clip_jax_command.py setup.py pyproject.toml README.md LICENSE
  for node in $(nodes); do
    run "${tpu[@]}" tpu-vm scp "$code" "$node:clip_jax.tar.gz" "${where[@]}" --worker=all || return
  done
  rm -r "$(dirname "$code")"
  on_hosts 'set -e; mkdir -p clip_jax && tar -xzf clip_jax.tar.gz -C clip_jax && cd clip_jax
    command -v python3.11 || { sudo apt-get update -q && sudo apt-get install -yq python3.11-venv; }
    [ -d .venv ] || python3.11 -m venv .venv
    .venv/bin/pip install -q -e ".[tpu]" gcsfs'
}
start() { # the run that is noted; on every host, apart from this connection
  on_hosts "cd clip_jax && rm -f code && { PATH=\$PWD/.venv/bin:\$PATH nohup setsid bash -c \
'launch/local.sh --restarts 1000 -- \"\$@\"; echo \$? > code' run $run_arguments \
>> ../clip_jax.log 2>&1 < /dev/null & echo \$! > pid; }"
}

watch() {
  local found code made=0
  # shellcheck disable=SC2016 # the other machine is to expand it
  local look='cd clip_jax; cat code 2>/dev/null || { kill -0 $(cat pid) && echo runs || echo 75; } 2>/dev/null'
  while :; do
    found=$(state)
    case $found in
      READY | ACTIVE)
        code=$("${tpu[@]}" tpu-vm ssh "$(nodes | head -n 1)" "${where[@]}" --worker=0 \
          --command "$look" 2>/dev/null || echo unknown)
        case $code in
          0) log "the run is complete" && return 0 ;;
          runs | unknown) ;;
          75) log "the run has stopped on its machines, and is started again" && { start || true; } ;;
          *) log "the run has failed with exit code $code; status shows its log" && return 1 ;;
        esac
        ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED | FAILED | MISSING)
        ((made < recreate)) || { log "created again $made times, which is all of --recreate" && return 75; }
        made=$((made + 1))
        log "$name is $found: creating it again, $made of $recreate"
        if ! { [[ $found == MISSING ]] || unmake; } || ! make; then
          log "that failed, and is tried again" && sleep "$interval" && continue
        fi
        until found=$(state) && [[ $found == READY || $found == ACTIVE ]]; do
          [[ $found != FAILED ]] || { log "$name cannot be made" && return 1; }
          sleep "$interval"
        done
        until install && start; do
          log "that failed, and is tried again" && sleep "$interval"
          found=$(state)
          [[ $found == READY || $found == ACTIVE || $found == UNKNOWN ]] || break
        done
        ;;
    esac
    sleep "$interval"
  done
}

case $command in
  create)
    make
    [[ -n $dry_run ]] && exit 0
    mkdir -p "$(dirname "$note")"
    for variable in zone type project version spot queued slices; do
      printf '%s=%q\n' "$variable" "${!variable}"
    done >"$note"
    log "noted in $note; next: launch/tpu_vm.sh setup --name $name"
    ;;
  setup) install ;;
  run)
    ((${#arguments[@]})) || fail "nothing to run: give -- train --config FILE --workdir gs://BUCKET/RUN"
    [[ " ${arguments[*]} " =~ \ --workdir[=\ ](gs://|/) ]] || fail "--workdir must be a bucket (gs://...) or a folder that all hosts share"
    run_arguments=$(printf '%q ' "${arguments[@]}")
    start
    [[ -n $dry_run ]] || printf 'run_arguments=%q\n' "$run_arguments" >>"$note"
    ;;
  watch)
    [[ -n ${run_arguments-} ]] || fail "nothing runs there: start it with run"
    if [[ -n $dry_run ]]; then
      log "every $interval s: describe $name; where it was preempted, these, at most $recreate times"
      unmake && make && install && start
    else
      watch
    fi
    ;;
  status)
    run "${tpu[@]}" tpu-vm list "${where[@]}" --filter "name:$name"
    on_hosts 'hostname; tail -n 3 clip_jax.log'
    ;;
  delete)
    if [[ -z $dry_run && $confirm != "$name" ]]; then
      printf 'This deletes %s in %s, with its disks. Type its name to continue: ' "$name" "$zone" >&2
      read -r confirm || true
      [[ $confirm == "$name" ]] || fail "'$confirm' is not '$name': nothing is deleted"
    fi
    unmake
    [[ -n $dry_run ]] || rm "$note"
    ;;
esac
