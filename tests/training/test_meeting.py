"""How processes meet before their engine starts."""

import socket
import threading

import pytest
from helpers import one_line_error

from benchmarks.devices import free_port
from keras_vit.training.distribution.meeting import meet


def meeting(ranks, count, seconds, address=None):
    """What each process has been told: None, or its ValueError's message."""
    address, said = address or f"127.0.0.1:{free_port()}", {}

    def come(rank):
        try:
            said[rank] = meet(address, rank, count, seconds)
        except ValueError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_all_come_in_any_order_and_the_port_is_free_afterwards():
    address = f"127.0.0.1:{free_port()}"
    for _ in range(2):
        assert meeting((3, 1, 0, 2), 4, 20, address) == dict.fromkeys(range(4))
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass


def test_those_that_have_not_come_are_named_to_all():
    said = meeting((0, 2), 4, 1)
    assert set(said) == {0, 2}
    for message in said.values():
        assert message.startswith("distribute: received no process 1, 3 at 127.0.0.1:")
        assert message.endswith(" after 1 s; allowed: all 4, within train.peer_timeout")


def test_without_the_first_process():
    assert "received no process 0 at" in meeting((1,), 2, 1)[1]


def test_strangers_and_ranks_that_are_none_do_not_count():
    port, said = free_port(), {}

    def lead():
        try:
            meet(f"127.0.0.1:{port}", 0, 2, 3)
        except ValueError as error:
            said[0] = str(error)

    leader = threading.Thread(target=lead)
    leader.start()
    for content in (b"", b"GET / HTTP/1.1", b"\x00\x00\x00\x07", b"\x00\x00\x00\x00", b"\x00"):
        for _ in range(50):
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as stranger:
                    stranger.sendall(content)
                break
            except ConnectionRefusedError:  # the leader has not begun
                threading.Event().wait(0.05)
    leader.join()
    assert "received no process 1 at" in said[0]


@pytest.mark.parametrize("address", ["", "here", "here:", "here:port", ":29500", "here:0", "here:65536"])
def test_addresses(address):
    with one_line_error(rf"^distribute: received address '{address}'; allowed: HOST:PORT$"):
        meet(address, 0, 2, 1)


def test_a_port_in_use_and_a_rank_outside():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with one_line_error(rf"^distribute: received address 127.0.0.1:{port} \(.*\); allowed: a free port of this host$"):
            meet(f"127.0.0.1:{port}", 0, 2, 1)
    with one_line_error("^distribute: received process 2; allowed: 0 to 1, of 2 processes$"):
        meet("127.0.0.1:1", 2, 2, 1)
