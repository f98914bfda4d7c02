"""The processes of a training meet before their engine starts: if one does not come, JAX aborts and TensorFlow waits for ever."""

import contextlib
import re
import socket
import struct
import time

RANK = struct.Struct("!I")  # what a process says of itself
START = b"start"
RANKS = re.compile(rb"\d+(, \d+)*")
PAUSE = 0.2  # seconds between two tries
LOOPBACK = ("localhost", "127.0.0.1")


def meet(address: str, rank: int, count: int, seconds: float) -> None:
    """Waits until all processes are here. The engine may use the port afterwards.

    Args:
        address: HOST:PORT of the first process.
        rank: Which process this one is, from 0.
        count: How many there are.
        seconds: How long to wait.

    Raises:
        ValueError: That names the processes which have not come, or a rank that is there twice; for an address that cannot be used.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"distribute: received address {address!r}; allowed: HOST:PORT")
    if not 0 <= rank < count:
        raise ValueError(f"distribute: received process {rank}; allowed: 0 to {count - 1}, of {count} processes")
    end = time.monotonic() + seconds
    said = welcome(host, int(port), count, end) if rank == 0 else call(host, int(port), rank, end)
    if said == START:
        return
    missing = f"no process {said.decode()} at {address} after {seconds} s"
    raise ValueError(f"distribute: received {missing}; allowed: all {count}, within train.peer_timeout")


def welcome(host, port, count, end):
    """Receives the other processes; what each of them is told: `START`, or the ranks that have not come."""
    where = host if host in LOOPBACK else ""  # a host's own name may stand for its loopback
    try:
        server = socket.create_server((where, port))
    except OSError as error:
        raise ValueError(
            f"distribute: received address {host}:{port} ({error.strerror}); allowed: a free port of this host"
        ) from None
    came = {}
    with server:
        while len(came) < count - 1 and time.monotonic() < end:
            server.settimeout(max(end - time.monotonic(), PAUSE))
            try:
                peer, _ = server.accept()
            except OSError:  # nobody
                continue
            rank = rank_of(peer)
            if 0 < rank < count and rank not in came:
                came[rank] = peer
            else:
                peer.close()
    missing = [str(rank) for rank in range(1, count) if rank not in came]
    said = ", ".join(missing).encode() or START
    for peer in came.values():
        with peer, contextlib.suppress(OSError):
            peer.sendall(said)
    return said


def rank_of(peer):
    """Which process calls; 0 if it is none."""
    peer.settimeout(5)
    try:
        return RANK.unpack(peer.recv(RANK.size, socket.MSG_WAITALL))[0]
    except (OSError, struct.error):
        return 0


def call(host, port, rank, end):
    """What the first process says; "0" if it is not there."""
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=max(end - time.monotonic(), PAUSE)) as peer:
                peer.sendall(RANK.pack(rank))
                peer.settimeout(max(end - time.monotonic(), 0) + 5)  # the first one's clock has begun later
                said = b"".join(iter(lambda: peer.recv(1024), b""))
                if said == START or RANKS.fullmatch(said):  # not the engine of an earlier training
                    return said
        except OSError:
            pass
        time.sleep(PAUSE)
    return b"0"
