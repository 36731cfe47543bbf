"""Posts with one thing wrong, made from a valid one: what a broken or hostile phone sends."""

import json
import random
from copy import deepcopy
from typing import Any

REQUIRED = [
    *(
        ("", key)
        for key in ("schema_version", "id", "artifact", "model_sha256", "engine", "device", "protocol")
    ),
    *(("device", key) for key in ("os", "browser", "cores")),
    *(("measurement", key) for key in ("load_ms", "warmup_ms", "samples_ms", "before", "probe_logits")),
]


def malformed(post: dict[str, Any], chance: random.Random) -> bytes:
    """A valid post with one thing wrong: in its bytes, in its fields, or in a value somewhere in it."""
    body = json.dumps(post).encode()
    at = chance.randrange(len(body))
    kind = chance.choice(["cut", "bytes", "nested", "missing", "extra", "value", "value", "value"])
    if kind == "cut":
        return body[:at]
    if kind == "bytes":
        return body[:at] + chance.choice([b"\x00", b"\xff", b"\xed\xa0\x80"]) + body[at + 1 :]
    if kind == "nested":
        return body[:-1] + b', "x": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    post = deepcopy(post)
    if kind == "missing":
        of, key = chance.choice(REQUIRED)
        del (post[of] if of else post)[key]
    elif kind == "extra":
        of = chance.choice([post, post["device"], post["measurement"], post["measurement"]["before"]])
        of[chance.choice(["path", "__proto__", "statistics", "correctness", "images_per_s"])] = "../../x"
    else:
        spoil(post, chance)
    return json.dumps(post).encode()


def spoil(post: dict[str, Any], chance: random.Random) -> None:
    """Put a value where it does not belong."""
    where: Any = post
    key: Any = chance.choice([name for name in post if name != "not_run"])
    path = [key]
    while isinstance(where[key], dict | list) and chance.random() < 0.85:
        where = where[key]
        key = chance.choice(list(where)) if isinstance(where, dict) else chance.randrange(len(where))
        path.append(key)
    bad: list[Any] = [{"x": 1}, "../../../etc/passwd" * 40, float("nan"), 1e309, -(10**400)]
    if isinstance(where[key], str):
        bad = [12, {"x": 1}, ["a"], "../../../etc/passwd" * 40, ""]
    elif where[key] is None:
        bad = [{"x": 1}, [[]]]
    elif isinstance(where[key], int | float) and "probe_logits" not in path:
        bad.append(-1)
    where[key] = chance.choice(bad)
