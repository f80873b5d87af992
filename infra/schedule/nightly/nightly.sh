#!/bin/sh
# Creates the RayJob in the file $1, waits for its end, and exits with its exit code.
# The RayJob is named after the Job of this pod, one per night, and is deleted with it. A pod that replaces an evicted
# one finds the RayJob and waits for it.
set -eu

# The name differs from that of the Job, because KubeRay creates a Job with the name of the RayJob.
name="$JOB_NAME-run"
rayjob="rayjobs.ray.io/$name"
pause=${PAUSE:-30}

# Prints fields of the RayJob, or nothing if it does not exist. Fails if the API server does not answer.
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
    # Keep waiting while the API server does not answer: ending here would let the next night start.
    state=$(fields '{.kind} {.status.jobDeploymentStatus} {.status.jobStatus}') || state=unknown
    case $state in
    "RayJob Complete SUCCEEDED") exit 0 ;;
    "RayJob Complete "* | *Failed*) break ;;  # complete with another status: the job was stopped
    "") echo "$rayjob was deleted" && exit 1 ;;
    esac
    sleep "$pause"
done

# The message of Ray is "Job entrypoint command failed with exit code 3, last available logs ...".
message=$(fields '{.status.message}')
echo "$state: $message"
code=$(printf '%s\n' "$message" | sed -n 's/.*failed with exit code \([0-9]*\).*/\1/p' | head -n 1)
exit "${code:-1}"
