"""Where things are kept that are fetched or made once: below ``$MF_DEPLOY_CACHE`` or the user's cache."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MF_DEPLOY_CACHE``, or else ``mf-deploy`` in the user's cache; it need not exist yet."""
    own = os.environ.get("MF_DEPLOY_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(own) if own else Path(users, "mf-deploy")).absolute()
