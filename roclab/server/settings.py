"""What an operator sets for the server; each setting is declared once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from roclab.core.exceptions import RocLabError
from roclab.core.settings import check_settings, setting

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerSettings:
    """Raises RocLabError for a value out of bounds, and for an address that others reach without a key."""

    host: str = setting("127.0.0.1", "Address to listen on; another than this machine's own needs --api-key.")
    port: int = setting(8000, "Port; 0 takes a free one and prints it.", low=0, high=65535)
    api_key: str | None = setting(None, "Key that clients must send; or the environment's ROCLAB_API_KEY.")
    no_api_key: bool = setting(False, "Listen on any address without a key.", flags=("--no-api-key",))
    allow_origin: Sequence[str] = setting((), "Origin of a web page that may ask, such as http://localhost:3000.")
    allow_host: Sequence[str] = setting((), "Name under which clients reach the server, such as gpu.example.org.")
    max_running: int = setting(64, "Requests that are decoded together; more wait.", low=1, high=4096)
    max_waiting: int = setting(256, "Requests that may wait; more are answered 429.", low=0)
    max_tokens: int | None = setting(None, "New tokens a request may have; the context's room if not given.", low=1)
    max_seconds: float = setting(600.0, "Seconds that a request may take.", low=0.001)
    max_body_mb: float = setting(8.0, "Size of a request's body, in MB.", low=0.001, high=1024)
    prefix_cache_mb: int = setting(512, "Memory for the KV caches of finished requests, in MB.", low=0)
    models_mb: int | None = setting(None, "Memory for loaded models, in MB; the one used longest ago goes.", low=1)

    def __post_init__(self) -> None:
        check_settings(self)
        if "*" in self.allow_origin:
            raise RocLabError("--allow-origin '*' would let every web page ask: name the pages that may")
        if self.api_key is None and not self.no_api_key and os.environ.get("ROCLAB_API_KEY"):
            object.__setattr__(self, "api_key", os.environ["ROCLAB_API_KEY"])
        if self.host not in LOOPBACK and not self.api_key and not self.no_api_key:
            raise RocLabError(
                f"--host {self.host} can be reached by others: give --api-key KEY (or ROCLAB_API_KEY), or --no-api-key "
                "if anyone may ask"
            )
