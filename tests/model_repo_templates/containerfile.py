"""What a careless image does, told from its Containerfile."""

import re
from collections.abc import Iterator


def containerfile_faults(text: str) -> Iterator[str]:
    """What a careless image does: run as root, float with a tag, fetch what nobody pinned."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    steps = [(line.split(maxsplit=1)[0].upper(), line.split(maxsplit=1)[1]) for line in lines if line.strip()]
    arguments = dict(value.split("=", 1) for step, value in steps if step == "ARG" and "=" in value)
    stages = [i for i, (step, _) in enumerate(steps) if step == "FROM"]
    for _, value in (steps[i] for i in stages):
        base = re.sub(r"\$\{(\w+)\}", lambda m: arguments.get(m[1], ""), value.split()[0])
        if not re.search(r":[^/:]+$|@sha256:", base) or base.endswith(":latest"):
            yield f"FROM {base}: wanted a tag, and not latest"
    last = steps[stages[-1] :]
    users = [value for step, value in last if step == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        yield f"USER {users}: wanted numbers that are not root's"
    if not any(step == "ENTRYPOINT" and value.startswith("[") for step, value in last):
        yield "ENTRYPOINT: wanted a list, or a shell swallows SIGTERM"
    for step, value in steps:
        if step == "ADD":
            yield f"ADD {value}: COPY does not fetch and does not unpack"
        if step == "HEALTHCHECK":
            yield "HEALTHCHECK: OCI images drop it and Kubernetes ignores it"
        if step == "RUN" and re.search(r"\b(curl|wget|git clone)\b", value):
            yield f"RUN {value[:40]}: fetches what nobody pinned"
        if step == "RUN" and "pip install" in value and not ("--require-hashes" in value and "--no-index" in value):
            yield "pip install without --no-index and --require-hashes"
