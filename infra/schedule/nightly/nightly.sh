#!/bin/sh
# Creates the RayJob in the file $1, waits for its end and exits as it did.
# It is named after the Job that this pod is of, one for each night, and goes with it. A pod that replaces
# an evicted one finds the RayJob there and waits for it.
set -eu

# Not by the Job's own name: KubeRay gives that of the RayJob to a Job that it makes, which submits the command.
name="$JOB_NAME-run"
rayjob="rayjobs.ray.io/$name"
pause=${PAUSE:-30}

# Prints fields of the RayJob, nothing where there is none; fails where the API server does not answer.
fields() {
    kubectl get "$rayjob" --ignore-not-found --output "jsonpath=$1"
}

until found=$(fields '{.kind}'); do sleep "$pause"; done
if [ -z "$found" ]; then
    kubectl patch --local --filename "$1" --type json --output yaml --patch "[
        {\"op\": \"replace\", \"path\": \"/metadata/name\", \"value\": \"$name\"},
        {\"op\": \"add\", \"path\": \"/metadata/ownerReferences\", \"value\": [
            {\"apiVersion\": \"batch/v1\", \"kind\": \"Job\", \"name\": \"$JOB_NAME\", \"uid\": \"$JOB_UID\"}]}
    ]" | kubectl create --filename -
fi

while true; do
    # An API server that does not answer for a while is no reason to let the next night in.
    state=$(fields '{.kind} {.status.jobDeploymentStatus} {.status.jobStatus}') || state=unknown
    case $state in
    "RayJob Complete SUCCEEDED") exit 0 ;;
    "RayJob Complete "* | *Failed*) break ;;  # Complete with another outcome: it was stopped
    "") echo "$rayjob was deleted" && exit 1 ;;
    esac
    sleep "$pause"
done

# Ray says "Job entrypoint command failed with exit code 3, last available logs ...".
message=$(fields '{.status.message}')
echo "$state: $message"
code=$(printf '%s\n' "$message" | sed -n 's/.*failed with exit code \([0-9]*\).*/\1/p' | head -n 1)
exit "${code:-1}"
