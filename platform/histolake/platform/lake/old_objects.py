"""Old versions of objects: what a bucket with versioning keeps of everything that was deleted or replaced.

They are not listed among the objects below a prefix, and hold every byte. On disk and in other buckets there is none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from histolake.platform.storage import Location

__all__ = ["drop_old_versions"]


def drop_old_versions(root: Location) -> int:
    """Remove what a bucket keeps of objects below a root that were deleted or replaced; returns how many versions.
    What is there stays."""
    if not root.is_remote:
        return 0
    client, bucket = root.s3_client(), _bucket(root)
    if not _is_versioned(client, bucket):
        return 0
    old = [entry for entry in _versions(root, "Versions") if not entry["IsLatest"]]
    for entry in old:
        client.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
    # A mark of deletion goes after the versions that it hides, or the last of them would be seen again.
    for entry in list(_versions(root, "DeleteMarkers")):
        client.delete_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])
    return len(old)


def _is_versioned(client: Any, bucket: str) -> bool:
    """Whether a bucket keeps versions, or did once. A store that does not know of such a thing has none."""
    from botocore.exceptions import ClientError

    try:
        return client.get_bucket_versioning(Bucket=bucket).get("Status") is not None
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 405, 501):
            return False
        raise


def _versions(root: Location, what: str) -> Iterator[dict[str, Any]]:
    prefix = root.uri.removeprefix("s3://").partition("/")[2]
    under = {"Prefix": f"{prefix}/"} if prefix else {}
    for page in root.s3_client().get_paginator("list_object_versions").paginate(Bucket=_bucket(root), **under):
        yield from page.get(what) or []


def _bucket(root: Location) -> str:
    return root.uri.removeprefix("s3://").partition("/")[0]
