#!/usr/bin/env python3
"""The load balancers of a cloud, for the official tests: load_balancer.py PKI-DIRECTORY API-SERVER, beyond the nodes.

Gives Services of type LoadBalancer an address of 172.19.0.0/16 (ipMode VIP) and routes it to the nodes: to all of them, or with
externalTrafficPolicy Local to those whose health check node port answers 200. Finalizer and status are kept as the service
controller of cloud-provider keeps them.
"""

import http.client
import json
import ssl
import subprocess
import sys
import time
import urllib.request

FINALIZER = "service.kubernetes.io/load-balancer-cleanup"
# The tests take an address of the nodes' subnet for one that was translated, so clients out here have another.
CLIENT = "8.8.8.8"
INTERVAL = 0.5


class Api:
    """The API server, as cluster administrator."""

    def __init__(self, pki, url):
        self.url = url
        self.tls = ssl.create_default_context(cafile=pki + "/ca.crt")
        self.tls.load_cert_chain(pki + "/admin.crt", pki + "/admin.key")

    def request(self, path, method="GET", body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/merge-patch+json"}
        request = urllib.request.Request(self.url + path, method=method, data=data, headers=headers)
        with urllib.request.urlopen(request, context=self.tls, timeout=10) as answer:
            return json.load(answer)

    def patch(self, path, body):
        self.request(path, "PATCH", body)


def path_of(service):
    meta = service["metadata"]
    return f"/api/v1/namespaces/{meta['namespace']}/services/{meta['name']}"


def wants_balancer(service):
    spec = service["spec"]
    return (
        spec["type"] == "LoadBalancer"
        and "deletionTimestamp" not in service["metadata"]
        and not spec.get("loadBalancerClass")
    )


def ingress_address(service):
    return service["status"].get("loadBalancer", {}).get("ingress", [{}])[0].get("ip")


def is_healthy(node, port):
    try:
        connection = http.client.HTTPConnection(node, port, timeout=0.5)
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False


class Balancer:
    """Addresses by the Service's uid, and the routes that lead to them."""

    def __init__(self, api):
        self.api = api
        self.given = {}
        self.routes = {}
        self.next = 1

    def give(self, service):
        """Returns the Service's address, and writes it into its status."""
        meta = service["metadata"]
        finalizers = meta.get("finalizers", [])
        if FINALIZER not in finalizers:
            self.api.patch(path_of(service), {"metadata": {"finalizers": finalizers + [FINALIZER]}})
        if meta["uid"] not in self.given:
            wanted = service["spec"].get("loadBalancerIP") or ingress_address(service)
            self.given[meta["uid"]] = wanted or f"172.19.{self.next // 250}.{self.next % 250 + 1}"
            self.next += 1
        address = self.given[meta["uid"]]
        if ingress_address(service) != address:
            ingress = [{"ip": address, "ipMode": "VIP"}]
            self.api.patch(path_of(service) + "/status", {"status": {"loadBalancer": {"ingress": ingress}}})
        return address

    def take(self, service):
        """Takes the address of a Service that no longer wants one."""
        finalizers = service["metadata"].get("finalizers", [])
        if FINALIZER not in finalizers:
            return
        if ingress_address(service):
            self.api.patch(path_of(service) + "/status", {"status": {"loadBalancer": {"ingress": None}}})
        rest = [finalizer for finalizer in finalizers if finalizer != FINALIZER]
        self.api.patch(path_of(service), {"metadata": {"finalizers": rest}})
        self.given.pop(service["metadata"]["uid"], None)

    def targets(self, service, nodes):
        """Returns the nodes that the Service's address leads to."""
        spec = service["spec"]
        if spec.get("externalTrafficPolicy") == "Local":
            nodes = [node for node in nodes if is_healthy(node, spec["healthCheckNodePort"])]
        # A client stays with a node; others are spread by ports, as clouds do.
        return nodes[:1] if spec.get("sessionAffinity") == "ClientIP" else nodes

    def route(self, wanted):
        # Packets for an address without a route of its own are lost: cluster.sh sees to it.
        wanted = {address: nodes for address, nodes in wanted.items() if nodes}
        for address in set(self.routes) - set(wanted):
            ip_route("del", address + "/32")
            del self.routes[address]
        for address, nodes in wanted.items():
            if self.routes.get(address) != nodes:
                hops = [word for node in nodes for word in ("nexthop", "via", node)]
                ip_route("replace", address + "/32", "src", CLIENT, *hops)
                self.routes[address] = nodes

    def sync(self):
        nodes = [
            address["address"]
            for node in self.api.request("/api/v1/nodes")["items"]
            for address in node["status"]["addresses"]
            if address["type"] == "InternalIP" and ":" not in address["address"]
        ]
        wanted = {}
        for service in self.api.request("/api/v1/services")["items"]:
            if wants_balancer(service):
                wanted[self.give(service)] = self.targets(service, nodes)
            else:
                self.take(service)
        self.route(wanted)


def ip_route(*words):
    done = subprocess.run(["ip", "route", *words], capture_output=True, text=True, check=False)
    print("ip route", *words, done.stderr.strip(), flush=True)


def main():
    balancer = Balancer(Api(sys.argv[1], sys.argv[2]))
    while True:
        try:
            balancer.sync()
        except (OSError, KeyError) as error:  # urllib's errors are OSErrors
            print("trying again:", repr(error), flush=True)
        time.sleep(INTERVAL)


main()
