"""A check within seconds whether there is a network."""

import http.client
import ssl
import threading
import urllib.error
import urllib.request

PROBE_SECONDS = 4


def reachable(url: str) -> bool:
    """Whether a server answers within `PROBE_SECONDS`, including name lookup and proxies."""
    answers = []

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code not in (403, 407))  # the answer of a proxy that lets nothing through
        except (OSError, ValueError, http.client.HTTPException) as error:
            # A certificate that this Python cannot check counts as an answer: TFDS downloads with its own certificates.
            answers.append(isinstance(getattr(error, "reason", None), ssl.SSLError))

    # In a thread, because a name lookup has no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answers == [True]
