#!/usr/bin/env bash
# Makes, once for an account, what cluster.yaml and the pods on EKS run as: roles, instance profiles and a
# security group that lets in its own members, and ssh from one address: setup.sh 203.0.113.7/32
set -euo pipefail
cd "$(dirname "$0")"
ssh_from=${1:?"give the address that ray up comes from, like 203.0.113.7/32"}

# make_role ROLE POLICY...: a role of instances and of pods, with these policies.
make_role() {
    local role=$1 policy
    shift
    aws iam create-role --role-name "$role" --assume-role-policy-document file://trust.json >/dev/null
    for policy in "$@"; do
        aws iam put-role-policy --role-name "$role" --policy-name "$policy" \
            --policy-document "file://policies/$policy.json"
    done
    aws iam create-instance-profile --instance-profile-name "$role" >/dev/null
    aws iam add-role-to-instance-profile --instance-profile-name "$role" --role-name "$role"
    echo "role and instance profile $role: $*"
}

# Everyone reads; nobody may delete or replace.
make_role camworker-reader reader                 # summarize, verify, preview, export
make_role camworker-worker reader worker          # creates parts
make_role camworker-driver reader driver          # the head pod on EKS: plans, keeps the ledger
make_role camworker-head reader driver launcher   # the head of cluster.yaml: starts the other machines too

group=$(aws ec2 create-security-group --group-name camworker --description "Ray clusters of camworker" \
    --query GroupId --output text)
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol=-1 --source-group "$group" >/dev/null
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$ssh_from" >/dev/null
echo "security group $group: write it into cluster.yaml"
