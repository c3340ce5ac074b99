#!/usr/bin/env bash
# Train on TPU slices of Google Kubernetes Engine, as a JobSet (launch/gke_jobset.yaml).
#
#   launch/gke.sh create --name N --type v5litepod --topology 16x16 --image I [--slices K] [--spot]
#                        -- train --config FILE --workdir gs://BUCKET/RUN ...
#   launch/gke.sh status --name N                      restarts, pods
#   launch/gke.sh logs   --name N                      of process 0, as they come
#   launch/gke.sh delete --name N [--confirm N]        what create made, and nothing else
#
#   --type T        v4, v5litepod, v5p, v6e or tpu7x
#   --topology T    of a slice, such as 4x4 (v5litepod, v6e) or 2x2x4 (the others)
#   --image I       built from launch/tpu.Dockerfile and pushed where the cluster can read it
#   --restarts K    of the whole run, at most (default 100)
#   --namespace S   of Kubernetes (default: kubectl's own)
#   --dry-run       print the manifest and the commands, and run none
#
# create notes what it made in runs/.launch/NAME.gke; the others only work on what is noted there.
# Exit code 75 and lost nodes start all pods again, 1, 2 and 130 end the run (docs/faults.md).
set -euo pipefail
cd "$(dirname "$0")/.."

help() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "launch/gke.sh"; }
fail() {
  printf 'gke.sh: %s (see --help)\n' "$*" >&2
  exit 2
}
log() { printf 'gke.sh: %s\n' "$*" >&2; }
run() {
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
  create | status | logs | delete) shift ;;
  --help | -h) help && exit 0 ;;
  *) fail "the first word must be create, status, logs or delete, not '$command'" ;;
esac

name='' type='' topology='' image='' slices=1 spot=false restarts=100 namespace=''
confirm='' dry_run='' arguments=() made=''
while (($#)); do
  case $1 in
    --name | --type | --topology | --image | --slices | --restarts | --namespace | --confirm)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --name) matches "$1" "$2" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' 'lower-case letters, digits and -' && name=$2 ;;
        --type) matches "$1" "$2" 'v4|v5litepod|v5e|v5p|v6e|tpu7x' 'v4, v5litepod, v5p, v6e or tpu7x' && type=$2 made=$2 ;;
        --topology) matches "$1" "$2" '[1-9][0-9]?(x[1-9][0-9]?){1,2}' 'a topology such as 16x16' && topology=$2 made=$2 ;;
        --image) matches "$1" "$2" '[A-Za-z0-9][-A-Za-z0-9./:@_]*' 'the name of an image' && image=$2 made=$2 ;;
        --slices) matches "$1" "$2" '[1-9][0-9]{0,3}' 'a whole number, at least 1' && slices=$2 made=$2 ;;
        --restarts) matches "$1" "$2" '(0|[1-9][0-9]{0,5})' 'a whole number' && restarts=$2 made=$2 ;;
        --namespace) matches "$1" "$2" '[a-z]([-a-z0-9]*[a-z0-9])?' 'the name of a namespace' && namespace=$2 made=$2 ;;
        --confirm) confirm=$2 ;;
      esac
      shift 2
      ;;
    --spot) spot=true made=yes && shift ;;
    --dry-run) dry_run=yes && shift ;;
    --help | -h) help && exit 0 ;;
    --) shift && arguments=("$@") && break ;;
    *) fail "unknown option $1" ;;
  esac
done
[[ -n $name ]] || fail "--name is missing"
[[ $command == create || ${#arguments[@]} -eq 0 ]] || fail "only create takes what stands after --"

note=${CLIP_JAX_NOTES:-runs/.launch}/$name.gke
if [[ $command == create ]]; then
  [[ -n $type ]] || fail "--type is missing"
  [[ -n $topology ]] || fail "--topology is missing"
  [[ -n $image ]] || fail "--image is missing"
  [[ ! -e $note ]] || fail "$note exists: '$name' was created before; delete it first, or take another name"
  ((${#arguments[@]})) || fail "nothing to run: give -- train --config FILE --workdir gs://BUCKET/RUN"
  [[ " ${arguments[*]} " =~ \ --workdir[=\ ](gs://|/) ]] || fail "--workdir must be a bucket (gs://...) or a folder that all pods share"
elif [[ -e $note ]]; then
  [[ -z $made ]] || fail "only create takes more than --name, --confirm and --dry-run; the others read it from $note"
  # shellcheck source=/dev/null
  source "$note"
else
  fail "$note does not exist: create made no '$name'"
fi
[[ -n $dry_run ]] || command -v kubectl >/dev/null || fail "kubectl is not installed"
kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=(--namespace "$namespace")

layout() { # sets `accelerator`, `chips` (of a host) and `hosts` (of a slice)
  local sides side total=1
  IFS=x read -r -a sides <<<"$topology"
  for side in "${sides[@]}"; do total=$((total * side)); done
  case $type in
    v5litepod | v5e | v6e) ((${#sides[@]} == 2)) || fail "--topology=$topology must have two sides for --type=$type" ;;
    *) ((${#sides[@]} == 3)) || fail "--topology=$topology must have three sides for --type=$type" ;;
  esac
  case $type in
    v4) accelerator=tpu-v4-podslice ;;
    v5litepod | v5e) accelerator=tpu-v5-lite-podslice ;;
    v5p) accelerator=tpu-v5p-slice ;;
    v6e) accelerator=tpu-v6e-slice ;;
    tpu7x) accelerator=tpu7x ;;
  esac
  chips=4
  # Up to eight chips of the two flat kinds are one machine; larger slices are machines of four.
  if ((${#sides[@]} == 2 && total <= 8)); then chips=$total; fi
  ((total % chips == 0)) || fail "--topology=$topology is not made of machines of $chips chips"
  hosts=$((total / chips))
}

json() { # ARGUMENTS, as a list of strings
  local word out=''
  for word in "$@"; do
    [[ ! $word =~ [[:cntrl:]] ]] || fail "an argument of clip-jax has a line break or another control character"
    word=${word//\\/\\\\}
    out+=", \"${word//\"/\\\"}\""
  done
  printf '[%s]' "${out#, }"
}

manifest() {
  local text accelerator chips hosts field
  layout
  text=$(<launch/gke_jobset.yaml)
  for field in "NAME $name" "RESTARTS $restarts" "SLICES $slices" "HOSTS $hosts" "CHIPS $chips" \
    "ACCELERATOR $accelerator" "TOPOLOGY $topology" "IMAGE $image" "SPOT $spot"; do
    text=${text//"@${field%% *}@"/"${field#* }"}
  done
  # Spot machines alone have the label; the others have none to choose by.
  [[ $spot == true ]] || text=$(grep -v 'gke-spot: ' <<<"$text")
  # Last, because an argument may hold what looks like a field.
  printf '%s\n' "${text/"@ARGUMENTS@"/"$(json "${arguments[@]}")"}"
}

case $command in
  create)
    text=$(manifest)
    if [[ -n $dry_run ]]; then
      printf '%s\n' "$text"
      printf '# | '
      run "${kubectl[@]}" create -f -
      exit 0
    fi
    # Unlike apply, create changes nothing that is there already.
    "${kubectl[@]}" create -f - <<<"$text"
    mkdir -p "$(dirname "$note")"
    printf 'namespace=%q\n' "$namespace" >"$note"
    log "noted in $note; launch/gke.sh logs --name $name shows what it does"
    ;;
  status)
    run "${kubectl[@]}" get jobset "$name" --output wide
    run "${kubectl[@]}" get pods --selector "jobset.sigs.k8s.io/jobset-name=$name" --output wide
    ;;
  logs)
    run "${kubectl[@]}" logs --follow --tail 100 --container clip-jax --selector \
      "jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete)
    if [[ -z $dry_run && $confirm != "$name" ]]; then
      printf 'This deletes the JobSet %s and its pods. Type its name to continue: ' "$name" >&2
      read -r confirm || true
      [[ $confirm == "$name" ]] || fail "'$confirm' is not '$name': nothing is deleted"
    fi
    run "${kubectl[@]}" delete jobset "$name"
    [[ -n $dry_run ]] || rm "$note"
    ;;
esac
