#!/usr/bin/env bash
# Train on TPU slices of Google Kubernetes Engine, as a JobSet (launch/gke_jobset.yaml).
#
#   launch/gke.sh create --name N --type v5litepod --topology 16x16 --image I [--slices K] [--spot]
#                        -- train --config FILE --workdir gs://BUCKET/RUN ...
#   launch/gke.sh status --name N                      restarts, pods
#   launch/gke.sh logs   --name N                      of process 0, as they come
#   launch/gke.sh delete --name N [--confirm N]        what create made, and nothing else
#   launch/gke.sh create-pool --name N --type tpu7x --topology 4x4x4 --cluster C --region R --zone Z
#                        [--slices K] [--spot] [--project P]      node pools N-0, N-1 ..., a slice each
#   launch/gke.sh delete-pool --name N [--confirm N]   what create-pool made, and nothing else
#
#   --type T        v4, v5litepod, v5p, v6e or tpu7x
#   --topology T    of a slice, such as 4x4 (v5litepod, v6e) or 2x2x4 (the others)
#   --image I       built from launch/tpu.Dockerfile and pushed where the cluster can read it
#   --restarts K    of the whole run, at most (default 100)
#   --namespace S   of Kubernetes (default: kubectl's own)
#   --dry-run       print the manifest and the commands, and run none
#
# create notes what it made in runs/.launch/NAME.gke, create-pool in NAME.pool; the others only work
# on what is noted there. Slices of tpu7x with several machines get a workload policy, N, which
# replaces the topology of the node pools of other types; they need GKE 1.34.0-gke.2201000 or later.
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
  create | status | logs | delete | create-pool | delete-pool) shift ;;
  --help | -h) help && exit 0 ;;
  *) fail "the first word must be create, status, logs, delete, create-pool or delete-pool, not '$command'" ;;
esac

name='' type='' topology='' image='' slices=1 spot=false restarts=100 namespace=''
confirm='' dry_run='' arguments=() made='' cluster='' region='' zone='' project=''
while (($#)); do
  case $1 in
    --name | --type | --topology | --image | --slices | --restarts | --namespace | --confirm | --cluster | --region | --zone | --project)
      (($# > 1)) || fail "$1 needs a value"
      case $1 in
        --name) matches "$1" "$2" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' 'lower-case letters, digits and -' && name=$2 ;;
        --type) matches "$1" "$2" 'v4|v5litepod|v5e|v5p|v6e|tpu7x' 'v4, v5litepod, v5p, v6e or tpu7x' && type=$2 made=$2 ;;
        --topology) matches "$1" "$2" '[1-9][0-9]?(x[1-9][0-9]?){1,2}' 'a topology such as 16x16' && topology=$2 made=$2 ;;
        --image) matches "$1" "$2" '[A-Za-z0-9][-A-Za-z0-9./:@_]*' 'the name of an image' && image=$2 made=$2 ;;
        --slices) matches "$1" "$2" '[1-9][0-9]{0,3}' 'a whole number, at least 1' && slices=$2 made=$2 ;;
        --restarts) matches "$1" "$2" '(0|[1-9][0-9]{0,5})' 'a whole number' && restarts=$2 made=$2 ;;
        --namespace) matches "$1" "$2" '[a-z]([-a-z0-9]*[a-z0-9])?' 'the name of a namespace' && namespace=$2 made=$2 ;;
        --cluster) matches "$1" "$2" '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' 'the name of a cluster' && cluster=$2 made=$2 ;;
        --region) matches "$1" "$2" '[a-z]+-[a-z]+[0-9]+' 'a region such as us-central1' && region=$2 made=$2 ;;
        --zone) matches "$1" "$2" '[a-z]+-[a-z]+[0-9]+-[a-z]' 'a zone such as us-central1-a' && zone=$2 made=$2 ;;
        --project) matches "$1" "$2" '[a-z][-a-z0-9:.]+' 'the id of a project' && project=$2 made=$2 ;;
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

ending=gke made_by=create
[[ $command != *-pool ]] || ending=pool made_by=create-pool
note=${CLIP_JAX_NOTES:-runs/.launch}/$name.$ending
needs() { # NAMES of what the command must be given
  local option
  for option in "$@"; do [[ -n ${!option} ]] || fail "--$option is missing"; done
  [[ ! -e $note ]] || fail "$note exists: '$name' was created before; delete it first, or take another name"
}
if [[ $command == create ]]; then
  needs type topology image
  [[ -z $cluster$region$zone$project ]] || fail "only create-pool takes --cluster, --region, --zone and --project"
  ((${#arguments[@]})) || fail "nothing to run: give -- train --config FILE --workdir gs://BUCKET/RUN"
  [[ " ${arguments[*]} " =~ \ --workdir[=\ ](gs://|/) ]] || fail "--workdir must be a bucket (gs://...) or a folder that all pods share"
elif [[ $command == create-pool ]]; then
  needs type topology cluster region zone
  [[ -z $image$namespace ]] || fail "only create takes --image and --namespace"
elif [[ -e $note ]]; then
  [[ -z $made ]] || fail "$command takes --name, --confirm and --dry-run alone; it reads the others from $note"
  # shellcheck source=/dev/null
  source "$note"
else
  fail "$note does not exist: ${made_by} made no '$name'"
fi
program=kubectl
[[ $command != *-pool ]] || program=gcloud
[[ -n $dry_run ]] || command -v $program >/dev/null || fail "$program is not installed"
kubectl=(kubectl)
[[ -z $namespace ]] || kubectl+=(--namespace "$namespace")

layout() { # sets `accelerator`, `machine`, `chips` (of a host) and `hosts` (of a slice)
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
  case $type in
    v4) machine=ct4p-hightpu ;;
    v5litepod | v5e) machine=ct5lp-hightpu ;;
    v5p) machine=ct5p-hightpu ;;
    v6e) machine=ct6e-standard ;;
    tpu7x) machine=tpu7x-standard ;;
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
  local text accelerator machine chips hosts field
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

where=(--region "$region")
[[ -z $project ]] || where+=(--project "$project")
policy() { # VERB ARGUMENTS...
  local what=$1
  shift
  run gcloud compute resource-policies "$what" "$@" "${where[@]}"
}
make_pools() {
  local accelerator machine chips hosts number shape=()
  layout
  if ((hosts > 1)); then
    shape=(--tpu-topology "$topology")
    if [[ $type == tpu7x ]]; then
      shape=(--placement-policy "$name")
      policy create workload-policy "$name" --type HIGH_THROUGHPUT --accelerator-topology "$topology"
    fi
  fi
  [[ $spot != true ]] || shape+=(--spot)
  for ((number = 0; number < slices; number++)); do
    run gcloud container node-pools create "$name-$number" --cluster "$cluster" "${where[@]}" \
      --node-locations "$zone" --machine-type "$machine-${chips}t" --num-nodes "$hosts" \
      ${shape[@]+"${shape[@]}"}
  done
}
delete_pools() {
  local accelerator machine chips hosts number
  layout
  for ((number = 0; number < slices; number++)); do
    run gcloud container node-pools delete "$name-$number" --cluster "$cluster" "${where[@]}" --quiet
  done
  if [[ $type == tpu7x ]] && ((hosts > 1)); then policy delete "$name" --quiet; fi
}
confirmed() { # WHAT is about to be deleted
  [[ -z $dry_run && $confirm != "$name" ]] || return 0
  printf 'This deletes %s. Type its name to continue: ' "$1" >&2
  read -r confirm || true
  [[ $confirm == "$name" ]] || fail "'$confirm' is not '$name': nothing is deleted"
}

case $command in
  create-pool)
    if [[ -z $dry_run ]]; then # before, because a pool that fails half-way is to be deleted as well
      mkdir -p "$(dirname "$note")"
      for variable in type topology slices cluster region zone project; do
        printf '%s=%q\n' "$variable" "${!variable}"
      done >"$note"
    fi
    make_pools
    ;;
  delete-pool)
    confirmed "the $slices node pools $name-0 ... of the cluster $cluster"
    delete_pools
    [[ -n $dry_run ]] || rm "$note"
    ;;
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
    confirmed "the JobSet $name and its pods"
    run "${kubectl[@]}" delete jobset "$name"
    [[ -n $dry_run ]] || rm "$note"
    ;;
esac
