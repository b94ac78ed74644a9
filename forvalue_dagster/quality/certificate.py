"""The certificate as a file: checking the dataset's bytes and the certificate's signature.

This module needs no Dagster. The signature is an HMAC with a key from the environment. Whoever has
the key (the pipeline, and those who verify) can tell whether the pipeline wrote the certificate.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Collection, Mapping
from hashlib import sha256
from tempfile import TemporaryFile
from typing import IO, Any

from upath import UPath

SIGNING_KEY = "FORVALUE_SIGNING_KEY"
_ALGORITHM = "hmac-sha256"
_BLOCK = 1 << 20


class CertificateError(Exception):
    """The certificate does not hold for the file to read."""


def signed(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest with its signature; unchanged without a key in the environment."""
    key = os.environ.get(SIGNING_KEY)
    if not key:
        return dict(plain)
    return {**plain, "signature": {"algorithm": _ALGORITHM, "value": _signature(plain, key)}}


def has_key() -> bool:
    """Whether there is a key in the environment."""
    return bool(os.environ.get(SIGNING_KEY))


def check_signature(stored: Mapping[str, Any]) -> None:
    """Check a manifest's signature with the key in the environment, which must be set.

    Raises:
        CertificateError: if the manifest has no signature, or a wrong one.
    """
    key = os.environ.get(SIGNING_KEY)
    if not key:
        raise CertificateError(f"{SIGNING_KEY} is not set, so no signature can be held against it")
    signature = stored.get("signature")
    if not isinstance(signature, Mapping):
        raise CertificateError("it is not signed: the pipeline had no key, or did not write it")
    plain = {name: value for name, value in stored.items() if name != "signature"}
    if signature.get("algorithm") != _ALGORITHM or not hmac.compare_digest(
        str(signature.get("value")).encode(), _signature(plain, key).encode()
    ):
        raise CertificateError("its signature is not the pipeline's: it was changed, or forged")


def _signature(plain: Mapping[str, Any], key: str) -> str:
    content = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.encode(), content.encode(), sha256).hexdigest()


def certified_copy(path: UPath, digests: Collection[str]) -> IO[bytes]:
    """Return a temporary copy of a certified file, which stays the same if the file changes.

    Args:
        path: the file.
        digests: the allowed SHA-256 digests.

    Raises:
        CertificateError: if it is missing, or has none of these digests.
    """
    copy = TemporaryFile()  # noqa: SIM115 (the reader closes it)
    content = sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                content.update(block)
                copy.write(block)
        if content.hexdigest() not in digests:
            raise CertificateError(
                f"{path} is not the file that was certified: its SHA-256 is {content.hexdigest()}, "
                f"the certificate has {' or '.join(sorted(digests)) or 'none'}. Something wrote it "
                "since, or a run died on the way. Materialise it again."
            )
    except FileNotFoundError:
        copy.close()
        raise CertificateError(f"{path} does not exist. Materialise it again.") from None
    except BaseException:
        copy.close()
        raise
    copy.seek(0)
    return copy
