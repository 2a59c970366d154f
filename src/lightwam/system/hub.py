"""The Hugging Face Hub: the form of its ids, and its client's errors in lightwam's form."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from lightwam.errors import CheckpointError, LightwamError

REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HUB_ID = re.compile(rf"({REPO.pattern})(?:@(\S+))?")
"""OWNER/NAME or OWNER/NAME@REVISION"""
COMMIT = re.compile(r"[0-9a-f]{40}")
RETRY = "check name, network and rights, and try again: nothing is left half done"


@contextlib.contextmanager
def hub_errors(repo: str, what: str, kind: type[LightwamError] = CheckpointError, retry: str = RETRY) -> Iterator[None]:
    """Turn an error of the Hub's client into one of `kind` that begins with `what`.

    `retry` is the next step after an error that may not happen again, such as a connection that was cut.
    """
    try:
        yield
    except LightwamError:
        raise
    except ImportError as error:
        step = "pip install 'lightwam[hub]'"
        raise kind(what, where=repo, got=error, expected="huggingface_hub", next_step=step) from error
    except Exception as error:  # the HTTP library below, and so its errors, changes with the version
        got = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise kind(what, where=repo, got=got, next_step=_next_step(error, retry)) from error


def _next_step(error: Exception, retry: str) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RevisionNotFoundError):
        return "name a branch, tag or commit that the repo has"
    if isinstance(error, GatedRepoError):
        return "accept the terms on the repo's page, then log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):  # the Hub says the same of missing and of private repos
        return "check the name; for a private repo, log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return (
            "if a folder was meant, check the path; the Hub cannot be reached (network, HF_HUB_OFFLINE), and the repo "
            "is not completely in the local cache"
        )
    return retry
