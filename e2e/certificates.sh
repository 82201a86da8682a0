#!/bin/bash
# Makes the keys, certificates and kubeconfigs of a cluster: certificates.sh DIRECTORY SERVER [NAME...]
# SERVER is the API server's URL; the NAMEs (IP:… or DNS:…) are those it is reached by.
set -euo pipefail
directory=$1 server=$2
shift 2
names=$(IFS=,; echo "$*")
mkdir -p "$directory"
cd "$directory"

# certify FILE SUBJECT EXTENSION
certify() {
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$2" -keyout "$1.key" -out "$1.csr"
	openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days 60 -extfile <(echo "$3") -out "$1.crt"
}

kubeconfig() {
	cat > "$1.kubeconfig" <<- CONFIG
		apiVersion: v1
		kind: Config
		current-context: it
		contexts: [{name: it, context: {cluster: it, user: it}}]
		clusters: [{name: it, cluster: {server: "$server", certificate-authority: $directory/ca.crt}}]
		users: [{name: it, user: {client-certificate: $directory/$1.crt, client-key: $directory/$1.key}}]
	CONFIG
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 60 -subj /CN=authority -keyout ca.key -out ca.crt
# The API server signs tokens of service accounts with it.
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out accounts.key
certify server /CN=kube-apiserver "subjectAltName=$names"
certify front-proxy-client /CN=front-proxy-client extendedKeyUsage=clientAuth
certify admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
kubeconfig admin
for program in portolan-proxy portolan-dns; do
	certify $program /CN=system:serviceaccount:kube-system:$program extendedKeyUsage=clientAuth
	kubeconfig $program
done
