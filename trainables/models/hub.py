"""Whether a file of Hugging Face's hub can be had, found out in seconds.

The hub's own client tries for half a minute, and timm asks it for one name of the file after another.
"""

import time
from collections.abc import Sequence
from importlib import import_module

ATTEMPTS, PAUSE_S = 3, 1.0
"""How often a connection is tried that is refused at once, and the time in between: a name server may fail for a moment."""
NO_CONNECTION = {"ConnectError", "ConnectTimeout", "ConnectionError"}
"""Names of the errors that say so, in each of the libraries that versions of the hub's client use: httpx, httpx2, requests."""


def unreachable(repo: str, files: Sequence[str]) -> str | None:
    """Why there is no connection to the hub; None if there is one, or a file is in the hub's cache on this machine.

    A server that answers late, or with an error, is reachable: the client knows how long to be patient. A firewall that drops all
    packets is noticed after the client's own time limit, HF_HUB_ETAG_TIMEOUT or 10 s.

    Args:
        repo: on the hub, as `timm/test_vit.r160_in1k`; may end with @ and a revision.
        files: names of the files, one of which is wanted.
    """
    hub = import_module("huggingface_hub")
    repo, _, revision = repo.partition("@")
    where = {"revision": revision or None}
    if any(isinstance(hub.try_to_load_from_cache(repo, file, **where), str) for file in files):
        return None
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, files[0], **where))
        except Exception as error:
            if not NO_CONNECTION & {kind.__name__ for kind in type(error).__mro__}:
                return None
            if attempt == ATTEMPTS or time.monotonic() - began > ATTEMPTS * PAUSE_S:
                return " ".join(f"{type(error).__name__}: {error}".split())
            time.sleep(PAUSE_S)
        else:
            return None
    return None
