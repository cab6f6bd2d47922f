"""What can go wrong, and the exit code each kind carries.

RedlineError
├── UsageError (2)            bad usage or input
│   ├── JobError              the job, or the model it names
│   ├── GraphError            an ONNX graph a pass or an engine can't take
│   ├── ArtifactError         an artifact that is damaged, unknown or not for this machine
│   └── RequestError          a request that doesn't fit the model (HTTP 400, gRPC INVALID_ARGUMENT)
├── BrokenError (1)           done, and a gate or the SLA broke
├── MissingError (3)          this machine can't: what is missing, how to get it
└── MeasurementError (4)      the measurement is invalid

Every message says what was wanted, what came, and what to do.
"""


class RedlineError(Exception):
    """Base of every error Redline raises on purpose."""

    exit_code = 1


class UsageError(RedlineError):
    exit_code = 2


class JobError(UsageError):
    pass


class GraphError(UsageError):
    pass


class ArtifactError(UsageError):
    pass


class RequestError(UsageError):
    pass


class BrokenError(RedlineError):
    exit_code = 1


class MissingError(RedlineError):
    exit_code = 3


class MeasurementError(RedlineError):
    exit_code = 4


def missing_extra(extra: str, what: str) -> MissingError:
    """The one wording for an absent optional dependency."""
    return MissingError(f"{what} needs `pip install 'redline[{extra}]'`")
