"""What a server takes at a time, and the error for what it does not take."""

import dataclasses

from keras_vit.checks import check_int, check_number, visible

MIB = 2**20
HELD = 8  # bodies of the largest size that are in memory together
LONGEST = 1000  # characters of an error


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        max_batch: Images that the model gets at a time.
        max_delay: Milliseconds that an image waits for others, while other requests are being read.
        max_images: Images of one request.
        max_queue: Images that wait for the model.
        max_body: MiB of one request.
        timeout: Seconds within which a request must have arrived.
    """

    max_batch: int = 64
    max_delay: float = 5.0
    max_images: int = 256
    max_queue: int = 1024
    max_body: int = 32
    timeout: float = 30.0

    def __post_init__(self):
        check_int("max_batch", self.max_batch, 1, 4096)
        check_number("max_delay", self.max_delay, at_least=0, at_most=10_000)
        check_int("max_images", self.max_images, 1, 2**16)
        check_int("max_queue", self.max_queue, 1, 2**20)
        check_int("max_body", self.max_body, 1, 1024)
        check_number("timeout", self.timeout, above=0, at_most=3600)
        if self.max_queue < self.max_images:
            raise ValueError(f"max_queue: received {self.max_queue}; allowed: at least {self.max_images}, that of max_images")

    @property
    def bytes_of_body(self) -> int:
        return self.max_body * MIB

    @property
    def bytes_held(self) -> int:
        """Bytes of all bodies that are in memory together."""
        return HELD * self.bytes_of_body


class Refused(Exception):
    """A request that gets an error; the server goes on.

    Args:
        status: The status of HTTP.
        message: `field: received X; allowed: Y`.
        **headers: Of the answer, with `_` for `-`.
    """

    def __init__(self, status: int, message: str, **headers: str):
        message = visible(message)
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]} ...")
        self.status, self.headers = status, {name.replace("_", "-"): value for name, value in headers.items()}


def busy(message: str) -> Refused:
    """503: the same request may succeed in a second."""
    return Refused(503, message, Retry_After="1")
