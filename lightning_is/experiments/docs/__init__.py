"""Numbers in the README and in ``docs/``: files of results, and who fills them in."""

from lightning_is.experiments.docs.program import fill
from lightning_is.experiments.docs.publishing import (
    Finding,
    check_target,
    commit,
    publish,
)
from lightning_is.experiments.docs.results import Results, read

__all__ = ["Finding", "Results", "check_target", "commit", "fill", "publish", "read"]
