"""Ready means: the path that will answer gave the golden answers."""

from collections.abc import Awaitable, Callable

from redline.artifact import Artifact
from redline.tensors import Arrays, largest_gap
from redline.verdict import Verdict

Infer = Callable[[Arrays], Awaitable[Arrays]]


async def replay(artifact: Artifact, infer: Infer) -> Verdict:
    """Every golden request through `infer`: once to warm up, once to compare with the stored answers."""
    manifest = artifact.manifest
    cases = artifact.golden()
    for inputs, _, _ in cases:
        await infer(inputs)
    for i, (inputs, golden, source) in enumerate(cases):
        answers = await infer(inputs)
        for wanted, tolerance, whose in (
            (golden, manifest.replay_tolerance, ""),
            (source, manifest.source_tolerance, " from the source model's"),
        ):
            if verdict := _differs(answers, wanted, tolerance, whose):
                return Verdict(False, f"golden request {i}: {verdict.why}")
    return Verdict(True, f"{len(cases)} golden requests replayed")


def _differs(answers: Arrays, wanted: Arrays, tolerance: float, whose: str) -> Verdict:
    """Truthy where an answer is off by more than tolerance (or not a number)."""
    for name, want in wanted.items():
        got = answers.get(name)
        if got is None or got.shape != want.shape:
            return Verdict(True, f"output {name} has shape {None if got is None else got.shape}, wanted {want.shape}")
        off = largest_gap(got, want)
        if not off <= tolerance:
            return Verdict(True, f"output {name} differs{whose} by {off:.3g} > {tolerance:g}")
    return Verdict(False, "same")
