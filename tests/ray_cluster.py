"""A Ray cluster of several machines on loopback, in a process of its own, which does what its input says.

python tests/ray_cluster.py     prints the address; then reads lines: add, remove; the cluster ends with its input
"""

from __future__ import annotations

import os
import sys

LOOPBACK = {"node_ip_address": "127.0.0.1", "include_dashboard": False}

if __name__ == "__main__":
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # only on loopback
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **LOOPBACK})
    machines = [cluster.add_node(num_cpus=1, **LOOPBACK) for _ in range(2)]  # type: ignore[arg-type]
    print(cluster.address, flush=True)  # noqa: T201
    for line in sys.stdin:
        if line.strip() == "remove":
            cluster.remove_node(machines.pop(), allow_graceful=False)
        else:
            machines.append(cluster.add_node(num_cpus=1, **LOOPBACK))  # type: ignore[arg-type]
        print("done", flush=True)  # noqa: T201
    cluster.shutdown()  # type: ignore[no-untyped-call]
