"""All private names of JAX that this library uses, under names of its own.

`pytest -m private` tests them: run it with a newer version of JAX.
"""

import importlib

BRIDGE_MODULE = "jax._src.xla_bridge"
STATE_MODULE = "jax._src.distributed"
PARTS = ("preemption_sync_manager", "client", "service")


def has_backend() -> bool:
    """Whether JAX has made its devices, which read their settings then; True where the name is gone."""
    try:
        return importlib.import_module(BRIDGE_MODULE).backends_are_initialized()
    except (ImportError, AttributeError):
        return True


def leave_cluster() -> None:
    """Lets this process end by itself where others of its cluster are gone.

    At its exit JAX waits for them, and aborts when they do not come. Where the names are gone it does so still.
    """
    try:
        state = importlib.import_module(STATE_MODULE).global_state
    except (ImportError, AttributeError):
        return
    KEPT.extend(vars(state).get(name) for name in PARTS)  # what is deleted would wait too
    for name in PARTS:
        if hasattr(state, name):
            setattr(state, name, None)


KEPT = []
