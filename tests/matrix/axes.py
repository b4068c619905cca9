"""What is combined with what: the axes of the compatibility matrix, and what cannot be combined."""

from itertools import combinations

AXES: dict[str, tuple[str, ...]] = {
    "trainer": ("SASFT", "SFT", "steered GRPO", "GRPO"),
    "tuning": ("full", "LoRA", "DoRA", "prompt tuning", "prefix tuning"),
    "checkpointing": ("none", "non-reentrant", "reentrant"),
    "batches": ("padded", "padding-free", "bfd", "bfd_split", "wrapped", "rollouts"),
    "loss": ("nll", "dft", "policy"),
    "precision": ("fp32", "bf16"),
    "processes": ("one", "DDP", "FSDP2"),
    "compilation": ("eager", "torch_compile"),
}
"""Values of each axis. The first ones are taken where a case is free to choose: they run fastest."""

_SFT, _GRPO = ("SFT", "SASFT"), ("GRPO", "steered GRPO")
_ROWS = ("padded", "padding-free", "bfd", "bfd_split", "wrapped")
_OWN = "GRPO makes its batches from rollouts, and has its own loss."

EXCLUDED: list[tuple[dict[str, tuple[str, ...]], str]] = [
    ({"trainer": _GRPO, "batches": _ROWS}, _OWN),
    ({"trainer": _GRPO, "loss": ("nll", "dft")}, _OWN),
    ({"trainer": _SFT, "batches": ("rollouts",)}, _OWN),
    ({"trainer": _SFT, "loss": ("policy",)}, _OWN),
    ({"batches": ("rollouts",), "loss": ("nll", "dft")}, _OWN),
    ({"batches": _ROWS, "loss": ("policy",)}, _OWN),
    (
        {"tuning": ("prompt tuning", "prefix tuning"), "batches": ("padding-free", "bfd", "bfd_split")},
        "PEFT drops the position ids of a batch that gets virtual tokens, so the documents of a row would read each "
        "other. TRL lets it happen.",
    ),
    (
        {"tuning": ("prefix tuning",), "checkpointing": ("non-reentrant", "reentrant")},
        "A prefix is a key-value cache, which transformers drops under checkpointing; the attention mask then no "
        "longer fits, and torch fails. In plain TRL too.",
    ),
    (
        {"tuning": ("prefix tuning",), "processes": ("FSDP2",), "precision": ("bf16",)},
        "The prefix stays in float32 while FSDP2 has the rest of attention in bfloat16, and torch refuses to mix "
        "them. In plain TRL too.",
    ),
]
"""Values of two or three axes that no case may hold at once, with the reason."""

Value = tuple[str, str]
Pair = tuple[Value, Value]


def all_pairs() -> list[Pair]:
    """Every pair of values of two axes, in the order of the axes."""
    names = list(AXES)
    return [
        ((one, value), (other, with_value))
        for i, one in enumerate(names)
        for other in names[i + 1 :]
        for value in AXES[one]
        for with_value in AXES[other]
    ]


def reason_against(case: dict[str, str]) -> str | None:
    """Why a case, or a part of one, is excluded; `None` if it is not."""
    for values, reason in EXCLUDED:
        if all(case.get(axis) in chosen for axis, chosen in values.items()):
            return reason
    return None


def pairs_of(case: dict[str, str]) -> set[Pair]:
    """The pairs of values that a case holds; it may lack some axes."""
    return set(combinations([(axis, case[axis]) for axis in AXES if axis in case], 2))
