"""Verify a filtered dataset without a Dagster instance: `python -m forvalue_dagster.verify FILE`.

To be run before any finetuning job, wherever it starts. It exits with 0 only if the file is, byte
for byte, the one that its certificate names, and the certificate has no objection. It does not
load torch.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from upath import UPath

from forvalue_dagster.quality.certificate import (
    CertificateError,
    certified_copy,
    check_signature,
    has_key,
)
from forvalue_dagster.quality.manifest import Manifest
from forvalue_dagster.storage.atomic import atomic_write


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify a file, print the result, and return the exit status."""
    options = _parser().parse_args(arguments)
    path = UPath(options.file)
    try:
        manifest, said = verify(
            path,
            UPath(options.manifest) if options.manifest else None,
            signed=options.signed,
            max_age=None if options.max_age is None else timedelta(hours=options.max_age),
            expected=dict(options.expect),
            copy_to=UPath(options.copy_to) if options.copy_to else None,
        )
    except CertificateError as error:
        sys.stderr.write(f"NOT CERTIFIED: {path.name}: {error}\n")
        return 1
    sys.stdout.write("\n".join([f"certified: {path.name}", *said, *_summary(manifest), ""]))
    return 0


def verify(
    path: UPath,
    manifest_path: UPath | None = None,
    *,
    signed: bool = False,
    max_age: timedelta | None = None,
    expected: Mapping[str, Any] | None = None,
    copy_to: UPath | None = None,
) -> tuple[Manifest, list[str]]:
    """Return the manifest of a certified filtered dataset, and warnings about it.

    Args:
        path: the dataset, as Parquet or JSON Lines.
        manifest_path: path of its manifest; by default the one next to it.
        signed: whether a signature is required; with a key in the environment it always is.
        max_age: oldest age of the certificate to accept.
        expected: setting of the gate or the selection → its value.
        copy_to: path for a copy of the verified file.

    Raises:
        CertificateError: if it is not certified; the message says why.
    """
    stored = _stored(manifest_path or path.with_name(f"{path.stem}.manifest.json"))
    said = []
    if signed or has_key():
        check_signature(stored)
        said.append("signature: the pipeline's")
    else:
        said.append("signature: not looked at, for there is no key")
    try:
        manifest = Manifest.from_json(stored)
    except (KeyError, TypeError, AttributeError) as error:
        raise CertificateError(
            f"its manifest is not one of this version ({type(error).__name__}: {error})"
        ) from None
    objections = [*manifest.objections(), *_policy_objections(manifest, expected or {})]
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.made_at)
    if max_age is not None and age > max_age:
        objections.append(
            f"it was certified {age / timedelta(hours=1):.1f} hours ago; expected at most "
            f"{max_age / timedelta(hours=1):.1f}"
        )
    if objections:
        raise CertificateError("; ".join(objections))
    with certified_copy(path, _digests(manifest)) as copy:
        if copy_to is not None:
            with atomic_write(copy_to) as stream:
                shutil.copyfileobj(copy, stream, 1 << 20)
    return manifest, said + [f"note: {clause}" for clause in manifest.overridden]


def _stored(path: UPath) -> dict[str, Any]:
    try:
        stored = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CertificateError(
            f"there is no certificate {path}; expected the manifest that the pipeline writes "
            "beside the dataset, or name it with --manifest"
        ) from None
    except ValueError:
        raise CertificateError(f"{path} is no JSON, so no certificate") from None
    if not isinstance(stored, dict):
        raise CertificateError(f"{path} is no certificate")
    return stored


def _digests(manifest: Manifest) -> set[str]:
    """Return the digests of the dataset's files, without those of the dropped rows."""
    name = manifest.dataset.rpartition("/")[2]
    return {
        digest
        for file, digest in manifest.files.items()
        if file in (f"{name}.parquet", f"{name}.jsonl")
    }


def _policy_objections(manifest: Manifest, expected: Mapping[str, Any]) -> Iterator[str]:
    known = {**manifest.selection, **manifest.policy}
    for name, value in expected.items():
        if name not in known:
            yield f"its policy has no {name!r}; it has {', '.join(sorted(known))}"
        elif known[name] != value:
            yield f"its {name} is {known[name]!r}; expected {value!r}"


def _summary(manifest: Manifest) -> Iterator[str]:
    rows, policy = manifest.rows, manifest.policy
    yield f"dataset: {manifest.dataset}, made {manifest.made_at}"
    yield f"rows: {rows['kept']} kept of {rows['in']}"
    for entry in manifest.shards:
        yield f"{'in ' if entry.passed else 'out'} {entry.summary}"
    for shard in manifest.missing_shards:
        yield f"out shard {shard!r}: not valued"
    yield f"gate: {json.dumps(policy, sort_keys=True)}"
    yield f"selection: {json.dumps(manifest.selection, sort_keys=True)}"


def _setting(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m forvalue_dagster.verify",
        description="Exit with 0 only if a filtered dataset is certified, byte for byte.",
        epilog="With FORVALUE_SIGNING_KEY in the environment the signature must be the pipeline's.",
    )
    parser.add_argument("file", help="the dataset: a path or URI of .parquet or .jsonl")
    parser.add_argument("--manifest", help="its manifest; by default the one next to it")
    parser.add_argument("--signed", action="store_true", help="require a signature")
    parser.add_argument("--max-age", type=float, metavar="HOURS", help="oldest certificate allowed")
    parser.add_argument(
        "--expect",
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the gate or the selection that it must have been made with",
    )
    parser.add_argument("--copy-to", metavar="FILE", help="write the verified file there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
