"""A worker of an earlier version in a cluster of this one, as in a rolling upgrade.

`make test` builds the earlier version from the commit that the Makefile names.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import Cluster, Nats, complete, wait_until
from stator_process import REPOSITORY

EARLIER = REPOSITORY / "target/earlier/stator"
PROMPT = list(range(5, 305))
TOKENS = 150
SLOW = ("--mock-step-us", "20000")


def text_of(answer):
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["text"]


@pytest.mark.skipif(
    not EARLIER.exists(), reason="the earlier version is not built: its commit is not in this clone"
)
def test_an_earlier_worker_joins_serves_and_is_migrated_from():
    with Nats() as nats, Cluster(nats) as cluster, ThreadPoolExecutor() as pool:
        gateway = cluster.begin("gateway")
        cluster.start("router")
        earlier = cluster.start("decode-worker", *SLOW, binary=EARLIER)
        gateway.ready()
        wait_until(lambda: gateway.metric("stator_workers_known") == 1, "it is known")
        undisturbed = text_of(complete(gateway, PROMPT, TOKENS))

        answer = pool.submit(complete, gateway, PROMPT, TOKENS)
        wait_until(lambda: gateway.metric("stator_requests_in_flight") == 1, "it is under way")
        cluster.start("decode-worker", *SLOW)
        wait_until(lambda: gateway.metric("stator_workers_known") == 2, "both are known")
        assert gateway.metric("stator_requests_in_flight") == 1, "it ended too early"
        earlier.kill()
        assert text_of(answer.result()) == undisturbed
        assert gateway.metric('stator_migrations_total{cause="connection"}') == 1
