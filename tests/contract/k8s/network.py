"""What NetworkPolicies let through, by the rules of the API: a selected pod may do what a policy allows, no more."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Peer:
    """A pod with labels in a namespace, or, without a namespace, an address outside."""

    name: str
    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.1.2.3"
    listens: tuple[tuple[str, int], ...] = ()
    """Protocol and port."""


def connections(policies: Sequence[Object], peers: Sequence[Peer], home: str) -> set[tuple[str, str, int]]:
    """Every (from, to, port) that is let through with an end in the namespace `home`."""
    return {
        (source.name, target.name, port)
        for source in peers
        for target in peers
        for protocol, port in target.listens
        if source is not target
        and home in (source.namespace, target.namespace)
        and passes(policies, "Egress", source, target, protocol, port)
        and passes(policies, "Ingress", target, source, protocol, port)
    }


def passes(policies: Sequence[Object], way: str, pod: Peer, other: Peer, protocol: str, port: int) -> bool:
    """Whether a pod may send to another (Egress), or take from it (Ingress)."""
    if not pod.namespace:
        return True
    binding = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and way in policy["spec"]["policyTypes"]
        and selects(policy["spec"]["podSelector"], pod.labels)
    ]
    if not binding:
        return True
    key, end = ("egress", "to") if way == "Egress" else ("ingress", "from")
    rules = [rule for spec in binding for rule in spec.get(key, ())]
    return any(
        any(matches(peer, pod.namespace, other) for peer in rule[end])
        and any(p["port"] <= port <= p.get("endPort", p["port"]) and p["protocol"] == protocol for p in rule["ports"])
        for rule in rules
    )


def matches(peer: Object, home: str, other: Peer) -> bool:
    """Whether a peer of a rule means this pod or address."""
    if "ipBlock" in peer:
        address, block = ipaddress.ip_address(other.address), peer["ipBlock"]
        inside = address in ipaddress.ip_network(block["cidr"])
        return inside and not any(address in ipaddress.ip_network(hole) for hole in block.get("except", ()))
    if not other.namespace:
        return False
    labels = {"kubernetes.io/metadata.name": other.namespace}
    there = selects(peer["namespaceSelector"], labels) if "namespaceSelector" in peer else other.namespace == home
    return there and selects(peer.get("podSelector", {}), other.labels)


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector takes these labels."""
    if set(selector) - {"matchLabels", "matchExpressions"}:
        raise AssertionError(f"a selector with {set(selector)}")
    wanted = selector.get("matchLabels", {}).items() <= dict(labels).items()
    return wanted and all(_expression(e, labels) for e in selector.get("matchExpressions", ()))


def _expression(expression: Object, labels: Mapping[str, str]) -> bool:
    assert expression["operator"] == "Exists", "the only operator that k8s/ uses"
    return expression["key"] in labels
