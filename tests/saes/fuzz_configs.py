"""Configurations and headers that no publisher wrote: wrong types, absurd numbers, texts that climb, damaged JSON."""

import json
from copy import deepcopy
from random import Random
from typing import Any

RAW = "\ue000"
"""Stands for a token that `json.dumps` would not write."""

TOKENS = ("1e400", "-1e400", "NaN", "-Infinity", "9" * 4_000, "9" * 5_000, "-0", "1e-400", "0x10", "1_000", "")

VALUES: tuple[Any, ...] = (None, True, False, 0, -1, 1, 4, 5, 1.5, 1e308, 5e-324, 2**31, 2**63, 2**64, -(2**63))
VALUES += (10**300, "", "4", "none", "true", "null", [], {}, [1], [[]], {"a": 1}, [None] * 100, {"": {"": {"": []}}})

TEXTS = ("../../x", "/etc/passwd", "a/../../b", "nul\x00", "x" * 100_000, "\ud800", "\u202e", "new\n\nline", "\x1b[2J")
TEXTS += ("$(touch canary)", "__import__('os').system('touch canary')", "%s%n", "{0.__class__}", "file:///etc/passwd")
TEXTS += ("standard", "topk", "jumprelu", "gated", "batchtopk", "groupmax", "relu", "layer_norm", "token-wise", "sae")
TEXTS += ("torch.load", "os.system", "https://127.0.0.1:9/x", "owner/repository", "AutoEncoder", "GatedAutoEncoder")

HOOKS = ("blocks.3.hook_resid_post", "blocks.-1.hook_resid_post", "blocks.٣.hook_resid_post", "blocks.3.hook_none")
HOOKS += (f"blocks.{'9' * 5_000}.hook_resid_post", f"layers.{'9' * 5_000}", f"layers.{'9' * 300}", "blocks.3")
HOOKS += ("blocks.3.hook_resid_post\n", "../../layers.3", "a." * 30_000 + "layers.3", "h." * 30_000 + "3!", "unembed")
HOOKS += ("layers.3" + ".a" * 30_000 + "!", "layers.3.mlp.output", "model.layers.3.__class__.output", "layers." * 999)
HOOKS += ("blocks.3.hook_" + "a" * 99_999, f"layers.3.{'x' * 99_999}.output", "layers.1.layers.3", "layers.3")


def paths(content: Any) -> list[tuple[Any, Any]]:
    """Each container in `content` with each of its keys or places."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    found = []
    for key, value in list(items):
        found += [(content, key), *paths(value)]
    return found


def wrong_value(random: Random, target: Any) -> dict[str, Any]:
    """Something else where a setting stands, anywhere in the configuration."""
    settings = json.loads(json.dumps(target.settings))
    token = random.choice(TOKENS)
    for _ in range(random.choice((1, 1, 1, 2, 9))):
        holder, key = random.choice(paths(settings))
        value = random.choice((random.choice(VALUES), random.choice(VALUES), random.choice(TEXTS), RAW))
        holder[key] = deepcopy(value)
    return target.configured(json.dumps(settings).replace(json.dumps(RAW), token).encode())


def wrong_hook(random: Random, target: Any) -> dict[str, Any]:
    """A hook point, or any other text, that names a strange place."""
    settings = json.loads(json.dumps(target.settings))
    texts = [(holder, key) for holder, key in paths(settings) if isinstance(holder[key], str)]
    hooks = [(holder, key) for holder, key in texts if "hook" in str(key) or "site" in str(key)]
    holder, key = random.choice(hooks or texts)
    holder[key] = random.choice(HOOKS)
    return target.configured(json.dumps(settings).encode())


def key_missing_or_more(random: Random, target: Any) -> dict[str, Any]:
    settings = json.loads(json.dumps(target.settings))
    holder, key = random.choice([(holder, key) for holder, key in paths(settings) if isinstance(holder, dict)])
    if random.random() < 0.6:
        del holder[key]
    else:
        holder[random.choice((*TEXTS, "__class__", "path", "file"))] = random.choice(VALUES)
    return target.configured(json.dumps(settings).encode())


def key_twice(random: Random, target: Any) -> dict[str, Any]:
    text = json.dumps(target.settings)
    key = random.choice(list(target.settings))
    again = json.dumps({key: random.choice((*VALUES, *TEXTS[:5]))})
    first, second = random.choice(((text, again), (again, text)))
    return target.configured((first[:-1] + ", " + second[1:]).encode())


def broken_json(random: Random, target: Any) -> dict[str, Any]:
    """Empty, of another kind, in another encoding, nested 10,000 deep, or up to 2 MB long."""
    text = json.dumps(target.settings)
    more = text[:-1] + ', "more": '
    deep, long = 10_000, random.choice((250_000, 500_000, 2 << 20))
    texts = ["", "{}", "[]", "null", "3", '"text"', f"[{text}]", text[:-1], text + "}", text.replace(":", "=", 1)]
    texts += ["[" * deep, '{"a":' * deep, "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, "\x00" * 9, "//"]
    texts += [more + "[" * deep + "]" * deep + "}", text.replace('"', "'"), "-", "1" * 5_000, f"/* */ {text}", "{,}"]
    texts += [more + '{"a":' * 900 + "1" + "}" * 901, '"' + "\\u0000" * 9 + '"', more + '"' + "x" * long + '"}']
    texts += ["[" + "[]," * (long // 3) + "[]]", text + " " * long, '{"a":' + "9" * long + "}"]
    texts += ['"' + "\\ud800" * (long // 6) + '"']
    encoded = [
        text.encode("utf-16"),
        b"\xef\xbb\xbf" + text.encode(),
        more.encode() + b'"\xff"}',
        random.randbytes(999),
    ]
    return target.configured(random.choice([*encoded, *[text.encode() for text in texts]]))


def of_100_megabytes(random: Random, target: Any) -> dict[str, Any]:
    text = json.dumps(target.settings).encode()
    more = random.choice((b'"' + b"x" * (95 << 20) + b'"', b"[" + b"[]," * (32 << 20) + b"[]]", b"9" * (95 << 20)))
    return target.configured(text[:-1] + b', "more": ' + more + b"}")


MUTATIONS = {
    "setting of another kind": (wrong_value, "anything", "config"),
    "two settings of another kind": (wrong_value, "anything", "config"),
    "hook point that leads elsewhere": (wrong_hook, "anything", "config"),
    "setting missing or more": (key_missing_or_more, "anything", "config"),
    "setting twice": (key_twice, "anything", "config"),
    "broken JSON": (broken_json, "anything", "config"),
    "strange JSON": (broken_json, "anything", "config"),
}
"""Name: the mutation, what must come of it (see `fuzz.EXPECTED`), and the kind of target it applies to."""

HUGE = {"JSON of 100 MB": (of_100_megabytes, "refused", "config")}
"""The same, too large for a quick test."""
