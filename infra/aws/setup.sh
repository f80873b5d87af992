#!/usr/bin/env bash
# Run once per AWS account: setup.sh 203.0.113.7/32
# Creates the roles and instance profiles of cluster.yaml and of the pods on EKS, and a security group that admits its
# own members, and ssh from the given address.
set -euo pipefail
cd "$(dirname "$0")"
ssh_from=${1:?"give the address from which ray up connects, such as 203.0.113.7/32"}

# make_role ROLE POLICY...: create a role for instances and pods, with these policies.
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

# Every role may read; none may delete or replace objects.
make_role camworker-reader reader                 # summarize, verify, preview, export
make_role camworker-worker reader worker          # creates parts
make_role camworker-driver reader driver          # the head pod on EKS: plans, writes the ledger
make_role camworker-head reader driver launcher   # the head of cluster.yaml: also starts the other machines

group=$(aws ec2 create-security-group --group-name camworker --description "Ray clusters of camworker" \
    --query GroupId --output text)
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol=-1 --source-group "$group" >/dev/null
aws ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 22 --cidr "$ssh_from" >/dev/null
echo "security group $group: write it into cluster.yaml"
